"""Extra training data: other folders of the same classes, such as pseudo labels, and pixels ignored by confidence.

Glossary: H W pixels.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, chain, zip_longest
from pathlib import Path
from typing import Literal

import numpy as np

from meanshifter.data.datasets import Dataset, Folder, Sample, folder_listings
from meanshifter.data.images import Factor, decode_mask
from meanshifter.data.label_files import labels_of_files
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.data.layout import USUAL, Pair
from meanshifter.data.masks import indices
from meanshifter.data.predictions import RECORD
from meanshifter.errors import InputError

Measure = Literal["margin", "probability"]
"""A confidence that `meanshifter predict` writes: the winner's probability, or its margin to the second class."""


class Concatenated(Dataset):
    """The samples of several datasets, one after the other, with the name and classes of the first."""

    def __init__(self, datasets: Sequence[Dataset]) -> None:
        first = datasets[0]
        self.name, self.split, self.label_space, self.named_by = (
            first.name,
            first.split,
            first.label_space,
            first.named_by,
        )
        self._datasets = tuple(datasets)
        self._starts = list(accumulate(map(len, datasets), initial=0))

    @property
    def names(self) -> Sequence[str]:
        """Names of the samples; two datasets may use the same name."""
        return list(chain.from_iterable(dataset.names for dataset in self._datasets))

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        dataset, place = self._at(index)
        return dataset[place]

    def read_reduced(self, index: int, factor: Factor) -> Sample:
        """Read one sample as its dataset does."""
        dataset, place = self._at(index)
        return dataset.read_reduced(place, factor)

    def read_labels(self, index: int) -> Labels:
        """Read the labels of one sample as its dataset does."""
        dataset, place = self._at(index)
        return dataset.read_labels(place)

    def pair(self, index: int) -> Pair | None:
        """The files of one sample; None if it is generated."""
        dataset, place = self._at(index)
        return dataset.pair(place)

    def files(self, index: int) -> str:
        """The files of one sample, for messages."""
        dataset, place = self._at(index)
        return dataset.files(place)

    def _at(self, index: int) -> tuple[Dataset, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        index %= len(self)
        part = bisect_right(self._starts, index) - 1
        return self._datasets[part], index - self._starts[part]


class Confident(Concatenated):
    """A dataset whose pixels of low confidence are ignored, as are those that it ignores itself.

    The confidence of the sample NAME is `DIR/confidence/MEASURE/NAME.png`, 16-bit gray of which 65535 is 1.

    Args:
        dataset: the dataset.
        folder: DIR.
        measure: what the files hold.
        least: pixels of less confidence are ignored; 0 ignores none and reads no files.
        ignore: the ignored train id, which replaces that of the dataset.

    Raises:
        InputError: a sample has no confidence file.
    """

    def __init__(self, dataset: Dataset, folder: Path, measure: Measure, least: float, *, ignore: int) -> None:
        super().__init__([dataset])
        self._own, self._least = dataset.label_space.ignore, least
        self.label_space = _with_ignore(dataset.label_space, ignore)
        self._maps: list[Path] = []
        if least > 0:
            self._maps = [folder / "confidence" / measure / f"{name}.png" for name in dataset.names]
            if (first := next((path for path in self._maps if not path.is_file()), None)) is not None:
                raise InputError(
                    f"{first}: missing, but data.extra_min_confidence is {least:g}; predict again with --confidence "
                    f"{measure}, or set it to 0 to train on all pixels"
                )

    def __getitem__(self, index: int) -> Sample:
        return self._ignoring(index, super().__getitem__(index))

    def read_reduced(self, index: int, factor: Factor) -> Sample:
        """Read one sample; its labels have their full size."""
        return self._ignoring(index, super().read_reduced(index, factor))

    def read_labels(self, index: int) -> Labels:
        """Read the labels of one sample (H, W), with pixels of low confidence ignored."""
        return self._labels(index, super().read_labels(index))

    def _ignoring(self, index: int, sample: Sample) -> Sample:
        return Sample(sample.image, self._labels(index, sample.labels), sample.name)

    def _labels(self, index: int, labels: Labels) -> Labels:
        ignore = self.label_space.ignore
        if not self._maps and self._own == ignore:
            return labels
        ignored = labels == self._own
        if self._maps:
            ignored |= read_confidence(self._maps[index], labels.shape) < self._least * 65535
        out: Labels = np.where(ignored, labels.dtype.type(ignore), labels)
        return out


def _with_ignore(space: LabelSpace, ignore: int) -> LabelSpace:
    """The classes of `space` as train ids, with another ignored one."""
    return LabelSpace(space.names, space.palette, ignore=ignore)


def read_confidence(path: Path, shape: tuple[int, ...]) -> Labels:
    """Read a confidence map of the given shape (H, W), 16-bit gray of which 65535 is 1.

    Raises:
        InputError: the file cannot be read, does not have 16 bits, or has another shape.
    """
    values = indices(decode_mask(path).picture, path)
    if values.dtype != np.uint16:
        raise InputError(f"{path}: not 16-bit gray, as `meanshifter predict --confidence` writes; predict again")
    if values.shape != shape:
        found, wanted = (f"{side[1]}×{side[0]}" for side in (values.shape, shape))
        raise InputError(f"{path}: {found}, but its label map is {wanted} (width×height); predict again")
    return values


def open_extra(
    folders: Sequence[str], label_space: LabelSpace, *, measure: Measure = "margin", least: float = 0.0
) -> list[Dataset]:
    """Open folders of extra training data: their split train, or everything if they have no split folders.

    Args:
        folders: folders of images/ and masks/, or of label maps that `meanshifter predict --confidence` wrote.
        label_space: the classes of the training data, which those of the folders must equal.
        measure: the confidence that `least` refers to.
        least: pixels of less confidence are ignored.

    Raises:
        InputError: as `Folder` and `Confident`; or the classes differ, or are unknown.
    """
    return [_open_folder(Path(folder), label_space, measure, least) for folder in folders]


def _open_folder(folder: Path, label_space: LabelSpace, measure: Measure, least: float) -> Dataset:
    if not (folder / RECORD).is_file() and not USUAL.fits(folder):
        raise InputError(
            f"data.extra_train: {folder} has neither images/ and masks/ nor {RECORD}; `meanshifter predict MODEL "
            f"IMAGES --out {folder} --confidence {measure}` writes it, without --resume"
        )
    split = "train" if "all" not in folder_listings(folder) else "all"
    if labels_of_files(folder) is not None:
        own = None
    elif label_space.raw is None and label_space.colors is None:
        own = label_space  # masks of train ids, which need no explanation
    else:
        raise InputError(
            f"{folder}: no labels.json or classes.txt, and the training data map mask values to classes; copy their "
            "labels.json if the masks hold the same values, else write one"
        )
    dataset = Folder(folder, split, label_space=own)
    _check_same(folder, dataset.label_space.names, label_space.names)
    return Confident(dataset, folder, measure, least, ignore=label_space.ignore)


def shared_images(dataset: Dataset, other: Dataset) -> list[Path]:
    """The image files of `dataset` that `other` has too."""
    theirs = {path.resolve() for path in _image_files(other)}
    names = {path.name for path in theirs}
    return [path for path in _image_files(dataset) if path.name in names and path.resolve() in theirs]


def _image_files(dataset: Dataset) -> list[Path]:
    """The image files of a dataset; none of a generated one."""
    pairs = (dataset.pair(index) for index in range(len(dataset)))
    return [pair.image for pair in pairs if pair is not None]


def _check_same(folder: Path, names: Sequence[str], expected: Sequence[str]) -> None:
    for k, (own, other) in enumerate(zip_longest(names, expected)):
        if own != other:
            said = [f"class {k} is {name!r}" if name is not None else f"there is no class {k}" for name in (own, other)]
            raise InputError(
                f"data.extra_train: in {folder} {said[0]}, but in the training data {said[1]}; give both the same "
                "classes in the same order"
            )
