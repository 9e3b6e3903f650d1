"""PASCAL VOC 2012 segmentation (Everingham et al., 2010): 20 object classes and background."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar
from unicodedata import normalize

from meanshifter.data.catalog.public import About, PublicDataset, SubmissionFormat
from meanshifter.data.catalog.sbd import ARCHIVE, MASKS, find_sbd, write_trainaug
from meanshifter.data.download import Archive, fetch_and_unpack
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.data.listing import Listing, NoSuchSplitError, find_files
from meanshifter.data.walk import PassedOver
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

    The split "trainaug" has the masks of the Semantic Boundaries Dataset besides, in `SegmentationClassAug`; where
    VOC has a mask of its own it counts, since those of SBD have no ignored border. "test" is images alone.
    Arguments and errors as PublicDataset.
    """

    space = LABELS
    splits: ClassVar = {name: name for name in ("train", "val", "trainval", "trainaug", "test")}
    inside = ("VOC2012", "VOCdevkit/VOC2012")
    withheld = frozenset({"test"})
    repeats: ClassVar = {"trainval": ("train", "val"), "trainaug": ("train",)}
    about = About(
        name="pascal_voc",
        title="PASCAL VOC 2012 segmentation",
        classes=LABELS.num_classes,
        images={"train": 1464, "val": 1449, "trainaug": 10582, "test": 1456},
        terms="research use; the images are Flickr's, under Flickr's terms",
        home="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/",
        archive=Archive(
            url="http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
            filename="VOCtrainval_11-May-2012.tar",
            digest="md5:6cd6e144f989b92b3379bac3b3de84fd",
            published_by="torchvision",
            folder="VOCdevkit",
        ),
        archives={"trainaug": ARCHIVE},
        # comp6: models that learned from other data too, such as ImageNet; packed as the development kit says
        submission=SubmissionFormat(".tgz", "results/VOC2012/Segmentation/comp6_test_cls/", palette=True),
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
            made = f"; {cls.source(split)}" if split in cls.about.archives else ""
            raise NoSuchSplitError(f"{listing}: no such file; it lists the images of split {split!r}{made}")
        wanted = normalize("NFC", read_text(listing)).split()
        if not wanted:
            raise InputError(f"{listing}: no names; it lists the images of split {split!r}")
        images, twice, _ = find_files(folder / "JPEGImages", (".jpg",), "images")
        listed, passed = dict.fromkeys(wanted), PassedOver()
        if len(listed) < len(wanted):
            passed["names listed again"] += len(wanted) - len(listed)
        masks = {} if split in cls.withheld else cls._masks(folder, split, twice)
        found = Listing(
            listing,
            {name: images[name] for name in listed if name in images},
            {name: masks[name] for name in listed if name in masks and name in images},
            tuple(double for double in twice if double[0] in listed),
            tuple(name for name in listed if name not in images),
            passed,
        )
        return replace(found, remedy=cls.source(split)) if split in cls.about.archives else found

    @classmethod
    def _masks(cls, folder: Path, split: str, twice: list[tuple[str, Path, Path]]) -> dict[str, Path]:
        """Name → mask; of two files of one name the second is added to `twice`."""
        masks: dict[str, Path] = {}
        for place in (MASKS, "SegmentationClass") if split == "trainaug" else ("SegmentationClass",):
            if split == "trainaug" and not (folder / place).is_dir():
                continue
            found, again, _ = find_files(folder / place, (".png",), "masks")
            masks |= found
            twice += again
        return masks

    @classmethod
    def download(cls, root: str | Path, split: str | None = None) -> Path:
        """As PublicDataset; for "trainaug" fetch SBD where it is not there, and write its masks and the list.

        Raises:
            InputError: also where VOC itself is not there, and as `write_trainaug`.
        """
        if split != "trainaug":
            return super().download(root, split)
        root = Path(root)
        marker = cls.marker(split)
        voc = cls.place(root, marker)
        if voc is None:
            raise InputError(
                f"{root / marker}: no such folder; VOC 2012 comes first: `meanshifter data download pascal_voc {root}`"
            )
        sbd = find_sbd(root) or find_sbd(fetch_and_unpack(ARCHIVE, root).parent)
        if sbd is None:
            raise InputError(f"{root / ARCHIVE.folder}: holds no dataset/cls; remove it to fetch it again")
        write_trainaug(sbd, voc, cls.space)
        return voc / MASKS
