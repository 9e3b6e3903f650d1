"""Scores from confusion matrices, defined as in MMSegmentation, and from pixels at the boundaries of label maps.

`near_boundary` follows Kohli, Ladický & Torr (IJCV 2009, section 7), with square neighborhoods; `boundary_counts` is
the boundary IoU of Cheng, Girshick, Dollár, Berg & Kirillov, "Boundary IoU: Improving Object-Centric Image Segmentation
Evaluation" (CVPR 2021). Glossary: K classes, H W pixels of a label map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meanshifter.errors import InputError

Confusion = npt.NDArray[np.int64]
ClassCounts = npt.NDArray[np.int64]
"""(…, 3, K) pixels by class: in the labels, in the prediction, in both."""
DILATION: Final = 0.02
"""Width of the boundary in boundary IoU, as a share of the image diagonal."""


def confusion_matrix(
    truth: npt.NDArray[Any], prediction: npt.NDArray[Any], num_classes: int, *, ignore: int
) -> Confusion:
    """Confusion matrix (K, K) int64: pixels by true class (row) and predicted class (column).

    Pixels whose truth is `ignore` are skipped, whatever was predicted. Matrices of several images can be added.

    Raises:
        InputError: the label maps differ in size, or a value that is not skipped is outside 0..K-1.
    """
    if truth.shape != prediction.shape:
        sizes = ("×".join(map(str, labels.shape)) for labels in (truth, prediction))
        raise InputError("labels: truth is {} and prediction {}; their sizes must be equal".format(*sizes))
    counted = truth != ignore
    true = truth[counted].astype(np.int64)
    predicted = prediction[counted].astype(np.int64)
    for name, values in (("truth", true), ("prediction", predicted)):
        if values.size and (values.min() < 0 or values.max() >= num_classes):
            wrong = values[(values < 0) | (values >= num_classes)]
            raise InputError(
                f"{name}: value {wrong[0]} in {np.count_nonzero(wrong == wrong[0])} pixels; classes are 0 to "
                f"{num_classes - 1}" + (f", the ignored value is {ignore}" if name == "truth" else "")
            )
    pairs = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return pairs.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def mean_iou(confusion: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """mIoU in percent of each matrix (…, K, K), over the classes in truth or prediction; NaN if there are none."""
    right = np.einsum("...kk->...k", confusion)
    return mean_iou_by_class(confusion.sum(-1), confusion.sum(-2), right)


def mean_iou_by_class(
    truth: npt.NDArray[Any], predicted: npt.NDArray[Any], right: npt.NDArray[Any]
) -> npt.NDArray[np.float64]:
    """`mean_iou` from the pixels (…, K) per true class, per predicted class, and correct per class."""
    return _mean_share(right, truth + predicted - right)


def class_counts(confusion: npt.NDArray[Any]) -> ClassCounts:
    """The counts (…, 3, K) of confusion matrices (…, K, K), or (…, K, M) whose columns from K on are no class."""
    K = confusion.shape[-2]
    predicted, right = confusion.sum(-2)[..., :K], np.einsum("...kk->...k", confusion[..., :K])
    return np.stack([confusion.sum(-1), predicted, right], -2)


def iou_by_class(counts: ClassCounts) -> npt.NDArray[np.float64]:
    """IoU (…, K) in percent; NaN for classes in neither labels nor prediction."""
    truth, predicted, right = np.moveaxis(counts, -2, 0)
    return _share(right, truth + predicted - right)


def _share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """100 × part / whole, NaN where whole is 0."""
    return np.asarray(100 * np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0))


def mean_accuracy(confusion: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """mAcc in percent of each matrix (…, K, K), over the classes in the truth; NaN if there are none."""
    return _mean_share(np.einsum("...kk->...k", confusion), confusion.sum(-1))


def pixel_accuracy(confusion: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """aAcc in percent of each matrix (…, K, K), the share of correct pixels; NaN if there are no pixels."""
    return _mean_share(np.einsum("...kk->...", confusion)[..., None], confusion.sum((-2, -1))[..., None])


def _mean_share(part: npt.NDArray[Any], whole: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """100 × the mean of part / whole over the last axis, skipping zeros of `whole`; NaN if it is all zeros."""
    counted = whole > 0
    shares = np.divide(part, whole, out=np.zeros(part.shape), where=counted)
    count, total = counted.sum(-1), shares.sum(-1)
    return np.asarray(100 * np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def mean_known(values: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """Mean without NaN; NaN if nothing is left."""
    counted = [float(value) for value in values if not math.isnan(value)]
    return math.fsum(counted) / len(counted) if counted else math.nan


def null(value: float) -> float | None:
    """`value` for JSON; None for NaN."""
    return None if math.isnan(value) else value


def near_boundary(labels: npt.NDArray[Any], radius: int, ignore: int) -> npt.NDArray[np.bool_]:
    """(H, W) whether a pixel of another class lies within `radius` rows and columns.

    Ignored pixels belong to no class and cause no boundary.
    """
    counted = labels != ignore
    # an ignored pixel loses against the center's class, which lies within the neighborhood too
    high = _extreme(np.where(counted, labels, np.iinfo(labels.dtype).min), radius, np.maximum)
    low = _extreme(np.where(counted, labels, np.iinfo(labels.dtype).max), radius, np.minimum)
    near: npt.NDArray[np.bool_] = counted & (high != low)
    return near


def _extreme(values: npt.NDArray[Any], radius: int, choose: np.ufunc) -> npt.NDArray[Any]:
    """The maximum or minimum within `radius` rows and columns; `choose` is np.maximum or np.minimum."""
    side = 2 * radius + 1
    for _ in range(2):  # rows, then columns
        values, span = np.pad(values, ((radius, radius), (0, 0)), mode="edge"), 1
        while span < side:  # each pass doubles the window; the last two may overlap
            further = min(span, side - span)
            values, span = choose(values[:-further], values[further:]), span + further
        values = np.ascontiguousarray(values.T)
    return values


def only(labels: npt.NDArray[Any], where: npt.NDArray[np.bool_], ignore: int) -> npt.NDArray[Any]:
    """The labels where `where` is true, else `ignore`."""
    kept: npt.NDArray[Any] = np.where(where, labels, labels.dtype.type(ignore))
    return kept


def uniform(labels: npt.NDArray[Any], radius: int) -> npt.NDArray[np.bool_]:
    """(H, W) whether all pixels within `radius` rows and columns lie in the image and have the same value."""
    alike: npt.NDArray[np.bool_] = _extreme(labels, radius, np.maximum) == _extreme(labels, radius, np.minimum)
    return alike & ~_near_edge(labels.shape, radius)


def _near_edge(shape: tuple[int, ...], radius: int) -> npt.NDArray[np.bool_]:
    """(H, W) whether a pixel outside the image lies within `radius` rows and columns."""
    near = np.ones(shape, np.bool_)
    near[radius : max(shape[0] - radius, radius), radius : max(shape[1] - radius, radius)] = False
    return near


def boundary_width(shape: tuple[int, ...]) -> int:
    """Pixels from the boundary that boundary IoU counts in an image of (H, W): 2 % of its diagonal, at least 1."""
    return max(round(DILATION * math.hypot(*shape)), 1)


def boundary_counts(truth: npt.NDArray[Any], prediction: npt.NDArray[Any], K: int, ignore: int) -> ClassCounts:
    """The counts (3, K) whose `iou_by_class` is boundary IoU; those of several images are added.

    The boundary of class k is mask_to_boundary of the published code (github.com/bowenc0221/boundary-iou-api) for the
    mask of k: the mask without its erosion by a 3×3 square, repeated `boundary_width` times, where the outside of the
    image is not in the mask. These are the pixels of k from which a pixel of another value, or the edge of the image,
    is at most so many rows and columns away: the same ones for all classes, so that no mask of a single class is made.

    The published code scores one mask of an object; here, as usual for semantic segmentation, intersection and union of
    each class are summed over images. It has no ignored pixels: here those of `truth` are in no mask, neither of the
    labels nor of the prediction, and erode none.

    Args:
        truth: labels (H, W), 0..K-1 or `ignore`.
        prediction: (H, W); values from K on are no class.
        K: number of classes.
        ignore: the ignored value of `truth`.
    """
    width, counted = boundary_width(truth.shape), truth != ignore
    edge = _near_edge(truth.shape, width)
    predicted = only(prediction, counted, ignore)
    at_truth, at_predicted = (counted & (edge | near_boundary(each, width, ignore)) for each in (truth, predicted))
    both = at_truth & at_predicted & (truth == prediction)
    chosen = (truth[at_truth], prediction[at_predicted], truth[both])
    return np.stack([np.bincount(values, minlength=K)[:K] for values in chosen])
