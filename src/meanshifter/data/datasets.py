"""Datasets: indexed samples of an image and its labels, with a label space.

`Folder` reads your own images and masks; the public datasets are in `catalog`.
"""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from meanshifter.data.images import Factor
from meanshifter.data.label_files import GIVEN, folder_labels
from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.data.layout import SPLIT_FOLDERS, USUAL, FolderLayout, Listing, Pair, list_folders
from meanshifter.data.predictions import predictions_in
from meanshifter.data.reading import IMAGE_SUFFIXES, PassedOver, files_below, is_hidden, read_mask, read_sample
from meanshifter.errors import InputError

VAL_SHARE: Final = 0.15
"""Share of the images that a folder without splits holds out; a hash of the name decides. See
`FolderLayout.val_share`."""


class Sample(tuple[npt.NDArray[np.uint8], Labels]):
    """An image (H, W, 3) uint8 RGB and its labels (H, W), `image, labels = sample`, with a name."""

    name: str
    """File name without extension, or an equivalent."""

    def __new__(cls, image: npt.NDArray[np.uint8], labels: Labels, name: str) -> Self:
        """A sample from an image (H, W, 3), labels (H, W) of the label space's dtype, and a name."""
        sample = super().__new__(cls, (image, labels))
        sample.name = name
        return sample

    def __getnewargs__(self) -> tuple[Any, ...]:  # for copy and pickle
        return (*self, self.name)

    __eq__, __hash__ = object.__eq__, object.__hash__  # the comparison of arrays is not a single bool

    @property
    def image(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB."""
        return self[0]

    @property
    def labels(self) -> Labels:
        """(H, W) train ids, of the label space's dtype."""
        return self[1]


class Dataset(ABC):
    """Samples 0 … len-1 of one split; negative indices count from the end."""

    name: str
    split: str
    label_space: LabelSpace
    named_by: str = ""
    """Where the classes come from, such as "classes.txt"; empty if the dataset defines them."""
    labeled: bool = True
    """False if the labels are withheld, as for test splits: the images can be predicted but not scored."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Sample: ...

    @property
    @abstractmethod
    def names(self) -> Sequence[str]:
        """Names of the samples."""

    def read_labels(self, index: int) -> Labels:
        """Read the labels of one sample."""
        return self[index].labels

    def pair(self, index: int) -> Pair | None:
        """The files of one sample; None if it is generated."""
        return None

    def read_reduced(self, index: int, factor: Factor) -> Sample:
        """Read one sample; its image may be smaller if it will be resized by `factor` without a visible difference."""
        return self[index]

    def files(self, index: int) -> str:
        """The files of one sample, for messages; its name if it has none."""
        return self.names[index]

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))


class FileDataset(Dataset):
    """Image and mask files, read on access; or unlabeled images by name, whose samples cannot be read."""

    def __init__(
        self, name: str, split: str, label_space: LabelSpace, pairs: Sequence[Pair] | Mapping[str, Path]
    ) -> None:
        self.name, self.split, self.label_space = name, split, label_space
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
        """File names without extension, including folders."""
        return self._names

    def __len__(self) -> int:
        return len(self.image_paths)

    def __getitem__(self, index: int) -> Sample:
        image, labels = read_sample(self.image_paths[index], self._mask(index), self.label_space)
        return Sample(image, labels, self._names[index])

    def read_reduced(self, index: int, factor: Factor) -> Sample:
        """Read one sample; a JPEG may be decoded at a fraction of its size (see `read_sample`)."""
        files = self.image_paths[index], self._mask(index)
        return Sample(*read_sample(*files, self.label_space, factor=factor), self._names[index])

    def pair(self, index: int) -> Pair:
        """The files of one sample."""
        return Pair(self._names[index], self.image_paths[index], self._mask(index))

    def read_labels(self, index: int) -> Labels:
        """Read the labels of one sample, (H, W) train ids, without opening the image."""
        return read_mask(self._mask(index), self.label_space)

    def files(self, index: int) -> str:
        """The image and its mask."""
        return f"{self.image_paths[index]} and {self._mask(index)}"

    def _mask(self, index: int) -> Path:
        if not self.labeled:
            raise unlabeled(self.name, self.split)
        return self.mask_paths[index]


def unlabeled(name: str, split: str) -> InputError:
    """The error about a split without labels."""
    return InputError(
        f"{name}: split {split!r} has no labels to train or score on, only images; "
        f"`meanshifter predict MODEL {name} --root DIR --split {split}` labels them"
    )


class Folder(FileDataset):
    """A folder of images and masks with the same names up to the extension.

    There are three layouts: `images/` and `masks/`; the same with split folders inside (`images/train`,
    `masks/train`); and split folders outside (`train/images`, `train/masks`). `val` may also be called validation or
    valid. Without split folders, "val" is about 15 % of the images and "train" the rest; a hash of its name assigns
    each image, so that adding images does not move others. "all" is everything.

    The classes are `label_space`, or `classes` with `raw` or `colors`; otherwise those of `labels.json` (the fields of
    LabelSpace) or `classes.txt` (one name per line) in the folder; otherwise every mask is read once and its values
    become "class 0", "class 1", …, with 255 ignored.

    Args:
        root: the folder.
        split: "train", "val", "test" or "all".
        label_space: excludes the next three.
        classes: names of train ids 0, 1, …
        raw: mask value → train id, or 255 for ignored.
        colors: RGB color → train id, or 255 for ignored, for masks stored as colors.
        layout: other folder names, a suffix of mask names, another share for "val".

    Raises:
        InputError: a folder or split is missing or empty, an image has no mask, or a mask has no image.
    """

    def __init__(
        self,
        root: str | Path | None,
        split: str = "val",
        *,
        label_space: LabelSpace | None = None,
        classes: Sequence[str] | None = None,
        raw: Mapping[int, int] | None = None,
        colors: Mapping[Color, int] | None = None,
        layout: FolderLayout = USUAL,
    ) -> None:
        if root is None:
            raise InputError("folder: no root given; expected the folder that holds images/ and masks/")
        folder = Path(root)
        pairs = _folder_pairs(folder, split, layout)
        named_by = GIVEN
        if label_space is None:

            def masks() -> list[Path]:  # of all splits, so that every split gets the same classes
                return [pair.mask for pair in _folder_pairs(folder, "all", layout)]

            label_space, named_by = folder_labels(folder, masks, classes, raw, colors)
        if layout.val_share is not None and split in ("train", "val"):
            split = f"{split}, {layout.val_share:g} held out"
        super().__init__("folder", split, label_space, pairs)
        self.named_by = named_by

    @classmethod
    def from_lists(
        cls, images: Sequence[str | Path], masks: Sequence[str | Path], label_space: LabelSpace, *, split: str = "all"
    ) -> FileDataset:
        """A dataset in which mask i belongs to image i, whatever their names.

        Raises:
            InputError: the lists are empty or differ in length.
        """
        if len(images) != len(masks) or not images:
            raise InputError(f"folder: {len(images)} images and {len(masks)} masks; expected one mask per image")
        pairs = [Pair(Path(a).stem, Path(a), Path(b)) for a, b in zip(images, masks, strict=True)]
        return FileDataset("folder", split, label_space, pairs)


def _folder_pairs(folder: Path, split: str, layout: FolderLayout) -> list[Pair]:
    listings = folder_listings(folder, layout)
    if split == "all":
        return [pair for listing in listings.values() for pair in listing.pairs()]
    divided = divided_split(listings, folder, layout)
    if divided == "all" or (divided is not None and split in ("train", "val")):
        return held_out(listings[divided].pairs(), folder, split, layout.val_share)
    if split not in listings:
        others = [f"--data.{split}_split {other}, or --split {other}" for other in ("test", "val") if other in listings]
        hints = [f"; to use another split: {others[0]}"] if others else []
        if split == "val" and "train" in listings:
            hints.append("; to hold out part of train: --data.val_share 0.2")
        raise InputError(f"{folder}: no split {split!r}; it has {', '.join(listings)}, and 'all'{''.join(hints)}")
    return listings[split].pairs()


def folder_listings(folder: Path, layout: FolderLayout = USUAL) -> dict[str, Listing]:
    """Split → its files; "all" for a folder without split folders, and for the label maps of a model."""
    if layout.is_usual and (predicted := predictions_in(folder)) is not None:
        return {"all": predicted.listing(folder)}
    suffix = "" if layout.mask_suffix is None else layout.mask_suffix
    found = layout.folders(folder)
    listings = {split: list_folders(*folders, suffix) for split, folders in found.items()}
    stray = _stray_images([images for split, (images, _) in found.items() if split != "all"])
    return {split: replace(listing, passed=listing.passed + stray) for split, listing in listings.items()}


def _stray_images(splits: Sequence[Path]) -> PassedOver:
    """Images and folders of images next to the split folders, which belong to no split."""
    passed = PassedOver()
    parents = {path.parent for path in splits if any(path.name in words for words in SPLIT_FOLDERS.values())}
    for path in (path for parent in parents for path in parent.iterdir() if path not in splits):
        if path.is_dir() and not is_hidden(path.name) and next(files_below(path, IMAGE_SUFFIXES, PassedOver()), None):
            passed["image folders that are not a split"] += 1
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            passed["images next to the split folders"] += 1
    return passed


def divided_split(listings: Mapping[str, Listing], folder: Path, layout: FolderLayout) -> str | None:
    """The listing that is divided into "train" and "val" by names: "all", or "train" with a `val_share`; else None."""
    if "all" in listings:
        return "all"
    if layout.val_share is None:
        return None
    if "val" in listings:
        raise InputError(f"data.val_share: {layout.val_share}, but {folder} has a folder for 'val'; omit val_share")
    return "train" if "train" in listings else None


def held_out(pairs: list[Pair], folder: Path, split: str, share: float | None = None) -> list[Pair]:
    """The pairs of "val" or "train" if there is no "val" folder: "val" gets about `share`, by a hash of the name.

    Raises:
        InputError: another split, or a single pair.
    """
    if split not in ("train", "val"):
        raise InputError(f"{folder}: no split {split!r}; without split folders, it has 'train', 'val' and 'all'")
    if len(pairs) < 2:
        raise InputError(f"{folder}: 1 image; at least 2 are needed to hold one out for validation; add images")
    bound = VAL_SHARE if share is None else share
    digests = {pair.name: hashlib.sha256(os.fsencode(pair.name)).digest() for pair in pairs}
    rank = {name: int.from_bytes(digest[:6], "big") / 2**48 for name, digest in digests.items()}  # in [0, 1)
    held = {name for name, value in rank.items() if value < bound} or {min(rank, key=rank.__getitem__)}
    if len(held) == len(pairs):
        held.remove(max(rank, key=rank.__getitem__))
    return [pair for pair in pairs if (pair.name in held) == (split == "val")]


class Selection(Dataset):
    """Samples of another dataset, at the given places."""

    def __init__(self, dataset: Dataset, places: Sequence[int]) -> None:
        self.name, self.split, self.label_space = dataset.name, dataset.split, dataset.label_space
        self.named_by = dataset.named_by
        self._dataset, self._places = dataset, places

    @property
    def names(self) -> Sequence[str]:
        """The names of the selected samples."""
        names = self._dataset.names
        return [names[place] for place in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._places[index]]

    def read_reduced(self, index: int, factor: Factor) -> Sample:
        """Read one sample as the dataset does."""
        return self._dataset.read_reduced(self._places[index], factor)

    def read_labels(self, index: int) -> Labels:
        """Read the labels of one sample as the dataset does."""
        return self._dataset.read_labels(self._places[index])

    def pair(self, index: int) -> Pair | None:
        """The files of one sample; None if it is generated."""
        return self._dataset.pair(self._places[index])

    def files(self, index: int) -> str:
        """The files of one sample, for messages."""
        return self._dataset.files(self._places[index])


class Subset(Selection):
    """The samples of `dataset` whose names match a shell pattern, or with `matching=False` those that do not.

    Raises:
        InputError: the subset would be empty, or everything.
    """

    def __init__(self, dataset: Dataset, pattern: str, *, matching: bool) -> None:
        super().__init__(dataset, [i for i, name in enumerate(dataset.names) if fnmatchcase(name, pattern) == matching])
        self.split = f"{dataset.split} {'like' if matching else 'but'} {pattern}"
        if len(self) in (0, len(dataset)):
            some = "none" if (len(self) == 0) == matching else "all"
            raise InputError(
                f"{self.name} {dataset.split}: {some} of its {len(dataset)} names, such as {dataset.names[0]!r}, "
                f"match {pattern!r}; give a pattern that matches some of them"
            )


class Cached(Selection):
    """A dataset that keeps the first samples it decodes, as many as fit into `budget` bytes.

    Samples are never evicted: training reads all samples in turn, so the oldest would be evicted just before it is
    needed. The arrays are read-only, since they are returned again.
    """

    def __init__(self, dataset: Dataset, budget: int) -> None:
        super().__init__(dataset, range(len(dataset)))
        self._left = budget
        self._kept: dict[int, Sample] = {}

    def __getitem__(self, index: int) -> Sample:
        return self.read_reduced(index, lambda _height, _width: 1.0)

    def read_reduced(self, index: int, factor: Factor) -> Sample:
        """The cached sample in full size; else that of the dataset, which is cached if it is not reduced."""
        place = self._places[index]
        if place not in self._kept:
            sample = self._dataset.read_reduced(place, factor)
            size = sample.image.nbytes + sample.labels.nbytes
            if size > self._left or sample.image.shape[:2] != sample.labels.shape:
                return sample
            self._left -= size
            sample.image.flags.writeable = sample.labels.flags.writeable = False
            self._kept[place] = sample
        return self._kept[place]

    def read_labels(self, index: int) -> Labels:
        """The cached labels of one sample, else those of the dataset."""
        kept = self._kept.get(self._places[index])
        return super().read_labels(index) if kept is None else kept.labels
