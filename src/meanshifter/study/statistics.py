"""Means, spreads and intervals of a study's scores.

Glossary: S seeds, I images, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meanshifter.evaluation.confusion import mean_iou_by_class

DRAWN_AT_ONCE = 4_000_000
"""Counts of images in one product of the bootstrap, which takes 8 bytes for each."""


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
    from scipy.stats import t  # here, as it takes half a second

    half = float(t.ppf(0.975, n - 1)) * float(values.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half)


def drawn_scores(counts: npt.NDArray[np.float64], *, draws: int = 1000, seed: int = 0) -> npt.NDArray[np.float64]:
    """mIoU in percent of all images, and then of each of `draws` samples of as many images with replacement.

    Args:
        counts: (3, I, K) pixels of each image, as `ImageCounts.by_class` gives them.
        draws: number of samples.
        seed: of the samples, which are the same ones for any counts of as many images.

    Returns:
        (1 + draws,)
    """
    images, K = counts.shape[1:]
    flat = counts.transpose(1, 0, 2).reshape(images, 3 * K)
    samples, at_once = _samples(images, draws, seed), max(1, DRAWN_AT_ONCE // images)
    parts = (samples[first : first + at_once].astype(float) for first in range(0, draws, at_once))
    return np.concatenate([_miou(part, flat) for part in (np.ones((1, images)), *parts)])


@lru_cache(maxsize=4)
def _samples(images: int, draws: int, seed: int) -> npt.NDArray[np.int32]:
    """(draws, I) how often each image is in each sample."""
    rng, at_once, shares = np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // images), np.full(images, 1 / images)
    sizes = [min(at_once, draws - first) for first in range(0, draws, at_once)]
    return np.concatenate([rng.multinomial(images, shares, size=size).astype(np.int32) for size in sizes])


def over_images(ours: Sequence[npt.NDArray[np.float64]], theirs: Sequence[npt.NDArray[np.float64]]) -> Interval:
    """Mean over seeds of the difference in mIoU, with the bootstrap interval over images.

    Args:
        ours, theirs: `drawn_scores` of each seed, the same seeds, images and samples in both.
    """
    differences = np.stack(ours, axis=1) - np.stack(theirs, axis=1)
    low, high = np.nanpercentile(differences[1:].mean(1), (2.5, 97.5))
    return Interval(float(differences[0].mean()), float(low), float(high))


def _miou(times: npt.NDArray[Any], flat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(draws,) mIoU in percent of images that are counted so many times (draws, I); `flat` is (I, 3 K)."""
    truth, predicted, right = np.split(times @ flat, 3, axis=1)
    return mean_iou_by_class(truth, predicted, right)
