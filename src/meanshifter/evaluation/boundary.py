"""Pixels near the boundaries of the truth, where models of large patches lose most.

The band is that of Kohli, Ladický & Torr (IJCV 2009, section 7), with square neighbourhoods.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def near_boundary(labels: npt.NDArray[Any], radius: int, ignore: int) -> npt.NDArray[np.bool_]:
    """(H, W) whether another class than a pixel's own lies within `radius` pixels of it, row- and column-wise.

    Pixels that are ignored are of no class: where a class meets them there is no boundary.
    """
    counted = labels != ignore
    # what is ignored gives way to a pixel's own class, which lies within its neighborhood too
    high = _extreme(np.where(counted, labels, np.iinfo(labels.dtype).min), radius, np.maximum)
    low = _extreme(np.where(counted, labels, np.iinfo(labels.dtype).max), radius, np.minimum)
    near: npt.NDArray[np.bool_] = counted & (high != low)
    return near


def _extreme(values: npt.NDArray[Any], radius: int, choose: np.ufunc) -> npt.NDArray[Any]:
    """The largest or smallest value within `radius` rows and columns, as `choose` says."""
    side = 2 * radius + 1
    for _ in range(2):  # rows, then columns
        values, span = np.pad(values, ((radius, radius), (0, 0)), mode="edge"), 1
        while span < side:  # windows of twice the rows are made from two; the last two overlap
            further = min(span, side - span)
            values, span = choose(values[:-further], values[further:]), span + further
        values = np.ascontiguousarray(values.T)
    return values


def only(labels: npt.NDArray[Any], where: npt.NDArray[np.bool_], ignore: int) -> npt.NDArray[Any]:
    """The labels where `where` is true, `ignore` elsewhere."""
    kept: npt.NDArray[Any] = np.where(where, labels, labels.dtype.type(ignore))
    return kept
