"""Counts of pixels by true and predicted class."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from meanshifter.errors import InputError

Confusion = npt.NDArray[np.int64]


def confusion_matrix(
    truth: npt.NDArray[Any], prediction: npt.NDArray[Any], num_classes: int, *, ignore: int
) -> Confusion:
    """Pixels of each true class (row) predicted as each class (column), (K, K) int64.

    Pixels whose truth is `ignore` are not counted, whatever was predicted there. Matrices of several images
    add up.

    Raises:
        InputError: label maps of different sizes, or a value outside 0..K-1 where pixels are counted.
    """
    if truth.shape != prediction.shape:
        raise InputError(f"labels: truth is {_size(truth)} and prediction {_size(prediction)}; they must have one size")
    counted = truth != ignore
    true = truth[counted].astype(np.int64)
    predicted = prediction[counted].astype(np.int64)
    for name, values in (("truth", true), ("prediction", predicted)):
        _check(name, values, num_classes, ignore)
    pairs = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def mean_iou(confusion: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """mIoU in percent of each matrix (…, K, K), over the classes in its truth or its prediction; NaN without any."""
    right = np.einsum("...kk->...k", confusion)
    return mean_iou_by_class(confusion.sum(-1), confusion.sum(-2), right)


def mean_iou_by_class(
    truth: npt.NDArray[Any], predicted: npt.NDArray[Any], right: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """`mean_iou` from the pixels (…, K) of each true class, of each predicted class, and those that are right."""
    return _mean_share(right, truth + predicted - right)


def mean_accuracy(confusion: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """mAcc in percent of each matrix (…, K, K), over the classes in its truth; NaN without any."""
    return _mean_share(np.einsum("...kk->...k", confusion), confusion.sum(-1))


def pixel_accuracy(confusion: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """aAcc in percent of each matrix (…, K, K): the pixels that are right; NaN without any."""
    return _mean_share(np.einsum("...kk->...", confusion)[..., None], confusion.sum((-2, -1))[..., None])


def _mean_share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """100 × the mean over the last axis of part / whole, where `whole` is not 0; NaN where it is 0 throughout."""
    counted = whole > 0
    shares = np.divide(part, whole, out=np.zeros(part.shape), where=counted)
    count = counted.sum(-1)
    total = shares.sum(-1)
    return np.asarray(100 * np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def _check(name: str, values: npt.NDArray[np.int64], num_classes: int, ignore: int) -> None:
    if not values.size or (values.min() >= 0 and values.max() < num_classes):
        return
    wrong = values[(values < 0) | (values >= num_classes)]
    raise InputError(
        f"{name}: value {wrong[0]} in {np.count_nonzero(wrong == wrong[0])} pixels; classes are 0 to "
        f"{num_classes - 1}" + (f", ignored is {ignore}" if name == "truth" else "")
    )


def _size(labels: npt.NDArray[Any]) -> str:
    return "×".join(str(side) for side in labels.shape)
