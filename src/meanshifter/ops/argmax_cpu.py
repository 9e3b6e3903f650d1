"""The label map of one view on the CPU, cell by cell, for the classes that can win in each.

A pixel's logit is a convex combination of the patch logits around it. Pixels that depend on the same patches
form a cell, and in a cell class k can win only where its largest corner reaches the largest, over classes, of
the smallest corner. That bound is exact, and in trained models it leaves a class or two for most cells.

Glossary: K classes, T taps of a pixel along an axis; z (h, w, K) patch logits, classes last.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np

from meanshifter.kernels import kernel
from meanshifter.ops.taps import SPAN

_FAST = {"contract", "nsz", "reassoc", "nnan"}


@no_type_check
@kernel(fast=_FAST, inner=True)
def _bounds(z: Any, rows: Any, cols: Any, high: Any, low: Any) -> Any:
    """Fill the largest and smallest corner of every class, and return the largest smallest."""
    K = z.shape[2]
    for i in range(len(rows)):
        for j in range(len(cols)):
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
def _fill_basis(row_weight: Any, col_weight: Any, y0: Any, y1: Any, x0: Any, x1: Any, basis: Any) -> None:
    """The weight of each corner (Ty × Tx) in each pixel of a cell, pixels flat and row by row."""
    Tx = len(col_weight)
    for i in range(len(row_weight)):
        for j in range(Tx):
            p = 0
            for y in range(y0, y1):
                down = row_weight[i, y]
                for x in range(x0, x1):
                    basis[i * Tx + j, p] = down * col_weight[j, x]
                    p += 1


@no_type_check
@kernel(fast={"contract", "nsz"}, inner=True)
def _contest_pair(k: Any, m: Any, corner: Any, rival: Any, basis: Any, pixels: Any, best: Any, winner: Any) -> None:
    """Enter classes k < m, each with four corners, into one cell: what is loaded for one serves both."""
    c0, c1, c2, c3 = corner[0], corner[1], corner[2], corner[3]
    d0, d1, d2, d3 = rival[0], rival[1], rival[2], rival[3]
    b0, b1, b2, b3 = basis[0], basis[1], basis[2], basis[3]
    for p in range(pixels):
        v = c0 * b0[p] + c1 * b1[p] + c2 * b2[p] + c3 * b3[p]
        u = d0 * b0[p] + d1 * b1[p] + d2 * b2[p] + d3 * b3[p]
        top = u if u > v else v
        which = m if u > v else k
        wins = top > best[p]
        best[p] = top if wins else best[p]
        winner[p] = which if wins else winner[p]


@no_type_check
@kernel(fast={"contract", "nsz"}, inner=True)
def _contest(k: Any, corner: Any, basis: Any, pixels: Any, line: Any, best: Any, winner: Any) -> None:
    """Enter class k, with any multiple of four corners, into one cell."""
    for g in range(len(corner) // 4):
        c0, c1, c2, c3 = corner[4 * g], corner[4 * g + 1], corner[4 * g + 2], corner[4 * g + 3]
        b0, b1, b2, b3 = basis[4 * g], basis[4 * g + 1], basis[4 * g + 2], basis[4 * g + 3]
        if g == 0:
            for p in range(pixels):
                line[p] = c0 * b0[p] + c1 * b1[p] + c2 * b2[p] + c3 * b3[p]
        else:
            for p in range(pixels):
                line[p] += c0 * b0[p] + c1 * b1[p] + c2 * b2[p] + c3 * b3[p]
    for p in range(pixels):
        wins = line[p] > best[p]
        best[p] = line[p] if wins else best[p]
        winner[p] = k if wins else winner[p]


@no_type_check
@kernel(inline="always", inner=True)
def _select(high: Any, floor: Any, candidates: Any) -> Any:
    """Fill in the classes that can win, in ascending order, and return their number."""
    count = 0
    for k in range(len(high)):
        if high[k] >= floor:
            candidates[count] = k
            count += 1
    return count


@no_type_check
@kernel(inline="always", inner=True)
def _fill_corners(z: Any, k: Any, rows: Any, cols: Any, corner: Any) -> None:
    for i in range(len(rows)):
        for j in range(len(cols)):
            corner[i * len(cols) + j] = z[rows[i], cols[j], k]


def scratch(K: int, corners: int) -> tuple[np.ndarray[Any, Any], ...]:
    """What one call of `argmax_rows` works in, for cells of so many corners; made here, as np.empty compiles slowly."""
    corners = -(-corners // 4) * 4
    high, low = np.empty(K, np.float32), np.empty(K, np.float32)
    candidates = np.empty(K, np.int32)
    corner, rival = np.zeros(corners, np.float32), np.zeros(corners, np.float32)
    basis = np.zeros((corners, SPAN * SPAN), np.float32)
    line, best = np.empty(SPAN * SPAN, np.float32), np.empty(SPAN * SPAN, np.float32)
    return high, low, candidates, corner, rival, basis, line, best, np.empty(SPAN * SPAN, np.int32)


@no_type_check
@kernel()
def argmax_rows(
    z: Any,
    row_index: Any,
    row_weight: Any,
    row_starts: Any,
    col_index: Any,
    col_weight: Any,
    col_starts: Any,
    begin: Any,
    end: Any,
    high: Any,
    low: Any,
    candidates: Any,
    corner: Any,
    rival: Any,
    basis: Any,
    line: Any,
    best: Any,
    winner: Any,
    out: Any,
) -> None:
    """Fill the rows of `out` (H, W) that the runs `begin` to `end` of `row_starts` cover, in arrays of `scratch`."""
    for r in range(begin, end):
        y0, y1 = row_starts[r], row_starts[r + 1]
        for c in range(len(col_starts) - 1):
            x0, x1 = col_starts[c], col_starts[c + 1]
            rows, cols = row_index[y0], col_index[x0]
            count = _select(high, _bounds(z, rows, cols, high, low), candidates)
            pixels = (y1 - y0) * (x1 - x0)
            if count <= 1:  # none: the logits are not numbers
                for p in range(pixels):
                    winner[p] = candidates[0] if count else 0
            else:
                _fill_basis(row_weight, col_weight, y0, y1, x0, x1, basis)
                for p in range(pixels):  # loops, as slices and min() take the compiler longer than anything here
                    best[p] = -np.inf
                    winner[p] = 0
                for n in range(0, count, 2):
                    k, m = candidates[n], candidates[n + 1 if n + 1 < count else n]
                    _fill_corners(z, k, rows, cols, corner)
                    _fill_corners(z, m, rows, cols, rival)
                    if len(corner) == 4:
                        _contest_pair(k, m, corner, rival, basis, pixels, best, winner)
                    else:
                        _contest(k, corner, basis, pixels, line, best, winner)
                        _contest(m, rival, basis, pixels, line, best, winner)
            for p in range(pixels):
                out[y0 + p // (x1 - x0), x0 + p % (x1 - x0)] = winner[p]
