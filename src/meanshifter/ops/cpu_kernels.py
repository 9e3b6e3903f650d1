"""Compiled CPU kernels: softmax and cross-entropy of upsampled logits, pixel by pixel, and label maps, cell by cell.

Pixels that depend on the same patches form a cell. Within it, a logit is a convex combination of the patch logits at
its corners, so class k can win only if its largest corner reaches the maximum over classes of the smallest corner. The
bound is exact, and in trained models it leaves one or two classes for most cells.

Glossary: K classes (for softmax and cross-entropy padded to a multiple of `LANES`), T taps of a pixel along an axis;
z (h, w, K) patch logits, classes last; a line (w, K) is z interpolated to one row of pixels.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np

from meanshifter.ops.upsampling import SPAN
from meanshifter.utils.environment import kernel

LANES = 8

_LOG2_E = np.float32(1.44269504)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LOWEST = np.float32(-87)
_C2, _C3, _C4 = np.float32(0.5), np.float32(1.6666665459e-1), np.float32(4.1665795894e-2)
_C5, _C6, _C7 = np.float32(8.3334519073e-3), np.float32(1.3981999507e-3), np.float32(1.9875691500e-4)
_HALF, _ONE = np.float32(0.5), np.float32(1)
_SUMS = {"contract", "nsz", "reassoc", "nnan"}


@no_type_check
@kernel(fast={"contract"}, inline="always")
def _exp(x: Any) -> Any:
    """e^x for x <= 0 to within 2 ulp, 0 below -87; Cephes' expf, which compilers can vectorize."""
    bounded = x if x > _LOWEST else _LOWEST
    n = np.floor(bounded * _LOG2_E + _HALF)
    r = bounded - n * _LN2_HIGH - n * _LN2_LOW
    p = ((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2
    power = np.int32((np.int32(n) + 127) << 23).view(np.float32)
    e = (p * r * r + r + _ONE) * power
    return e if x > _LOWEST else np.float32(0)


@no_type_check
@kernel(fast={"contract", "nsz"}, inner=True)
def _fill_line(z: Any, index: Any, weight: Any, y: Any, line: Any) -> None:
    """Interpolate z (h, w·K) at pixel row y."""
    for i in range(index.shape[1]):
        source, factor = z[index[y, i]], weight[i, y]
        if i == 0:
            for n in range(len(line)):
                line[n] = factor * source[n]
        elif factor != 0:
            for n in range(len(line)):
                line[n] += factor * source[n]


@no_type_check
@kernel(fast={"contract", "nsz"}, inner=True)
def _fill_pixel(line: Any, index: Any, weight: Any, x: Any, K: Any, v: Any) -> None:
    """Interpolate a line (w·K) at pixel x, to its logits v (K)."""
    for j in range(index.shape[1]):
        source, factor = line[index[x, j] * K : (index[x, j] + 1) * K], weight[j, x]
        if j == 0:
            for k in range(K):
                v[k] = factor * source[k]
        else:
            for k in range(K):
                v[k] += factor * source[k]


@no_type_check
@kernel(fast=_SUMS, inner=True)
def _largest(v: Any) -> Any:
    top = v[0]
    for k in range(1, len(v)):
        top = v[k] if v[k] > top else top
    return top


@no_type_check
@kernel(fast=_SUMS, inner=True)
def _exponentials(v: Any, top: Any) -> Any:
    """Replace v with exp(v - top) and return the sum.

    In-place, because with a second array the order of summation would depend on how the two are aligned, and results
    would not be reproducible.
    """
    total = np.float32(0)
    for k in range(len(v)):
        v[k] = _exp(v[k] - top)
        total += v[k]
    return total


@no_type_check
@kernel(fast=_SUMS, inner=True)
def _dot(a: Any, b: Any) -> Any:
    total = np.float32(0)
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@no_type_check
@kernel()
def add_softmax(
    z: Any, row_index: Any, row_weight: Any, col_index: Any, col_weight: Any, y0: Any, share: Any, out: Any
) -> None:
    """Add `share` times the softmax of pixel rows y0, y0 + 1, … to `out` (rows, W, classes)."""
    K = z.shape[2]
    flat = z.reshape(len(z), -1)
    line, v = np.empty(flat.shape[1], np.float32), np.empty(K, np.float32)
    for r in range(len(out)):
        _fill_line(flat, row_index, row_weight, y0 + r, line)
        for x in range(out.shape[1]):
            _fill_pixel(line, col_index, col_weight, x, K, v)
            factor, pixel = share / _exponentials(v, _largest(v)), out[r, x]
            for k in range(out.shape[2]):
                pixel[k] += factor * v[k]


@no_type_check
@kernel(fast={"contract", "nsz"}, inner=True)
def _gather_gradient(gradient: Any, index: Any, weight: Any, y: Any, line: Any) -> None:
    """Apply the transpose of `_fill_line`."""
    for i in range(index.shape[1]):
        target, factor = gradient[index[y, i]], weight[i, y]
        if factor != 0:
            for n in range(len(line)):
                target[n] += factor * line[n]


@no_type_check
@kernel(fast={"contract", "nsz"}, inner=True)
def _add_pixel(line: Any, index: Any, weight: Any, x: Any, K: Any, g: Any) -> None:
    """Add the gradient g (K) of pixel x to that of its line."""
    for j in range(index.shape[1]):
        target, factor = line[index[x, j] * K : (index[x, j] + 1) * K], weight[j, x]
        for k in range(K):
            target[k] += factor * g[k]


@no_type_check
@kernel()
def cross_entropy_rows(
    z: Any,
    row_index: Any,
    row_weight: Any,
    col_index: Any,
    col_weight: Any,
    labels: Any,
    ignore: Any,
    class_weight: Any,
    smoothing: Any,
    classes: Any,
    begin: Any,
    end: Any,
    gradient: Any,
) -> Any:
    """Sum the loss over pixel rows begin..end of an image, and add its gradient (h, w, K) to `gradient` if not empty.

    With t the label of a pixel, q the softmax of its logits v, f = (1 - smoothing) w_t and s = smoothing / K:
    loss = f (logsum - v_t) + s sum_k w_k (logsum - v_k); gradient = (f + s sum w) q - s w - f [k = t].
    `class_weight` (K) is 0 for the K - `classes` classes of padding.
    """
    h, w, K = z.shape
    flat, gradient_flat = z.reshape(h, w * K), gradient.reshape(len(gradient), w * K)
    line, slope = np.empty(w * K, np.float32), np.empty(w * K, np.float32)
    v = np.empty(K, np.float32)
    smooth = np.float32(smoothing / classes)
    weights = np.float32(0)
    for k in range(K):
        weights += class_weight[k]
    loss = 0.0
    for y in range(begin, end):
        _fill_line(flat, row_index, row_weight, y, line)
        slope[:] = 0
        for x in range(labels.shape[1]):
            target = labels[y, x]
            if target != ignore:
                _fill_pixel(line, col_index, col_weight, x, K, v)
                top, own = _largest(v), v[target]
                mean = _dot(class_weight, v) if smooth > 0 else np.float32(0)
                total = _exponentials(v, top)
                logsum = top + np.log(total)
                keep = np.float32((1 - smoothing) * class_weight[target])
                loss += keep * (logsum - own) + smooth * (weights * logsum - mean)
                if len(gradient) > 0:
                    scale = (keep + smooth * weights) / total
                    for k in range(K):
                        v[k] = scale * v[k] - smooth * class_weight[k]
                    v[target] -= keep
                    _add_pixel(slope, col_index, col_weight, x, K, v)
        if len(gradient) > 0:
            _gather_gradient(gradient_flat, row_index, row_weight, y, slope)
    return loss


@no_type_check
@kernel()
def read_out(p: Any, labels: Any, probability: Any, margin: Any, entropy: Any) -> None:
    """Fill the outputs that are not empty, each (n,), from probabilities p (n, K); the lowest class wins a tie."""
    K = p.shape[1]
    for i in range(len(p)):
        pixel = p[i]
        top = _largest(pixel)
        winner = 0
        while winner < K - 1 and not pixel[winner] >= top:
            winner += 1
        if len(labels):
            labels[i] = winner
        if len(probability):
            probability[i] = top
        if len(margin):
            pixel[winner] = -1
            margin[i] = top - _largest(pixel) if K > 1 else top
            pixel[winner] = top
        if len(entropy):
            total = np.float32(0)
            for k in range(K):
                if pixel[k] > 0:
                    total -= pixel[k] * np.log(pixel[k])
            entropy[i] = total


@no_type_check
@kernel(fast=_SUMS, inner=True)
def _bounds(z: Any, rows: Any, cols: Any, high: Any, low: Any) -> Any:
    """Fill the largest and smallest corner of every class, and return the maximum of the smallest ones."""
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
    """Allocate the arrays of one call of `argmax_rows` outside the kernel, because np.empty compiles slowly."""
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
    """Fill the rows of `out` (H, W) covered by runs `begin` to `end` of `row_starts`, with arrays of `scratch`."""
    for r in range(begin, end):
        y0, y1 = row_starts[r], row_starts[r + 1]
        for c in range(len(col_starts) - 1):
            x0, x1 = col_starts[c], col_starts[c + 1]
            rows, cols = row_index[y0], col_index[x0]
            count = _select(high, _bounds(z, rows, cols, high, low), candidates)
            pixels = (y1 - y0) * (x1 - x0)
            if count <= 1:  # 0 if logits are NaN
                for p in range(pixels):
                    winner[p] = candidates[0] if count else 0
            else:
                _fill_basis(row_weight, col_weight, y0, y1, x0, x1, basis)
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
            for p in range(pixels):
                out[y0 + p // (x1 - x0), x0 + p % (x1 - x0)] = winner[p]
