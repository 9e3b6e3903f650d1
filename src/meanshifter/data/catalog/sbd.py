"""The Semantic Boundaries Dataset (Hariharan et al., 2011), which gives 9,118 more images of VOC 2012 a mask.

With VOC's own 1,464 they are the list `trainaug` on which scores are reported. SBD stores a MATLAB file per image; here
they become PNGs that the data set reads.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.download import Archive
from meanshifter.data.labels import LabelSpace
from meanshifter.documents import read_text
from meanshifter.errors import InputError
from meanshifter.files import folder_beside, write_text

ARCHIVE: Final = Archive(
    url="https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
    filename="benchmark.tgz",
    digest="md5:82b4d87ceb2ed10f6038a1cba92111cb",
    published_by="torchvision",
    folder="benchmark_RELEASE",
)
PLACES: Final = ("benchmark_RELEASE/dataset", "VOCaug/dataset", "VOCdevkit/VOCaug/dataset", "SBD")
"""Where its `cls`, `train.txt` and `val.txt` may lie below a folder."""
IMAGES: Final = 10_582
MASKS: Final = "SegmentationClassAug"


def find_sbd(root: Path) -> Path | None:
    """The folder that holds `cls`, `train.txt` and `val.txt`; None where there is none."""
    return next((root / place for place in PLACES if (root / place / "cls").is_dir()), None)


def write_trainaug(sbd: Path, voc: Path, labels: LabelSpace) -> None:
    """Write SBD's masks as `SegmentationClassAug/NAME.png`, and the list `trainaug.txt`, in VOC's folder.

    The list has the images of VOC's train and those of SBD, but those of VOC's val. Images that VOC has masks of keep
    these, in `SegmentationClass`.

    Args:
        sbd: as `find_sbd` returns.
        voc: the folder `VOC2012`.
        labels: values and palette of the masks.

    Raises:
        InputError: no scipy, a list or mask that is missing or cannot be read, or a `SegmentationClassAug` that lacks
            masks. Nothing is written then.
    """
    lists = voc / "ImageSets/Segmentation"
    train, val = _names(lists / "train.txt"), _names(lists / "val.txt")
    names = sorted((_names(sbd / "train.txt") | _names(sbd / "val.txt") | train) - val)
    if len(names) != IMAGES:
        warnings.warn(
            f"{lists / 'trainaug.txt'}: {len(names):,} images, but the list of the field has {IMAGES:,}; the lists of "
            f"{sbd} or of {lists} are not the published ones",
            stacklevel=2,
        )
    own, made = voc / "SegmentationClass", voc / MASKS
    left = [name for name in names if not any((folder / f"{name}.png").is_file() for folder in (own, made))]
    if left and made.exists():
        raise InputError(
            f"{made}: exists and lacks {len(left):,} masks ({', '.join(left[:3])}); add them, or remove the folder to "
            "have it made"
        )
    if left:
        with folder_beside(made) as folder:
            for name in left:
                mask = Image.fromarray(read_mat(sbd / "cls" / f"{name}.mat", labels))
                mask.putpalette([channel for color in labels.palette for channel in color])
                mask.save(folder / f"{name}.png")
    write_text(lists / "trainaug.txt", "".join(f"{name}\n" for name in names))


def read_mat(path: Path, labels: LabelSpace) -> npt.NDArray[np.uint8]:
    """The class numbers (H, W) that one of SBD's MATLAB files holds.

    Raises:
        InputError: no scipy, no such file, or another content.
    """
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise InputError(
            f"{path}: reading MATLAB files needs the package scipy, which is not installed; pip install scipy"
        ) from error
    if not path.is_file():
        raise InputError(f"{path}: no such file; its list names it, so unpack SBD whole")
    try:
        values: npt.NDArray[Any] = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
    except Exception as error:  # of zlib, struct and scipy, and where there is another content
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: holds no GTcls.Segmentation of SBD ({reason}); unpack SBD again") from error
    if values.ndim != 2 or values.dtype.kind not in "ui" or values.max(initial=0) >= labels.num_classes:
        raise InputError(
            f"{path}: GTcls.Segmentation is {values.dtype} of shape {values.shape} up to {values.max(initial=0)}; it "
            f"has two dimensions and the values 0 to {labels.num_classes - 1}"
        )
    return values.astype(np.uint8)


def _names(path: Path) -> set[str]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; trainaug is made of the lists of SBD and of VOC's train and val")
    return set(read_text(path).split())
