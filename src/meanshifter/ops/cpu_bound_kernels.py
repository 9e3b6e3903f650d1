"""Compiled CPU kernels: bounds on the logits of all pixels of a cell, by which classes are left out of label maps.

Glossary: K classes; z (h, w, K) patch logits, classes last.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np

from meanshifter.utils.environment import kernel

SLACK = 4e-6
"""Rounding errors of bounds over several windows, as a share of the largest logit: 64 units in the last place."""
FINITE = 1e37
"""Size of logits from which bounds over several windows would overflow; every class is then a candidate."""

_SUMS = {"contract", "nsz", "reassoc", "nnan"}


@no_type_check
@kernel(fast=_SUMS, inner=True)
def cell_bounds(z: Any, rows: Any, cols: Any, high: Any, low: Any) -> Any:
    """Fill the largest and smallest corner of every class, and return the maximum of the smallest ones."""
    K = z.shape[2]
    for i in range(len(rows)):
        if i > 0 and rows[i] == rows[i - 1]:
            continue
        for j in range(len(cols)):
            if j > 0 and cols[j] == cols[j - 1]:
                continue
            corner = z[rows[i], cols[j]]
            if i == 0 and j == 0:
                for k in range(K):
                    high[k] = corner[k]
                    low[k] = corner[k]
            else:
                for k in range(K):
                    high[k] = corner[k] if corner[k] > high[k] else high[k]
                    low[k] = corner[k] if corner[k] < low[k] else low[k]
    floor = low[0]
    for k in range(1, K):
        floor = low[k] if low[k] > floor else floor
    return floor


@no_type_check
@kernel(inline="always", inner=True)
def _end_of_group(taps: Any, start: Any) -> Any:
    """The end of the taps that belong to the same window as that at `start`."""
    end = start + 1
    while end < len(taps) and taps[end] - taps[end - 1] <= 1:
        end += 1
    return end


@no_type_check
@kernel(fast=_SUMS, inner=True)
def _add_window(z: Any, rows: Any, cols: Any, ends: Any, share: Any, high: Any, low: Any, top: Any, bottom: Any) -> Any:
    """Add the largest and smallest corner of every class in one window, times its share; returns the largest size."""
    K = z.shape[2]
    i, last_row, j, last_col = ends
    first = z[rows[i], cols[j]]
    for k in range(K):
        top[k] = first[k]
        bottom[k] = first[k]
    for a in range(i, last_row):
        for b in range(j, last_col):
            corner = z[rows[a], cols[b]]
            for k in range(K):
                top[k] = corner[k] if corner[k] > top[k] else top[k]
                bottom[k] = corner[k] if corner[k] < bottom[k] else bottom[k]
    scale = np.float32(0)
    for k in range(K):
        high[k] += share * top[k]
        low[k] += share * bottom[k]
        size = top[k] if top[k] > -bottom[k] else -bottom[k]
        scale = size if size > scale else scale
    return scale


@no_type_check
@kernel(fast=_SUMS, inner=True)
def window_bounds(
    z: Any, rows: Any, cols: Any, row_share: Any, col_share: Any, high: Any, low: Any, top: Any, bottom: Any
) -> Any:
    """As `cell_bounds` where windows overlap: the mean over windows of the largest and smallest corner in each.

    That is at most the largest corner of all of them, so fewer classes are left. The shares of windows, and sums over
    them, are rounded, so what is returned is a little smaller.
    """
    K = z.shape[2]
    for k in range(K):
        high[k] = 0
        low[k] = 0
    scale = np.float32(0)
    i = 0
    while i < len(rows):
        last_row = _end_of_group(rows, i)
        j = 0
        while j < len(cols):
            last_col = _end_of_group(cols, j)
            share = row_share[i] * col_share[j]
            if share > 0:
                size = _add_window(z, rows, cols, (i, last_row, j, last_col), share, high, low, top, bottom)
                scale = size if size > scale else scale
            j = last_col
        i = last_row
    floor = low[0]
    for k in range(1, K):
        floor = low[k] if low[k] > floor else floor
    return floor - np.float32(SLACK) * scale if scale < FINITE else np.float32(-np.inf)
