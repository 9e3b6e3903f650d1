"""Compiled CPU kernels: label maps of upsampled logits, cell by cell.

Pixels that depend on the same patches form a cell. Within it, a logit is a convex combination of the patch logits at
its corners, so class k can win only if its largest corner reaches the maximum over classes of the smallest corner. The
bound is exact, and in trained models it leaves one or two classes for most cells. Cells with many candidates are split
into blocks of pixels, where the same bound leaves few, unless weights bend within the cell, so that logits are no
convex combinations of those at the corners of a block.

Glossary: K classes, T taps of a pixel along an axis; z (h, w, K) patch logits, classes last.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np

from meanshifter.ops.cpu_bound_kernels import cell_bounds, window_bounds
from meanshifter.ops.upsampling import NEVER, SPAN
from meanshifter.utils.environment import kernel

BLOCK = 8
"""Rows and columns of pixels in a block of a cell."""
ONE_WINDOW = 0.999
"""Weight from which a single window decides."""
MANY = 8
"""Candidates of a cell up to which its pixels are compared without blocks."""

_SUMS = {"contract", "nsz", "reassoc", "nnan"}


@no_type_check
@kernel(inline="always", inner=True)
def _fill_basis(row_weight: Any, col_weight: Any, y0: Any, y1: Any, x0: Any, x1: Any, basis: Any) -> None:
    """Fill the weight of each corner (Ty × Tx) in each pixel of a cell, with pixels flattened in row-major order."""
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
    """Compare classes k < m, each with four corners, with the best ones of a cell; sharing loads is faster."""
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
    """Compare class k, with any multiple of four corners, with the best ones of a cell."""
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
def _select(high: Any, count: Any, floor: Any, candidates: Any) -> Any:
    """Fill in the classes that can win, in ascending order, and return their number."""
    found = 0
    for k in range(count):
        if high[k] >= floor:
            candidates[found] = k
            found += 1
    return found


@no_type_check
@kernel(inline="always", inner=True)
def _fill_corners(z: Any, k: Any, rows: Any, cols: Any, corner: Any) -> None:
    for i in range(len(rows)):
        for j in range(len(cols)):
            corner[i * len(cols) + j] = z[rows[i], cols[j], k]


@no_type_check
@kernel(fast=_SUMS, inner=True)
def _fill_lattice(table: Any, basis: Any, p: Any, count: Any, lattice: Any, line: Any, b: Any) -> None:
    """Fill the logits of the candidates, given their corners, at pixel p of a cell."""
    for g in range(len(table) // 4):
        b0, b1, b2, b3 = basis[4 * g, p], basis[4 * g + 1, p], basis[4 * g + 2, p], basis[4 * g + 3, p]
        i, j, k, m = 4 * g, 4 * g + 1, 4 * g + 2, 4 * g + 3  # no slices, which compile slowly
        for n in range(count):
            v = table[i, n] * b0 + table[j, n] * b1 + table[k, n] * b2 + table[m, n] * b3
            lattice[line, b, n] = v if g == 0 else lattice[line, b, n] + v


@no_type_check
@kernel(fast=_SUMS, inner=True)
def _block_bounds(lattice: Any, b: Any, count: Any, high: Any) -> Any:
    """Fill the largest logit of each candidate around block b, and return the maximum of the smallest ones."""
    floor = np.float32(NEVER)
    for n in range(count):
        v0, v1, v2, v3 = lattice[0, b, n], lattice[0, b + 1, n], lattice[1, b, n], lattice[1, b + 1, n]
        p, q = v0 if v0 > v1 else v1, v2 if v2 > v3 else v3
        high[n] = p if p > q else q
        p, q = v0 if v0 < v1 else v1, v2 if v2 < v3 else v3
        low = p if p < q else q
        floor = low if low > floor else floor
    return floor


@no_type_check
@kernel(inner=True)
def _contest_block(
    y0: Any,
    y1: Any,
    x0: Any,
    x1: Any,
    width: Any,
    chosen: Any,
    left: Any,
    candidates: Any,
    table: Any,
    basis: Any,
    part: Any,
    corner: Any,
    rival: Any,
    line: Any,
    best: Any,
    winner: Any,
) -> None:
    """Compare the `left` chosen candidates at the pixels y0..y1 × x0..x1 of a cell, into `winner` of the block."""
    pixels = 0
    for y in range(y0, y1):
        for x in range(x0, x1):
            p = y * width + x
            for i in range(len(corner)):
                part[i, pixels] = basis[i, p]
            best[pixels] = -np.inf
            winner[pixels] = 0
            pixels += 1
    for n in range(0, left, 2):
        k, m = chosen[n], chosen[n + 1 if n + 1 < left else n]
        for i in range(len(corner)):
            corner[i] = table[i, k]
            rival[i] = table[i, m]
        if len(corner) == 4:
            _contest_pair(candidates[k], candidates[m], corner, rival, part, pixels, best, winner)
        else:
            _contest(candidates[k], corner, part, pixels, line, best, winner)
            _contest(candidates[m], rival, part, pixels, line, best, winner)


@no_type_check
@kernel(inline="always", inner=True)
def _write(winner: Any, y0: Any, y1: Any, x0: Any, x1: Any, out: Any) -> None:
    p = 0
    for y in range(y0, y1):
        for x in range(x0, x1):
            out[y, x] = winner[p]
            p += 1


@no_type_check
@kernel(inner=True)
def _contest_blocks(
    y0: Any,
    y1: Any,
    x0: Any,
    x1: Any,
    count: Any,
    candidates: Any,
    table: Any,
    basis: Any,
    lattice: Any,
    high: Any,
    chosen: Any,
    corner: Any,
    rival: Any,
    part: Any,
    line: Any,
    best: Any,
    winner: Any,
    out: Any,
) -> None:
    """Fill a cell y0..y1 × x0..x1 of `out` where many classes are candidates, block by block.

    Between pixels on a lattice, logits are convex combinations of those there: the same bound as for cells leaves a
    tenth of the candidates in a block. `table` has the four corners of each candidate; `part`, `best` and `winner`
    belong to one block.
    """
    height, width = y1 - y0, x1 - x0
    for a in range((height + BLOCK - 1) // BLOCK + 1):
        bottom = a * BLOCK if a * BLOCK < height else height
        y = bottom if bottom < height else height - 1
        for b in range((width + BLOCK - 1) // BLOCK + 1):
            x = b * BLOCK if b * BLOCK < width else width - 1
            _fill_lattice(table, basis, y * width + x, count, lattice, a % 2, b)
        if a == 0:
            continue
        top = (a - 1) * BLOCK
        for b in range((width + BLOCK - 1) // BLOCK):
            start = b * BLOCK
            stop = start + BLOCK if start + BLOCK < width else width
            left = _select(high, count, _block_bounds(lattice, b, count, high), chosen)
            _contest_block(
                top,
                bottom,
                start,
                stop,
                width,
                chosen,
                left,
                candidates,
                table,
                basis,
                part,
                corner,
                rival,
                line,
                best,
                winner,
            )
            _write(winner, y0 + top, y0 + bottom, x0 + start, x0 + stop, out)


@no_type_check
@kernel(inline="always", inner=True)
def _contest_all(
    z: Any,
    rows: Any,
    cols: Any,
    count: Any,
    candidates: Any,
    corner: Any,
    rival: Any,
    basis: Any,
    pixels: Any,
    line: Any,
    best: Any,
    winner: Any,
) -> None:
    """Compare all candidates of a cell at all its pixels."""
    for p in range(pixels):  # loops, because slices and min() dominate the compile time
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


def scratch(K: int, corners: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Allocate the arrays of one call of `argmax_rows` outside the kernel, because np.empty compiles slowly."""
    corners = -(-corners // 4) * 4
    lattice = np.empty((2, SPAN // BLOCK + 1, K), np.float32)
    table, part = np.empty((corners, K), np.float32), np.empty((corners, BLOCK * BLOCK), np.float32)
    chosen = np.empty(K, np.int32)
    high, low, top, bottom = np.empty((4, K), np.float32)
    candidates = np.empty(K, np.int32)
    corner, rival = np.zeros(corners, np.float32), np.zeros(corners, np.float32)
    basis = np.zeros((corners, SPAN * SPAN), np.float32)
    line, best = np.empty(SPAN * SPAN, np.float32), np.empty(SPAN * SPAN, np.float32)
    winner = np.empty(SPAN * SPAN, np.int32)
    return high, low, top, bottom, candidates, corner, rival, basis, line, best, winner, lattice, table, part, chosen


@no_type_check
@kernel()
def argmax_rows(
    z: Any,
    row_index: Any,
    row_weight: Any,
    row_starts: Any,
    row_shares: Any,
    row_straight: Any,
    col_index: Any,
    col_weight: Any,
    col_starts: Any,
    col_shares: Any,
    col_straight: Any,
    begin: Any,
    end: Any,
    high: Any,
    low: Any,
    top: Any,
    bottom: Any,
    candidates: Any,
    corner: Any,
    rival: Any,
    basis: Any,
    line: Any,
    best: Any,
    winner: Any,
    lattice: Any,
    table: Any,
    part: Any,
    chosen: Any,
    out: Any,
) -> None:
    """Fill the rows of `out` (H, W) covered by runs `begin` to `end` of `row_starts`, with arrays of `scratch`."""
    for r in range(begin, end):
        y0, y1 = row_starts[r], row_starts[r + 1]
        for c in range(len(col_starts) - 1):
            x0, x1 = col_starts[c], col_starts[c + 1]
            rows, cols = row_index[y0], col_index[x0]
            over_rows, over_cols = row_shares[r, 0], col_shares[c, 0]
            if over_rows >= 0 and over_cols >= 0 and over_rows * over_cols < ONE_WINDOW:
                floor = window_bounds(z, rows, cols, row_shares[r], col_shares[c], high, low, top, bottom)
            else:
                floor = cell_bounds(z, rows, cols, high, low)
            count = _select(high, len(high), floor, candidates)
            pixels = (y1 - y0) * (x1 - x0)
            if count <= 1:
                only = candidates[0] if count else 0  # 0 if logits are NaN
                for y in range(y0, y1):
                    for x in range(x0, x1):
                        out[y, x] = only
                continue
            _fill_basis(row_weight, col_weight, y0, y1, x0, x1, basis)
            if count > MANY and pixels > 2 * BLOCK * BLOCK and row_straight[r] and col_straight[c]:
                for n in range(count):
                    _fill_corners(z, candidates[n], rows, cols, corner)
                    for i in range(len(corner)):
                        table[i, n] = corner[i]
                _contest_blocks(
                    y0,
                    y1,
                    x0,
                    x1,
                    count,
                    candidates,
                    table,
                    basis,
                    lattice,
                    high,
                    chosen,
                    corner,
                    rival,
                    part,
                    line,
                    best,
                    winner,
                    out,
                )
                continue
            _contest_all(z, rows, cols, count, candidates, corner, rival, basis, pixels, line, best, winner)
            _write(winner, y0, y1, x0, x1, out)
