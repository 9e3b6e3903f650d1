"""Compiled CPU kernels: softmax and cross-entropy of upsampled logits, pixel by pixel.

Glossary: K classes, padded to a multiple of `LANES`, T taps of a pixel along an axis; z (h, w, K) patch logits, classes
last; a line (w, K) is z interpolated to one row of pixels.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np

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
