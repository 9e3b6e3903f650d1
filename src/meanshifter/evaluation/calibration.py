"""How sure a model is and how often it is right: reliability bins and the expected calibration error.

Source: Guo, Pleiss, Sun & Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017, section 2), for the most
probable class of every labeled pixel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meanshifter.errors import InputError

BINS: Final = 15
"""Default number of bins."""
UNIT: Final = 2**24
"""Confidences are summed as integers in units of 1/UNIT, so that the sum does not depend on the order of images or on
the number of processes. From 0.5 on, float32 has no finer steps; below, the error of a pixel is at most 3e-8."""
Counts = npt.NDArray[np.int64]


def check_bins(bins: int) -> None:
    """Raise an InputError unless `bins` is an integer from 1 to 1000."""
    if isinstance(bins, bool) or not isinstance(bins, int) or not 1 <= bins <= 1000:
        raise InputError(f"calibration_bins: {bins!r}; expected an integer from 1 to 1000")


def reliability_counts(
    probability: npt.NDArray[np.floating[Any]],
    prediction: npt.NDArray[Any],
    labels: npt.NDArray[Any],
    ignore: int,
    bins: int = BINS,
) -> Counts:
    """Pixels, correct pixels, and the sum of confidences in 1/UNIT, by bin (3, bins); those of images are added.

    Bin b of B holds the confidences in (b/B, (b+1)/B], and the first one also 0. A NaN counts as 0.

    Args:
        probability: probability of the predicted class (H, W).
        prediction: predicted class (H, W).
        labels: true class (H, W), or `ignore`, whose pixels are skipped.
        ignore: the ignored value.
        bins: B.
    """
    counted = labels != ignore
    sure = np.nan_to_num(probability[counted].astype(np.float64), nan=0.0).clip(0, 1)
    places = np.clip(np.ceil(sure * bins) - 1, 0, bins - 1).astype(np.intp)
    right = places[prediction[counted] == labels[counted]]
    summed = np.bincount(places, weights=np.rint(sure * UNIT), minlength=bins)  # integers below 2⁵³ are exact
    return np.stack([np.bincount(places, minlength=bins), np.bincount(right, minlength=bins), summed.astype(np.int64)])


@dataclass(frozen=True, eq=False)
class Reliability:
    """Confidence and accuracy by bins of confidence. Scores are in percent."""

    counts: Counts
    """(3, bins) of `reliability_counts`."""

    @property
    def bins(self) -> int:
        """Number of bins."""
        return int(self.counts.shape[1])

    @property
    def pixels(self) -> Counts:
        """(bins,) pixels."""
        pixels: Counts = self.counts[0]
        return pixels

    @property
    def accuracy(self) -> npt.NDArray[np.float64]:
        """(bins,) percent of correct pixels; NaN for an empty bin."""
        return _share(self.counts[1], self.pixels)

    @property
    def confidence(self) -> npt.NDArray[np.float64]:
        """(bins,) mean confidence in percent; NaN for an empty bin."""
        return _share(self.counts[2] / UNIT, self.pixels)

    @property
    def mean_confidence(self) -> float:
        """Mean confidence of all pixels in percent; NaN if there are none."""
        return float(_share(self.counts[2].sum() / UNIT, self.pixels.sum()))

    @property
    def mean_accuracy(self) -> float:
        """Percent of all pixels that are correct; NaN if there are none."""
        return float(_share(self.counts[1].sum(), self.pixels.sum()))

    @property
    def ECE(self) -> float:  # noqa: N802
        """Expected calibration error: |accuracy - confidence| of the bins, weighted by their pixels (eq. 3)."""
        total = int(self.pixels.sum())
        return 100 * float(np.abs(self.counts[1] - self.counts[2] / UNIT).sum()) / total if total else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        known = self.pixels > 0
        return {
            "ECE": None if math.isnan(self.ECE) else self.ECE,
            "pixels": self.pixels.tolist(),
            "correct": self.counts[1].tolist(),
            "confidence_sum": (self.counts[2] / UNIT).tolist(),
            "accuracy": [value if is_known else None for value, is_known in zip(self.accuracy, known, strict=True)],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Reliability:
        """The inverse of `to_dict`; raises KeyError, TypeError or ValueError if it is not one."""
        sums = np.rint(np.array(stored["confidence_sum"], np.float64) * UNIT)
        return cls(np.stack([np.array(stored["pixels"]), np.array(stored["correct"]), sums]).astype(np.int64))


def _share(part: Any, whole: Any) -> npt.NDArray[np.float64]:
    return np.asarray(np.divide(100 * part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0))
