"""What a data set is: numbered samples of an image and its labels, and the classes they speak of.

`Folder` reads a person's own images and masks; the public data sets are in `catalog`.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from meanshifter.data.decoding import Factor
from meanshifter.data.label_files import GIVEN, folder_labels
from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.data.layout import SPLIT_FOLDERS, USUAL, FolderLayout
from meanshifter.data.listing import Listing, Pair, list_folders
from meanshifter.data.reading import IMAGE_SUFFIXES, read_mask, read_sample
from meanshifter.data.walk import PassedOver, files_below, is_hidden
from meanshifter.errors import InputError

VAL_SHARE: Final = 0.15
"""Of a folder without splits, about this share of the images is held out, chosen by a hash of the name; see
`FolderLayout.val_share`."""


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
    named_by: str = ""
    """Where the classes are from, such as "classes.txt"; empty: the data set itself says so."""
    labeled: bool = True
    """False: the labels are withheld, as those of a test split are; the images can be predicted, not scored."""

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

    def pair(self, index: int) -> Pair | None:
        """The files of one sample; None where it is generated."""
        return None

    def read_reduced(self, index: int, factor: Factor) -> Sample:
        """One sample whose image will be resized as `factor` says, and may come smaller where that is not seen."""
        return self[index]

    def files(self, index: int) -> str:
        """What one sample is read from, for messages; its name where that is no file."""
        return self.names[index]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


class FileDataset(Dataset):
    """Image files and mask files, read on access; or images by name alone, of which no sample can be read."""

    def __init__(self, name: str, split: str, labels: LabelSpace, pairs: Sequence[Pair] | Mapping[str, Path]) -> None:
        self.name, self.split, self.labels = name, split, labels
        if isinstance(pairs, Mapping):
            self.labeled = False
            self._names, self.image_paths = tuple(pairs), tuple(pairs.values())
            self.mask_paths: tuple[Path, ...] = ()
        else:
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
        image, labels = read_sample(self.image_paths[index], self._mask(index), self.labels)
        return Sample(image, labels, self._names[index])

    def read_reduced(self, index: int, factor: Factor) -> Sample:
        """One sample; a large JPEG that will be made small comes at a fraction of its size (see `read_sample`)."""
        files = self.image_paths[index], self._mask(index)
        return Sample(*read_sample(*files, self.labels, factor=factor), self._names[index])

    def pair(self, index: int) -> Pair:
        """The files of one sample."""
        return Pair(self._names[index], self.image_paths[index], self._mask(index))

    def read_labels(self, index: int) -> Labels:
        """The labels of one sample, (H, W) train ids; the image is not opened."""
        return read_mask(self._mask(index), self.labels)

    def files(self, index: int) -> str:
        """The image and its mask."""
        return f"{self.image_paths[index]} and {self._mask(index)}"

    def _mask(self, index: int) -> Path:
        if not self.labeled:
            raise unlabeled(self.name, self.split)
        return self.mask_paths[index]


def unlabeled(name: str, split: str) -> InputError:
    """What is said where the labels of a split without any are asked for."""
    return InputError(
        f"{name}: split {split!r} has no labels to train or score on, only images; "
        f"`meanshifter predict MODEL {name} --root DIR --split {split}` labels them"
    )


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
        layout: other folder names, a suffix of the masks' names, another share for "val".

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
        layout: FolderLayout = USUAL,
    ) -> None:
        if root is None:
            raise InputError("folder: no root; name the folder that holds images/ and masks/")
        folder = Path(root)
        pairs = _folder_pairs(folder, split, layout)
        named_by = GIVEN
        if labels is None:
            labels, named_by = folder_labels(folder, lambda: _all_masks(folder, layout), classes, raw, colors)
        named = (
            split
            if layout.val_share is None or split not in ("train", "val")
            else f"{split}, {layout.val_share:g} held out"
        )
        super().__init__("folder", named, labels, pairs)
        self.named_by = named_by

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


def _folder_pairs(folder: Path, split: str, layout: FolderLayout) -> list[Pair]:
    listings = folder_listings(folder, layout)
    if split == "all":
        return [pair for listing in listings.values() for pair in listing.pairs()]
    divided = divided_split(listings, folder, layout)
    if divided == "all" or (divided is not None and split in ("train", "val")):
        return held_out(listings[divided].pairs(), folder, split, layout.val_share)
    if split not in listings:
        others = [f"--data.{split}_split {other}, or --split {other}" for other in ("test", "val") if other in listings]
        share = " to hold out a part of train: --data.val_share 0.2" if split == "val" and "train" in listings else ""
        hints = "; ".join(filter(None, [f"to take another: {others[0]}" if others else "", share.strip()]))
        raise InputError(
            f"{folder}: no split {split!r}; it has {', '.join(listings)}, and 'all'{hints and '; '}{hints}"
        )
    return listings[split].pairs()


def folder_listings(folder: Path, layout: FolderLayout = USUAL) -> dict[str, Listing]:
    """Split → its files; of a folder without split folders, "all".

    Raises:
        InputError: a folder that is missing, empty or laid out in another way.
    """
    suffix = "" if layout.mask_suffix is None else layout.mask_suffix
    found = layout.folders(folder)
    listings = {split: list_folders(*folders, suffix) for split, folders in found.items()}
    beside = _beside([images for split, (images, _) in found.items() if split != "all"])
    return {split: replace(listing, passed=listing.passed + beside) for split, listing in listings.items()}


def _beside(splits: Sequence[Path]) -> PassedOver:
    """What lies among the split folders of the images and is in none of them."""
    passed = PassedOver()
    parents = {path.parent for path in splits if any(path.name in words for words in SPLIT_FOLDERS.values())}
    for path in (path for parent in parents for path in parent.iterdir() if path not in splits):
        if path.is_dir() and not is_hidden(path.name) and next(files_below(path, IMAGE_SUFFIXES, PassedOver()), None):
            passed["folders of images that are no split"] += 1
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            passed["images beside the folders of splits"] += 1
    return passed


def divided_split(listings: Mapping[str, Listing], folder: Path, layout: FolderLayout) -> str | None:
    """Which listing is divided into "train" and "val" by names: all, train where a share is to be held out, or none.

    Raises:
        InputError: a share to be held out beside a folder of the split "val".
    """
    if "all" in listings:
        return "all"
    if layout.val_share is None:
        return None
    if "val" in listings:
        raise InputError(f"data.val_share: {layout.val_share}, but {folder} has a folder for 'val'; leave it out")
    return "train" if "train" in listings else None


def held_out(pairs: list[Pair], folder: Path, split: str, share: float | None = None) -> list[Pair]:
    """Of a folder without a split "val", the pairs of "val" or "train": about `share` of them by a hash of the name.

    Raises:
        InputError: another split, or a single pair.
    """
    if split not in ("train", "val"):
        raise InputError(f"{folder}: no split {split!r}; without split folders there are 'train', 'val' and 'all'")
    if len(pairs) < 2:
        raise InputError(f"{folder}: 1 image; two are needed to train on one and score on another, or split 'all'")
    bound = VAL_SHARE if share is None else share
    rank = {pair.name: _hash(pair.name) for pair in pairs}
    held = {name for name, value in rank.items() if value < bound} or {min(rank, key=rank.__getitem__)}
    if len(held) == len(pairs):
        held.remove(max(rank, key=rank.__getitem__))
    return [pair for pair in pairs if (pair.name in held) == (split == "val")]


def _hash(name: str) -> float:
    """A number in [0, 1) that depends on the name alone."""
    return int.from_bytes(hashlib.sha256(os.fsencode(name)).digest()[:6], "big") / 2**48


def _all_masks(folder: Path, layout: FolderLayout) -> list[Path]:
    """The masks of every split, so that all splits find the same classes."""
    return [pair.mask for pair in _folder_pairs(folder, "all", layout)]
