from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from meanshifter.data.catalog.shapes import Shapes
from meanshifter.data.datasets import Cached, Dataset, Sample


class Counted(Dataset):
    """Counts what is read."""

    def __init__(self, dataset: Dataset) -> None:
        self.name, self.split, self.label_space = dataset.name, dataset.split, dataset.label_space
        self.inner, self.reads = dataset, 0

    @property
    def names(self) -> Sequence[str]:
        return self.inner.names

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Sample:
        self.reads += 1
        return self.inner[index]


def test_what_fits_is_read_once_and_the_rest_each_time() -> None:
    source = Counted(Shapes(split="val"))
    one = source.inner[0]
    cached = Cached(source, 2 * (one.image.nbytes + one.labels.nbytes))
    for _ in range(3):
        for index in (0, 1, 2):
            np.testing.assert_array_equal(cached[index].image, source.inner[index].image)
            np.testing.assert_array_equal(cached[index].labels, source.inner[index].labels)
    assert source.reads == 1 + 1 + 2 * 3
    assert cached.names == source.names
    assert len(cached) == len(source)
    np.testing.assert_array_equal(cached.read_labels(1), source.inner[1].labels)
    assert source.reads == 8
    assert cached[-len(cached)].name == cached[0].name


def test_nobody_can_write_into_what_is_kept() -> None:
    cached = Cached(Shapes(split="val"), 10**9)
    with pytest.raises(ValueError, match="read-only"):
        cached[0].image[0, 0, 0] = 1
