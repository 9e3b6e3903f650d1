"""The statistics of a study against loops and against figures from a textbook."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meanshifter.evaluation.confusion import mean_iou
from meanshifter.study.statistics import over_images, over_seeds


def test_the_interval_over_seeds_is_students() -> None:
    # Student's sleep data (1908): ten paired differences, mean 1.58, 95 % interval 0.70 to 2.46
    sleep = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    found = over_seeds(sleep)
    assert found == pytest.approx((1.58, 0.7001142, 2.4598858), abs=2e-3)
    assert str(found) == "+1.58 [+0.70, +2.46]"


def test_one_seed_has_no_interval() -> None:
    found = over_seeds([0.5])
    assert found.mean == 0.5
    assert math.isnan(found.low)
    assert str(found) == "+0.50"


@given(st.integers(0, 999))
def test_miou_leaves_out_classes_that_never_occur(seed: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 9, (3, 4, 4))
    counts[:, 2], counts[:, :, 2] = 0, 0
    counts[:, 0, 0] += 1
    for found, matrix in zip(mean_iou(counts), counts, strict=True):
        shares = []
        for k in range(4):
            union = matrix[k].sum() + matrix[:, k].sum() - matrix[k, k]
            if union:
                shares.append(matrix[k, k] / union)
        assert found == pytest.approx(100 * sum(shares) / len(shares))


def counts_of(seed: int, right: int) -> npt.NDArray[np.int64]:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 20, (2, 12, 3, 3))
    return np.asarray(counts + right * np.eye(3, dtype=int))


def test_the_interval_over_images_draws_images_for_both_alike() -> None:
    ours, theirs = counts_of(0, 30), counts_of(1, 10)
    found = over_images(ours, theirs, draws=400)
    totals = [mean_iou(part.sum(1)).mean() for part in (ours, theirs)]
    assert found.mean == pytest.approx(totals[0] - totals[1])
    rng = np.random.default_rng(5)
    loop = []
    for _ in range(2000):
        drawn = rng.integers(0, 12, 12)
        loop.append(np.mean(mean_iou(ours[:, drawn].sum(1)) - mean_iou(theirs[:, drawn].sum(1))))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(loop, (2.5, 97.5))), abs=1.0)
    same = over_images(ours, ours)
    assert (same.mean, same.low, same.high) == (0, 0, 0)
