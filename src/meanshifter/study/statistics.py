"""Means, spreads and intervals of a study's scores.

Glossary: S seeds, I images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanshifter.evaluation.confusion import mean_iou

Counts = npt.NDArray[np.int64]
T975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""The 97.5 % quantile of Student's t for 1, 2, … 15 degrees of freedom (any textbook's table)."""


class Interval(NamedTuple):
    """A mean with its 95 % interval; the interval is NaN where it cannot be told."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def over_seeds(differences: Sequence[float]) -> Interval:
    """Mean of paired differences and Student's interval: how far another set of seeds would move it."""
    values = np.asarray(differences, dtype=float)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return Interval(mean, math.nan, math.nan)
    half = T975[min(n - 1, len(T975)) - 1] * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def over_images(ours: Counts, theirs: Counts, *, draws: int = 1000, seed: int = 0) -> Interval:
    """Mean over seeds of the difference in mIoU, with the bootstrap interval over images.

    Args:
        ours, theirs: (S, I, K, K) pixels, the same seeds and images in both.
        draws: times that I images are drawn with replacement, the same ones for both.
        seed: of the draws.
    """
    images = ours.shape[1]
    rng = np.random.default_rng(seed)
    times = rng.multinomial(images, np.full(images, 1 / images), size=draws).astype(float)
    differences = (_miou(times, ours) - _miou(times, theirs)).mean(1)
    whole = np.ones((1, images))
    mean = float((_miou(whole, ours) - _miou(whole, theirs)).mean())
    low, high = np.nanpercentile(differences, (2.5, 97.5))
    return Interval(mean, float(low), float(high))


def _miou(times: npt.NDArray[Any], counts: Counts) -> npt.NDArray[np.float64]:
    """(draws, S) mIoU in percent of images that are counted so many times (draws, I)."""
    return mean_iou(np.einsum("di,sikl->dskl", times, counts.astype(float), optimize=True))
