"""What a data set is: numbered samples of an image and its labels, and the classes they speak of.

`Folder` reads a person's own images and masks; the public data sets are in `catalog`.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from meanshifter.data.label_files import folder_labels
from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.data.reading import IMAGE_SUFFIXES, MASK_SUFFIXES, Factor, read_mask, read_sample
from meanshifter.errors import InputError

SPLIT_FOLDERS: Final = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid"),
    "test": ("test", "testing"),
}
"""Split → what its folder may be called."""
VAL_SHARE: Final = 0.15
"""Of a folder without splits, about this share of the images is held out, chosen by a hash of the name."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its labels."""

    image: npt.NDArray[np.uint8]
    """(H, W, 3) uint8 RGB."""
    labels: Labels
    """(H, W) train ids, of the label space's dtype."""
    name: str
    """File name without extension, or what stands for it."""


class Dataset(ABC):
    """Samples 0 … len-1 of one split; negative indices count from the end, iteration ends after the last."""

    name: str
    split: str
    labels: LabelSpace

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """The samples' names."""

    def read_labels(self, index: int) -> Labels:
        """The labels of one sample alone."""
        return self[index].labels

    def read_reduced(self, index: int, factor: Factor) -> Sample:
        """One sample whose image will be resized as `factor` says, and may come smaller where that is not seen."""
        return self[index]

    def files(self, index: int) -> str:
        """What one sample is read from, for messages; its name where that is no file."""
        return self.names[index]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    name: str
    image: Path
    mask: Path


class FileDataset(Dataset):
    """Image files and mask files, read on access."""

    def __init__(self, name: str, split: str, labels: LabelSpace, pairs: Sequence[Pair]) -> None:
        self.name, self.split, self.labels = name, split, labels
        self._names = tuple(pair.name for pair in pairs)
        self.image_paths = tuple(pair.image for pair in pairs)
        self.mask_paths = tuple(pair.mask for pair in pairs)

    @property
    def names(self) -> Sequence[str]:
        """File names without extension, with the folders between, in reading order."""
        return self._names

    def __len__(self) -> int:
        return len(self.image_paths)

    def __getitem__(self, index: int) -> Sample:
        image, labels = read_sample(self.image_paths[index], self.mask_paths[index], self.labels)
        return Sample(image, labels, self._names[index])

    def read_reduced(self, index: int, factor: Factor) -> Sample:
        """One sample; a large JPEG that will be made small comes at a fraction of its size (see `read_sample`)."""
        files = self.image_paths[index], self.mask_paths[index]
        return Sample(*read_sample(*files, self.labels, factor=factor), self._names[index])

    def read_labels(self, index: int) -> Labels:
        """The labels of one sample, (H, W) train ids; the image is not opened."""
        return read_mask(self.mask_paths[index], self.labels)

    def files(self, index: int) -> str:
        """The image and its mask."""
        return f"{self.image_paths[index]} and {self.mask_paths[index]}"


class Folder(FileDataset):
    """A folder of images and masks whose names agree up to the extension.

    Three layouts: `images/` and `masks/`; the same with split folders inside (`images/train`, `masks/train`); or
    split folders outside (`train/images`, `train/masks`). `val` may be called validation or valid. Without split
    folders, "val" is about 15 % of the images and "train" the rest: each image's side is decided by a hash of its
    name, so that it stays there when others are added. "all" is everything.

    The classes are `labels`, or `classes` with `raw` or `colors`; otherwise what `labels.json` (the fields of
    LabelSpace) or `classes.txt` (a name per line) in the folder says; otherwise every mask is read once and its
    values become "class 0", "class 1", …, with 255 ignored.

    Args:
        root: the folder.
        split: "train", "val", "test" or "all".
        labels: the label space; excludes the three below.
        classes: names of train ids 0, 1, …
        raw: mask value → train id, or 255 for ignored.
        colors: RGB colour → train id, or 255 for ignored, for masks stored as colours.

    Raises:
        InputError: a folder or split that is missing or empty, images without masks or masks without images.
    """

    def __init__(
        self,
        root: str | Path | None,
        split: str = "val",
        *,
        labels: LabelSpace | None = None,
        classes: Sequence[str] | None = None,
        raw: Mapping[int, int] | None = None,
        colors: Mapping[Color, int] | None = None,
    ) -> None:
        if root is None:
            raise InputError("folder: no root; name the folder that holds images/ and masks/")
        folder = Path(root)
        pairs = _folder_pairs(folder, split)
        if labels is None:
            labels = folder_labels(folder, lambda: _all_masks(folder), classes, raw, colors)
        super().__init__("folder", split, labels, pairs)

    @classmethod
    def from_lists(
        cls, images: Sequence[str | Path], masks: Sequence[str | Path], labels: LabelSpace, *, split: str = "all"
    ) -> FileDataset:
        """Image number i belongs to mask number i, whatever they are called.

        Raises:
            InputError: lists of two lengths, or empty.
        """
        if len(images) != len(masks) or not images:
            raise InputError(
                f"folder: {len(images)} images and {len(masks)} masks; give as many of one as of the other"
            )
        pairs = [Pair(Path(a).stem, Path(a), Path(b)) for a, b in zip(images, masks, strict=True)]
        return FileDataset("folder", split, labels, pairs)


def _folder_pairs(folder: Path, split: str) -> list[Pair]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check the path")
    layouts = _split_layouts(folder)
    if layouts:
        if split == "all":
            return [pair for images, masks in layouts.values() for pair in pair_up(images, masks)]
        if split not in layouts:
            raise InputError(f"{folder}: no split {split!r}; it has {', '.join(layouts)}, and 'all'")
        return pair_up(*layouts[split])
    pairs = pair_up(folder / "images", folder / "masks")
    if split == "all":
        return pairs
    return _held_out(pairs, folder, split)


def _split_layouts(folder: Path) -> dict[str, tuple[Path, Path]]:
    """Split → (images, masks) where the folder has split folders."""
    layouts: dict[str, tuple[Path, Path]] = {}
    for split, spellings in SPLIT_FOLDERS.items():
        for word in spellings:
            inside = (folder / "images" / word, folder / "masks" / word)
            outside = (folder / word / "images", folder / word / "masks")
            for images, masks in (inside, outside):
                if images.is_dir():
                    layouts.setdefault(split, (images, masks))
    return layouts


def _held_out(pairs: list[Pair], folder: Path, split: str) -> list[Pair]:
    if split not in ("train", "val"):
        raise InputError(f"{folder}: no split {split!r}; without split folders there are 'train', 'val' and 'all'")
    if len(pairs) < 2:
        raise InputError(f"{folder}: 1 image; two are needed to train on one and score on another, or split 'all'")
    rank = {pair.name: _hash(pair.name) for pair in pairs}
    held = {name for name, value in rank.items() if value < VAL_SHARE} or {min(rank, key=rank.__getitem__)}
    if len(held) == len(pairs):
        held.remove(max(rank, key=rank.__getitem__))
    return [pair for pair in pairs if (pair.name in held) == (split == "val")]


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:6], "big") / 2**48


def _all_masks(folder: Path) -> list[Path]:
    """The masks of every split, so that all splits find the same classes."""
    return [pair.mask for pair in _folder_pairs(folder, "all")]


def find_files(folder: Path, suffixes: Sequence[str], what: str) -> dict[str, Path]:
    """Name (path below the folder, without extension) → file, sorted, hidden files left out.

    Raises:
        InputError: no such folder, no such files, or two files of one name.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; {what} are looked for there")
    files: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in suffixes or path.name.startswith(".") or not path.is_file():
            continue
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in files:
            raise InputError(f"{path}: {files[name].name} has the same name up to the extension; keep one of them")
        files[name] = path
    if not files:
        kinds = " ".join(suffix.lstrip(".") for suffix in suffixes)
        raise InputError(f"{folder}: no {what}; files of type {kinds} are looked for")
    return dict(sorted(files.items()))


def pair_up(images: Path, masks: Path) -> list[Pair]:
    """Images and masks of the same name, sorted by name.

    Raises:
        InputError: as `find_files`, and where one is without the other.
    """
    # JPEG masks are found here so that reading can say why they will not do
    return match(
        find_files(images, IMAGE_SUFFIXES, "images"),
        find_files(masks, (*MASK_SUFFIXES, ".jpg", ".jpeg"), "masks"),
        images.parent if images.parent == masks.parent else images,
    )


def match(images: Mapping[str, Path], masks: Mapping[str, Path], where: Path) -> list[Pair]:
    """The pairs of two listings of the same names.

    Raises:
        InputError: an image without a mask or a mask without an image: how many, and the first names.
    """
    alone = [
        (sorted(images.keys() - masks.keys()), "image", "mask"),
        (sorted(masks.keys() - images.keys()), "mask", "image"),
    ]
    lacks = [
        f"{len(names)} {kind}{'s'[: len(names) != 1]} without {other} ({', '.join(names[:3])}{more})"
        for names, kind, other in alone
        for more in [", …" if len(names) > 3 else ""]
        if names
    ]
    if lacks:
        raise InputError(f"{where}: {' and '.join(lacks)}; an image and its mask share their name up to the extension")
    return [Pair(name, images[name], masks[name]) for name in images]
