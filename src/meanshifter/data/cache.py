"""Decoded samples kept in memory, within a budget."""

from __future__ import annotations

from collections.abc import Sequence

from meanshifter.data.datasets import Dataset, Sample
from meanshifter.data.decoding import Factor
from meanshifter.data.labels import Labels


class Cached(Dataset):
    """A data set whose first samples, as many as fit into `budget` bytes, are decoded once and then kept.

    What is kept stays: training reads all samples in turn, so that throwing out the oldest would keep none of
    use. The arrays are handed out read-only, since they are handed out again.
    """

    def __init__(self, dataset: Dataset, budget: int) -> None:
        self.name, self.split, self.labels = dataset.name, dataset.split, dataset.labels
        self.named_by = dataset.named_by
        self._dataset, self._left = dataset, budget
        self._kept: dict[int, Sample] = {}

    @property
    def names(self) -> Sequence[str]:
        """The samples' names."""
        return self._dataset.names

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        return self.read_reduced(index, lambda _height, _width: 1.0)

    def read_reduced(self, index: int, factor: Factor) -> Sample:
        """What is kept, whole; else what the data set gives, which is kept if it is whole."""
        place = range(len(self))[index]
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
        """The labels of one sample alone."""
        kept = self._kept.get(range(len(self))[index])
        return self._dataset.read_labels(index) if kept is None else kept.labels

    def files(self, index: int) -> str:
        """As the data set says."""
        return self._dataset.files(index)
