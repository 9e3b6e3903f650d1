"""PASCAL VOC 2012, and the Semantic Boundaries Dataset (SBD, Hariharan et al., 2011).

SBD has masks of 9,118 more images of VOC 2012. With the 1,464 of VOC they are the list `trainaug`, the usual training
set of published scores. SBD stores one MATLAB file per image; here they are converted to PNGs.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final
from unicodedata import normalize

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.catalog.public import About, PublicDataset, SubmissionFormat
from meanshifter.data.download import Archive, fetch_and_unpack
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.data.layout import Listing, NoSuchSplitError, find_files
from meanshifter.data.reading import PassedOver
from meanshifter.errors import InputError, summarize_error
from meanshifter.utils.files import read_text, replace_folder, write_text

ARCHIVE: Final = Archive(
    url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    filename="benchmark.tgz",
    digest="md5:82b4d87ceb2ed10f6038a1cba92111cb",
    published_by="torchvision",
    folder="benchmark_RELEASE",
)
PLACES: Final = ("benchmark_RELEASE/dataset", "VOCaug/dataset", "VOCdevkit/VOCaug/dataset", "SBD")
"""Folders that may hold SBD's `cls`, `train.txt` and `val.txt`."""
IMAGES: Final = 10_582
MASKS: Final = "SegmentationClassAug"


def _find_sbd(root: Path) -> Path | None:
    return next((root / place for place in PLACES if (root / place / "cls").is_dir()), None)


def _write_trainaug(sbd: Path, voc: Path, label_space: LabelSpace) -> None:
    """Write SBD's masks as `SegmentationClassAug/NAME.png`, and the list `trainaug.txt`, to VOC's folder.

    The list has the images of VOC's train split and of SBD, except those of VOC's val split. Masks that VOC has in
    `SegmentationClass` are kept. Nothing is written if an InputError is raised.
    """
    lists = voc / "ImageSets/Segmentation"
    train, val = _names(lists / "train.txt"), _names(lists / "val.txt")
    names = sorted((_names(sbd / "train.txt") | _names(sbd / "val.txt") | train) - val)
    if len(names) != IMAGES:
        warnings.warn(
            f"{lists / 'trainaug.txt'}: {len(names):,} images, but the published list has {IMAGES:,}; the lists of "
            f"{sbd} or {lists} differ from the published ones",
            stacklevel=2,
        )
    own, made = voc / "SegmentationClass", voc / MASKS
    left = [name for name in names if not any((folder / f"{name}.png").is_file() for folder in (own, made))]
    if left and made.exists():
        raise InputError(
            f"{made}: exists but lacks {len(left):,} masks ({', '.join(left[:3])}); add them, or remove the folder to "
            "create it again"
        )
    if left:
        with replace_folder(made) as folder:
            for name in left:
                mask = Image.fromarray(_read_mat(sbd / "cls" / f"{name}.mat", label_space))
                mask.putpalette([channel for color in label_space.palette for channel in color])
                mask.save(folder / f"{name}.png")
    write_text(lists / "trainaug.txt", "".join(f"{name}\n" for name in names))


def _read_mat(path: Path, label_space: LabelSpace) -> npt.NDArray[np.uint8]:
    """The class numbers (H, W) in one of SBD's MATLAB files."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise InputError(
            f"{path}: reading MATLAB files needs the package scipy, which is not installed; pip install scipy"
        ) from error
    if not path.is_file():
        raise InputError(f"{path}: no such file, but SBD's list names it; unpack SBD completely")
    try:
        values: npt.NDArray[Any] = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # of zlib, struct and scipy, or the file has no such variable
        reason = summarize_error(error)
        raise InputError(f"{path}: holds no GTcls.Segmentation of SBD ({reason}); unpack SBD again") from error
    if values.ndim != 2 or values.dtype.kind not in "ui" or values.max(initial=0) >= label_space.num_classes:
        raise InputError(
            f"{path}: GTcls.Segmentation is {values.dtype} of shape {values.shape} up to {values.max(initial=0)}; "
            f"expected two dimensions and values from 0 to {label_space.num_classes - 1}"
        )
    return values.astype(np.uint8)


def _names(path: Path) -> set[str]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; trainaug needs the lists of SBD and of VOC's train and val")
    return set(read_text(path).split())


NAMES = """
background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person
pottedplant sheep sofa train tvmonitor
"""


def _palette_color(index: int) -> Color:
    """Color `index` of the VOC palette: bits 3k, 3k+1, 3k+2 of the index are bit 7-k of red, green and blue."""
    red = green = blue = 0
    for place in range(8):
        bits = index >> (3 * place)
        red |= (bits & 1) << (7 - place)
        green |= (bits >> 1 & 1) << (7 - place)
        blue |= (bits >> 2 & 1) << (7 - place)
    return red, green, blue


LABELS = LabelSpace(tuple(NAMES.split()), tuple(_palette_color(k) for k in range(21)))


class PascalVOC(PublicDataset):
    """`JPEGImages/ID.jpg`, `SegmentationClass/ID.png` (palette), `ImageSets/Segmentation/SPLIT.txt`; border 255.

    The split "trainaug" adds the masks of the Semantic Boundaries Dataset, in `SegmentationClassAug`; VOC's own masks
    take precedence, since those of SBD have no ignored border. "test" has no labels. Arguments and errors are those of
    PublicDataset.
    """

    space = LABELS
    splits: ClassVar = dict.fromkeys(("train", "val", "trainval", "trainaug", "test"), "ImageSets/Segmentation")
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
        # comp6: for models also trained on other data, such as ImageNet; packed as the development kit requires
        submission=SubmissionFormat(".tgz", "results/VOC2012/Segmentation/comp6_test_cls/", palette=True),
    )

    @classmethod
    def find(cls, folder: Path, split: str) -> Listing:
        """The files that the split's list names."""
        listing = folder / cls.splits[split] / f"{split}.txt"
        if not listing.is_file():
            made = f"; {cls.source(split)}" if split in cls.about.archives else ""
            raise NoSuchSplitError(f"{listing}: no such file; it lists the images of split {split!r}{made}")
        wanted = normalize("NFC", read_text(listing)).split()
        if not wanted:
            raise InputError(f"{listing}: empty; expected the names of the images of split {split!r}")
        images, twice, _ = find_files(folder / "JPEGImages", (".jpg",), "images")
        listed, passed = dict.fromkeys(wanted), PassedOver()
        if len(listed) < len(wanted):
            passed["names listed again"] += len(wanted) - len(listed)
        masks: dict[str, Path] = {}
        places: tuple[str, ...] = () if split in cls.withheld else ("SegmentationClass",)
        if split == "trainaug":
            places = tuple(place for place in (MASKS, *places) if (folder / place).is_dir())
        for place in places:
            drawn, again, _ = find_files(folder / place, (".png",), "masks")
            masks |= drawn
            twice += again
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
    def download(cls, root: str | Path, split: str | None = None) -> Path:
        """As PublicDataset; for "trainaug", download SBD if it is missing, and write its masks and the list.

        Raises:
            InputError: also if VOC itself is missing, scipy is not installed, SBD's files are missing or invalid, or
                an existing `SegmentationClassAug` lacks masks.
        """
        if split != "trainaug":
            return super().download(root, split)
        root = Path(root)
        voc = cls.place(root, split)
        if voc is None:
            raise InputError(
                f"{root / cls.splits[split]}: no such folder; download VOC 2012 first: `meanshifter data download "
                f"pascal_voc {root}`"
            )
        sbd = _find_sbd(root) or _find_sbd(fetch_and_unpack(ARCHIVE, root).parent)
        if sbd is None:
            raise InputError(f"{root / ARCHIVE.folder}: has no folder dataset/cls; remove it to download it again")
        _write_trainaug(sbd, voc, cls.space)
        return voc / MASKS
