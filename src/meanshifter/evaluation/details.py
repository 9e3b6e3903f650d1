"""Counts of `evaluate(…, detailed=True)`: at boundaries, near them, by the size and thickness of regions, calibration.

Everything is a count of pixels, so images and processes are added up, and no image is kept.
Glossary: K classes, H W pixels of an image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meanshifter.evaluation.calibration import Reliability, reliability_counts
from meanshifter.evaluation.metrics import (
    ClassCounts,
    boundary_counts,
    class_counts,
    confusion_matrix,
    iou_by_class,
    mean_known,
    near_boundary,
    null,
    only,
)
from meanshifter.evaluation.regions import AREA_NAMES, BINS, THICKNESS_NAMES, find_regions, region_counts

RADII: Final = (3, 9)
"""Distances to label boundaries in pixels of the mask."""
Prediction = tuple[npt.NDArray[Any], npt.NDArray[np.floating[Any]] | None]
"""Predicted classes (H, W), K for no class, and their probabilities, if known."""


@dataclass(frozen=True)
class BinScore:
    """Scores of the pixels whose regions are in one bin, in percent; NaN if there are none."""

    mIoU: float  # noqa: N815
    """Mean IoU of the classes that have such regions. A class that is only predicted there has no IoU in the mean."""
    mAcc: float  # noqa: N815
    """Mean accuracy (recall) of these classes."""
    pixels: int
    """Labeled pixels."""
    regions: int
    """Labeled regions."""


@dataclass(frozen=True, eq=False)
class Details:
    """Scores at boundaries, by region, and of calibration; those in percent are NaN if no pixels are concerned."""

    boundary: ClassCounts
    """(3, K) of `metrics.boundary_counts`."""
    near: ClassCounts
    """(radii, 3, K) of the pixels within `RADII` of a pixel of another label."""
    regions: ClassCounts
    """(bins, 3, K) by bin of area, then of thickness."""
    region_counts: npt.NDArray[np.int64]
    """(bins,) number of regions."""
    reliability: Reliability | None = None
    """Confidence and accuracy; None if the probabilities are unknown."""

    @property
    def boundary_IoU(self) -> npt.NDArray[np.float64]:  # noqa: N802
        """(K,) boundary IoU by class, see `metrics.boundary_counts`."""
        return iou_by_class(self.boundary)

    @property
    def near_mIoU(self) -> dict[int, float]:  # noqa: N802
        """MIoU of the pixels within so many rows and columns of another label, by distance."""
        return {radius: mean_known(iou_by_class(counts)) for radius, counts in zip(RADII, self.near, strict=True)}

    @property
    def by_area(self) -> dict[str, BinScore]:
        """Scores by the number of pixels of a region."""
        return self._bins(AREA_NAMES, 0)

    @property
    def by_thickness(self) -> dict[str, BinScore]:
        """Scores by the side of the largest square inside a region."""
        return self._bins(THICKNESS_NAMES, len(AREA_NAMES))

    def _bins(self, names: Sequence[str], first: int) -> dict[str, BinScore]:
        return {name: self._bin(place) for place, name in enumerate(names, first)}

    def _bin(self, place: int) -> BinScore:
        counts = self.regions[place]
        present = counts[0] > 0
        recall = 100 * counts[2][present] / counts[0][present]
        iou = iou_by_class(counts)[present]
        return BinScore(mean_known(iou), mean_known(recall), int(counts[0].sum()), int(self.region_counts[place]))

    def lines(self) -> list[str]:
        """A few lines for people."""
        near = "   ".join(f"≤ {radius} px {_cell(score)}" for radius, score in self.near_mIoU.items())
        lines = [
            f"boundary IoU {_cell(mean_known(self.boundary_IoU))}   mIoU near label boundaries: {near}",
            f"mIoU by area of region (px):      {_in_bins(self.by_area)}",
            f"mIoU by thickness of region (px): {_in_bins(self.by_thickness)}",
        ]
        if self.reliability is not None:
            found = self.reliability
            lines.append(
                f"calibration error (ECE, {found.bins} bins) {_cell(found.ECE)}   mean confidence "
                f"{_cell(found.mean_confidence)}   accuracy {_cell(found.mean_accuracy)}"
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Scores, and the counts behind them, in plain containers for JSON."""
        return {
            "boundary_IoU": null(mean_known(self.boundary_IoU)),
            "near_boundary": {str(radius): null(score) for radius, score in self.near_mIoU.items()},
            "by_area": _bins_dict(self.by_area),
            "by_thickness": _bins_dict(self.by_thickness),
            **({} if self.reliability is None else {"calibration": self.reliability.to_dict()}),
            "counts": {name: getattr(self, name).tolist() for name in ("boundary", "near", "regions", "region_counts")},
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Details:
        """The inverse of `to_dict`; raises KeyError, TypeError or ValueError if it is not one."""
        counts = stored["counts"]
        boundary, near, regions, number = (
            np.array(counts[name], np.int64) for name in ("boundary", "near", "regions", "region_counts")
        )
        K = boundary.shape[-1]
        found, expected = (boundary.shape, near.shape, regions.shape), ((3, K), (len(RADII), 3, K), (BINS, 3, K))
        if found != expected:
            raise ValueError(f"details of shapes {found}; expected {expected}")
        known = stored.get("calibration")
        return cls(boundary, near, regions, number, None if known is None else Reliability.from_dict(known))

    @classmethod
    def unpack(cls, counts: npt.NDArray[np.int64], K: int, bins: int) -> Details:
        """From the sum of `count_details` over images; `bins` is 0 without probabilities."""
        by_class, rest = np.split(counts, [(1 + len(RADII) + BINS) * 3 * K])
        boundary, near, regions = np.split(by_class.reshape(-1, 3, K), [1, 1 + len(RADII)])
        reliability = Reliability(rest[BINS:].reshape(3, bins)) if bins else None
        return cls(boundary[0], near, regions, rest[:BINS], reliability)


def details_size(K: int, bins: int) -> int:
    """Length of the vectors of `count_details`."""
    return (1 + len(RADII) + BINS) * 3 * K + BINS + 3 * bins


def count_details(
    labels: npt.NDArray[Any], predictions: Sequence[Prediction], K: int, ignore: int, bins: int
) -> list[npt.NDArray[np.int64]]:
    """All counts of each prediction of an image, as vectors for `Details.unpack`.

    Args:
        labels: labels (H, W), 0..K-1 or `ignore`.
        predictions: predicted classes, with their probabilities unless `bins` is 0.
        K: number of classes.
        ignore: the ignored value.
        bins: bins of confidence; 0: no calibration.
    """
    bands = [only(labels, near_boundary(labels, radius, ignore), ignore) for radius in RADII]
    regions = find_regions(labels)
    found = []
    for prediction, probability in predictions:
        near = [class_counts(confusion_matrix(band, prediction, K + 1, ignore=ignore)[:K]) for band in bands]
        parts = [
            boundary_counts(labels, prediction, K, ignore),
            *near,
            region_counts(regions, labels, prediction, K, ignore),
            regions.counts(ignore),
        ]
        if bins and probability is not None:
            parts.append(reliability_counts(probability, prediction, labels, ignore, bins))
        found.append(np.concatenate([part.ravel() for part in parts]))
    return found


def _cell(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}"


def _in_bins(scores: Mapping[str, BinScore]) -> str:
    return "   ".join(f"{name}: {_cell(score.mIoU)}" for name, score in scores.items())


def _bins_dict(scores: Mapping[str, BinScore]) -> dict[str, Any]:
    return {
        name: {"mIoU": null(score.mIoU), "mAcc": null(score.mAcc), "pixels": score.pixels, "regions": score.regions}
        for name, score in scores.items()
    }
