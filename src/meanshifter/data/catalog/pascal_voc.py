"""PASCAL VOC 2012 segmentation (Everingham et al., 2010): 20 object classes and background."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar
from unicodedata import normalize

from meanshifter.data.catalog.public import About, PublicDataset
from meanshifter.data.download import Archive
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.data.listing import Listing, find_files
from meanshifter.documents import read_text
from meanshifter.errors import InputError

NAMES = """
background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
pottedplant sheep sofa train tvmonitor
"""


def voc_color(index: int) -> Color:
    """Colour `index` of the VOC palette: the bits of the index dealt out to red, green and blue, highest first."""
    red = green = blue = 0
    for place in range(8):
        bits = index >> (3 * place)
        red |= (bits & 1) << (7 - place)
        green |= (bits >> 1 & 1) << (7 - place)
        blue |= (bits >> 2 & 1) << (7 - place)
    return red, green, blue


LABELS = LabelSpace(tuple(NAMES.split()), tuple(voc_color(k) for k in range(21)))


class PascalVOC(PublicDataset):
    """`JPEGImages/ID.jpg`, `SegmentationClass/ID.png` (palette), `ImageSets/Segmentation/SPLIT.txt`; border 255.

    Arguments and errors as PublicDataset.
    """

    space = LABELS
    splits: ClassVar = {"train": "train", "val": "val", "trainval": "trainval"}
    inside = ("VOC2012", "VOCdevkit/VOC2012")
    about = About(
        name="pascal_voc",
        title="PASCAL VOC 2012 segmentation",
        classes=LABELS.num_classes,
        images={"train": 1464, "val": 1449},
        terms="research use; the images are Flickr's, under Flickr's terms",
        home="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        archive=Archive(
            url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            filename="VOCtrainval_11-May-2012.tar",
            digest="md5:6cd6e144f989b92b3379bac3b3de84fd",
            published_by="torchvision",
            folder="VOCdevkit",
        ),
    )

    @classmethod
    def marker(cls, split: str) -> str:
        """The same for every split."""
        return "ImageSets/Segmentation"

    @classmethod
    def find(cls, folder: Path, split: str) -> Listing:
        """The files that the split's list names."""
        listing = folder / cls.marker(split) / f"{split}.txt"
        if not listing.is_file():
            raise InputError(f"{listing}: no such file; it lists the images of split {split!r}")
        wanted = normalize("NFC", read_text(listing)).split()
        if not wanted:
            raise InputError(f"{listing}: no names; it lists the images of split {split!r}")
        images, twice, _ = find_files(folder / "JPEGImages", (".jpg",), "images")
        masks, again, _ = find_files(folder / "SegmentationClass", (".png",), "masks")
        return Listing(
            listing,
            {name: images[name] for name in wanted if name in images},
            {name: masks[name] for name in wanted if name in masks and name in images},
            tuple(double for double in (*twice, *again) if double[0] in wanted),
            tuple(name for name in wanted if name not in images),
        )
