"""The statistics of a study against loops and against figures from a textbook."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meanshifter.analysis import findings
from meanshifter.analysis.findings import Interval, bootstrap_scores, over_images, over_seeds
from meanshifter.analysis.study_scores import ImageCounts, load_counts, save_counts
from meanshifter.errors import InputError
from meanshifter.evaluation.metrics import mean_accuracy, mean_iou, pixel_accuracy
from meanshifter.evaluation.result import Result


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


def counts_of(seed: int, right: int, classes: int = 3) -> npt.NDArray[np.int64]:
    """(S, I, K, K) of two seeds and twelve images, most of it 0."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 20, (2, 12, classes, classes)) * (rng.random((2, 12, classes, classes)) < 0.3)
    return np.asarray(counts + right * np.eye(classes, dtype=int))


def sparse(matrices: npt.NDArray[np.int64]) -> ImageCounts:
    counts = ImageCounts(matrices.shape[-1])
    for matrix in matrices:
        counts.append(matrix)
    return counts


def interval(ours: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64], draws: int = 1000) -> Interval:
    scores = [[bootstrap_scores(sparse(seed).by_class(), draws=draws) for seed in part] for part in (ours, theirs)]
    return over_images(*scores)


def test_the_interval_over_images_draws_images_for_both_alike() -> None:
    ours, theirs = counts_of(0, 30), counts_of(1, 10)
    found = interval(ours, theirs, draws=400)
    totals = [mean_iou(part.sum(1)).mean() for part in (ours, theirs)]
    assert found.mean == pytest.approx(totals[0] - totals[1])
    rng = np.random.default_rng(5)
    loop = []
    for _ in range(2000):
        drawn = rng.integers(0, 12, 12)
        loop.append(np.mean(mean_iou(ours[:, drawn].sum(1)) - mean_iou(theirs[:, drawn].sum(1))))
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(loop, (2.5, 97.5))), abs=1.0)
    same = interval(ours, ours)
    assert (same.mean, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize("at_once", [4_000_000, 100])
def test_sparse_counts_give_the_interval_of_dense_ones_to_the_last_digit(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "BOOTSTRAP_COUNTS", at_once)
    findings._samples.cache_clear()
    ours, theirs = counts_of(2, 9, classes=5), counts_of(3, 0, classes=5)
    rng = np.random.default_rng(0)
    times = rng.multinomial(12, np.full(12, 1 / 12), size=1000).astype(float)

    def dense(times: npt.NDArray[np.float64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return mean_iou(np.einsum("di,sikl->dskl", times, counts.astype(float)))

    everything = np.ones((1, 12))
    low, high = np.nanpercentile((dense(times, ours) - dense(times, theirs)).mean(1), (2.5, 97.5))
    mean = (dense(everything, ours) - dense(everything, theirs)).mean()
    assert tuple(interval(ours, theirs)) == (mean, low, high)


def test_accuracies_are_those_of_a_result() -> None:
    counts = counts_of(4, 5, classes=4)[0]
    counts[:, 2] = 0  # a class that is predicted but never true
    for matrix in (*counts, np.zeros((4, 4), np.int64)):
        result = Result(matrix, tuple("abcd"), protocol=None)  # type: ignore[arg-type]
        found = pixel_accuracy(matrix), mean_accuracy(matrix), mean_iou(matrix)
        assert found == pytest.approx((result.aAcc, result.mAcc, result.mIoU), nan_ok=True)


def test_counts_come_back_from_their_file(tmp_path: Path) -> None:
    dense = counts_of(6, 1, classes=300)[0]
    dense[0, 299, 299], dense[3] = 5_000_000_000, 0  # more pixels than 32 bits count, and an image without any
    path = tmp_path / "confusions.npz"
    with path.open("wb") as file:
        save_counts(file, {"val": {0: sparse(dense[:5]), 3: sparse(dense)}})
    found = load_counts(path, "val", 3)
    assert len(found) == 12
    assert (found.total() == dense.sum(0)).all()
    truth, predicted, right = found.by_class()
    assert (truth == dense.sum(2)).all()
    assert (predicted == dense.sum(1)).all()
    assert (right == np.einsum("ikk->ik", dense)).all()
    with pytest.raises(InputError, match=r"confusions.npz: cannot be read .*val/4/pairs.*delete scores.json"):
        load_counts(path, "val", 4)
