"""The part of a data set whose names match a pattern, or the rest of it."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from meanshifter.data.datasets import Dataset, Sample
from meanshifter.data.decoding import Factor
from meanshifter.data.labels import Labels
from meanshifter.data.listing import Pair
from meanshifter.errors import InputError


class Subset(Dataset):
    """The samples of `dataset` whose names match the shell pattern, or with `matching=False` those that do not.

    Raises:
        InputError: there are none.
    """

    def __init__(self, dataset: Dataset, pattern: str, *, matching: bool) -> None:
        self.name, self.labels, self.named_by = dataset.name, dataset.labels, dataset.named_by
        self.split = f"{dataset.split} {'like' if matching else 'but'} {pattern}"
        self._dataset = dataset
        self._places = [i for i, name in enumerate(dataset.names) if fnmatchcase(name, pattern) == matching]
        if len(self._places) in (0, len(dataset)):
            some = "none" if (len(self._places) == 0) == matching else "all"
            raise InputError(
                f"{self.name} {dataset.split}: {some} of its {len(dataset)} names, such as {dataset.names[0]!r}, "
                f"match {pattern!r}; give a pattern that some match"
            )

    @property
    def names(self) -> Sequence[str]:
        """The samples' names."""
        return [self._dataset.names[place] for place in self._places]

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        return self._dataset[self._places[index]]

    def read_reduced(self, index: int, factor: Factor) -> Sample:
        """As the data set reads it."""
        return self._dataset.read_reduced(self._places[index], factor)

    def read_labels(self, index: int) -> Labels:
        """The labels of one sample alone."""
        return self._dataset.read_labels(self._places[index])

    def pair(self, index: int) -> Pair | None:
        """The files of one sample."""
        return self._dataset.pair(self._places[index])

    def files(self, index: int) -> str:
        """As the data set says."""
        return self._dataset.files(self._places[index])
