"""IoU by the size and the thickness of regions: which regions of the labels are lost, small ones, thin ones?

A region is a connected set of pixels with the same label (4-connectivity); ignored pixels and the edge of the image end
it. Its size is its number of pixels, its thickness the side of the largest square of pixels that fits inside. Every
labeled pixel belongs to the bin of its region, whatever is predicted there. The scores of a bin are those of its pixels
alone, so a wrong prediction costs in the bin of the region that it covers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meanshifter.evaluation.metrics import ClassCounts, uniform

AREAS: Final = (32**2, 96**2)
"""Pixels from which a region is medium or large, as in COCO."""
SIDES: Final = (5, 9, 17, 33)
"""Sides of the squares that separate the bins of thickness; they are odd, so that a square has a center."""
AREA_NAMES: Final = ("below 32²", "32² to 96²", "from 96²")
THICKNESS_NAMES: Final = ("1–4", "5–8", "9–16", "17–32", "from 33")
BINS: Final = len(AREA_NAMES) + len(THICKNESS_NAMES)
"""Bins of area, then bins of thickness."""


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions of a label map (H, W), numbered from 0."""

    numbers: npt.NDArray[np.int32]
    """(H, W) region of each pixel."""
    labels: npt.NDArray[Any]
    """(R,) label of each region, which may be the ignored one."""
    areas: npt.NDArray[np.intp]
    """(R,) bin of its size."""
    thicknesses: npt.NDArray[np.intp]
    """(R,) bin of its thickness."""

    def counts(self, ignore: int) -> npt.NDArray[np.int64]:
        """(BINS,) number of labeled regions."""
        labeled = self.labels != ignore
        areas = np.bincount(self.areas[labeled], minlength=len(AREA_NAMES))
        return np.concatenate([areas, np.bincount(self.thicknesses[labeled], minlength=len(THICKNESS_NAMES))])


def find_regions(labels: npt.NDArray[Any]) -> Regions:
    """Find the regions of a label map (H, W)."""
    numbers = _connected(labels)
    count = int(numbers.max(initial=-1)) + 1
    own = np.zeros(count, labels.dtype)
    own[numbers] = labels
    areas = np.searchsorted(AREAS, np.bincount(numbers.ravel(), minlength=count), side="right")
    thicknesses = np.zeros(count, np.intp)
    for place, side in enumerate(SIDES, 1):
        thicknesses[numbers[uniform(labels, side // 2)]] = place
    return Regions(numbers, own, areas, thicknesses)


def _connected(labels: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """(H, W) number of the region of each pixel.

    All classes are connected at once, on a grid that also has a cell between any two neighbors, empty if they differ:
    a pass for each class takes 20 times as long with 150 classes.
    """
    from scipy import ndimage  # here, as it takes long to import

    H, W = labels.shape
    cells = np.zeros((2 * H - 1, 2 * W - 1), np.bool_)
    cells[::2, ::2] = True
    cells[1::2, ::2] = labels[1:] == labels[:-1]
    cells[::2, 1::2] = labels[:, 1:] == labels[:, :-1]
    numbers: npt.NDArray[np.int32] = ndimage.label(cells, output=np.int32)[0][::2, ::2]
    return numbers - 1


def region_counts(
    regions: Regions, truth: npt.NDArray[Any], prediction: npt.NDArray[Any], K: int, ignore: int
) -> ClassCounts:
    """Pixels (BINS, 3, K) by bin and class, as `metrics.ClassCounts`; values of `prediction` from K on are no class."""
    counted = truth != ignore
    numbers, true, predicted = regions.numbers[counted], truth[counted], prediction[counted].astype(np.int64)
    right, some = true == predicted, predicted < K
    parts = []
    for bins, count in ((regions.areas, len(AREA_NAMES)), (regions.thicknesses, len(THICKNESS_NAMES))):
        first = bins[numbers] * K
        chosen = (first + true, first[some] + predicted[some], first[right] + true[right])
        parts.append([np.bincount(values, minlength=count * K).reshape(count, K) for values in chosen])
    return np.concatenate([np.stack(three, 1) for three in parts]).astype(np.int64, copy=False)
