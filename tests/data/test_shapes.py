from __future__ import annotations

import hashlib

import numpy as np
import pytest

from meanshifter.analysis.demo import patch_color_miou
from meanshifter.data.catalog.shapes import NAMES, Shapes
from meanshifter.data.datasets import Dataset, Sample
from meanshifter.errors import InputError


def test_contract_of_a_data_set() -> None:
    data = Shapes(split="train", size=(64, 96), length=3)
    assert isinstance(data, Dataset)
    assert (data.name, data.split, len(data)) == ("shapes", "train", 3)
    samples = list(data)
    assert [sample.name for sample in samples] == list(data.names) == ["train_00000", "train_00001", "train_00002"]
    for sample in samples:
        assert sample.image.shape == (64, 96, 3)
        assert sample.image.dtype == np.dtype(np.uint8)
        assert (sample.labels.shape, sample.labels.dtype) == ((64, 96), data.label_space.dtype)
    assert np.array_equal(data[-1].image, samples[2].image)
    with pytest.raises(IndexError, match="outside"):
        data[3]


def test_a_sample_depends_on_seed_split_index_and_size_alone() -> None:
    def key(data: Shapes, index: int) -> str:
        sample = data[index]
        return hashlib.sha256(sample.image.tobytes() + sample.labels.tobytes()).hexdigest()

    first = Shapes(split="train", length=5)
    forward = [key(first, i) for i in range(5)]
    np.random.seed(1)  # noqa: NPY002 (the global state must not matter)
    assert [key(Shapes(split="train", length=9), i) for i in reversed(range(5))] == forward[::-1]
    others = [
        key(Shapes(split="val"), 0),
        key(Shapes(split="train", seed=1), 0),
        key(Shapes(split="train", size=64), 0),
    ]
    assert len({*forward, *others}) == 8


def test_every_class_is_frequent_and_outlines_are_ignored() -> None:
    data = Shapes(split="train", length=60)
    counts = np.sum([np.bincount(sample.labels.ravel(), minlength=256) for sample in data], axis=0)
    share = counts / counts.sum()
    assert set(np.flatnonzero(counts)) == {*range(len(NAMES)), 255}
    assert len(NAMES) >= 7
    assert 0.4 < share[0] < 0.75
    assert (share[1 : len(NAMES)] > 0.02).all()
    assert 0.03 < share[255] < 0.2


def test_neighbors_of_two_classes_have_ignored_pixels_between() -> None:
    for sample in Shapes(split="val", length=10):
        labels = sample.labels.astype(int)
        for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            assert not ((a != b) & (a != 255) & (b != 255)).any()


def test_color_says_nothing_about_the_class() -> None:
    """Mean colors of the classes agree, and the best table from patch color to class stays low."""
    data = Shapes(split="train", length=150)
    means = [np.zeros((0, 3))] * len(NAMES)
    for sample in data:
        for k in range(1, len(NAMES)):
            if (sample.labels == k).sum() > 50:
                means[k] = np.vstack([means[k], sample.image[sample.labels == k].mean(0)])
    centers = np.stack([values.mean(0) for values in means[1:]])
    assert np.ptp(centers, axis=0).max() < 35
    score = patch_color_miou(data, Shapes(split="val", length=50))
    assert score < 25


def test_patch_colors_solve_a_data_set_where_color_is_class() -> None:
    class Painted(Shapes):
        def __getitem__(self, index: int):  # type: ignore[no-untyped-def]
            sample = super().__getitem__(index)
            palette = np.zeros((256, 3), np.uint8)
            palette[: len(NAMES)] = self.label_space.palette
            return Sample(palette[sample.labels], sample.labels, sample.name)

    assert patch_color_miou(Painted(split="train", length=30), Painted(split="val", length=10), patch=1) == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "test"}, "split 'test' .*'train' or 'val'"),
        ({"size": (128, 8)}, "size 128×8 .*32"),
        ({"length": 0}, "length 0"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Shapes(**arguments)  # type: ignore[arg-type]
