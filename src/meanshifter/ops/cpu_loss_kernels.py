"""Compiled CPU kernels of `ops.loss_terms`: its two passes over the pixels of an image.

Glossary: as in `ops.cpu_kernels`. Arrays of what is not requested are empty.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np

from meanshifter.ops.cpu_kernels import (
    _add_pixel,
    _dot,
    _exp,
    _exponentials,
    _fill_line,
    _fill_pixel,
    _gather_gradient,
    _largest,
)
from meanshifter.utils.environment import kernel


@no_type_check
@kernel(fast={"contract", "nsz"}, inner=True)
def _add_scaled(out: Any, factor: Any, v: Any) -> None:
    for k in range(len(out)):
        out[k] += factor * v[k]


@no_type_check
@kernel(fast={"contract", "nsz"}, inner=True)
def _to_probabilities(v: Any, logsum: Any) -> None:
    for k in range(len(v)):
        v[k] = _exp(v[k] - logsum)


@no_type_check
@kernel(inner=True)
def _bin(error: Any, bins: Any) -> Any:
    return min(max(int(error * np.float32(bins)), 0), bins - 1)


@no_type_check
@kernel(inner=True)
def _count_errors(errors: Any, v: Any, inverse: Any, target: Any, count: Any) -> None:
    """Add a pixel to `Sums.errors`, here (2, bins, K): a pixel's classes mostly share a bin, so lie side by side."""
    bins, p = errors.shape[1], v[target] * inverse
    for k in range(len(v)):
        errors[1, _bin(v[k] * inverse, bins), k] += count
    errors[1, _bin(p, bins), target] -= count
    errors[0, _bin(np.float32(1) - p, bins), target] += count


@no_type_check
@kernel(inner=True)
def _add_slopes(d: Any, region: Any, slopes: Any, v: Any, inverse: Any, target: Any) -> Any:
    """Fill d with `region` and the derivatives of the Lovász loss in q_k, and return what a pixel adds to that loss."""
    bins, value = slopes.shape[1], np.float32(0)
    for k in range(slopes.shape[2]):
        q = v[k] * inverse
        others = k != target
        slope = slopes[1, _bin(q, bins), k] if others else -slopes[0, _bin(np.float32(1) - q, bins), k]
        value += slope * (q if others else q - np.float32(1))
        d[k] = slope + (region[0, k] if region.shape[1] > 0 else np.float32(0))
    return value


@no_type_check
@kernel()
def sum_rows(
    z: Any,
    row_index: Any,
    row_weight: Any,
    col_index: Any,
    col_weight: Any,
    labels: Any,
    ignore: Any,
    near: Any,
    near_weight: Any,
    begin: Any,
    end: Any,
    losses: Any,
    logsums: Any,
    overlap: Any,
    errors: Any,
) -> None:
    """Fill rows begin..end of `losses` and `logsums` (H, W), and add to `overlap` and `errors`, as in `Sums`."""
    h, w, K = z.shape
    flat = z.reshape(h, w * K)
    line, v = np.empty(w * K, np.float32), np.empty(K, np.float32)
    near_count = np.float32(near_weight)
    predicted = np.empty(K if overlap.shape[1] > 0 else 0, np.float32)  # of a row, since float32 is short for an image
    for y in range(begin, end):
        _fill_line(flat, row_index, row_weight, y, line)
        predicted[:] = 0
        for x in range(labels.shape[1]):
            target = labels[y, x]
            if target != ignore:
                _fill_pixel(line, col_index, col_weight, x, K, v)
                top, own = _largest(v), v[target]
                total = _exponentials(v, top)
                logsum = top + np.log(total)
                if len(losses) > 0:
                    losses[y, x] = logsum - own if logsum > own else np.float32(0)
                if len(logsums) > 0:
                    logsums[y, x] = logsum
                count = near_count if len(near) > 0 and near[y, x] else np.float32(1)
                if errors.shape[2] > 0:
                    _count_errors(errors, v, np.float32(1) / total, target, count)
                if overlap.shape[1] > 0:
                    _add_scaled(predicted, count / total, v)
                    overlap[0, target] += count * v[target] / total
                    overlap[2, target] += count
        for k in range(len(predicted)):
            overlap[1, k] += predicted[k]


@no_type_check
@kernel(inner=True)
def _focal(loss: Any, p: Any, gamma: Any) -> Any:
    """The focal loss of -log q_t and p = q_t, and the negative of its derivative in log q_t."""
    rest = np.float32(1) - p
    if gamma == 0:
        return loss, np.float32(1)
    if rest <= 0:
        return np.float32(0), np.float32(0)
    rate = rest * rest if gamma == 2 else rest ** np.float32(gamma)
    further = np.float32(gamma) * p * loss * rate / rest if p > 0 else np.float32(0)
    return rate * loss, rate + further


@no_type_check
@kernel(fast={"contract", "nsz"}, inner=True)
def _to_slope(v: Any, inverse: Any, common: Any, count: Any, region: Any, smooth: Any, class_weight: Any) -> None:
    """Replace the exponentials v with the gradient in the logits, except for what only the target's has."""
    if len(region) > 0:
        for k in range(len(v)):
            v[k] = inverse * v[k] * (common + count * region[k]) - smooth * class_weight[k]
    else:
        for k in range(len(v)):
            v[k] = common * inverse * v[k] - smooth * class_weight[k]


@no_type_check
@kernel()
def loss_rows(
    z: Any,
    row_index: Any,
    row_weight: Any,
    col_index: Any,
    col_weight: Any,
    labels: Any,
    ignore: Any,
    near: Any,
    near_weight: Any,
    hard: Any,
    logsums: Any,
    class_weight: Any,
    classes: Any,
    smoothing: Any,
    cross_entropy: Any,
    focal: Any,
    gamma: Any,
    region: Any,
    slopes: Any,
    begin: Any,
    end: Any,
    gradient: Any,
) -> Any:
    """Sum cross-entropy and focal loss over rows begin..end, and add the gradient with that of the region if not empty.

    As `cpu_kernels.cross_entropy_rows`, with a factor per pixel and per loss; `region` (2, K) holds the derivatives
    a_k + b_k [k = t] of the other terms in the probabilities q_k, whose gradient is q_k (d_k - sum_j q_j d_j).
    """
    h, w, K = z.shape
    flat, gradient_flat = z.reshape(h, w * K), gradient.reshape(len(gradient), w * K)
    line, slope = np.empty(w * K, np.float32), np.empty(w * K, np.float32)
    v = np.empty(K, np.float32)
    weights = np.float32(0)
    for k in range(K):
        weights += class_weight[k]
    share, even = np.float32(cross_entropy * (1 - smoothing)), np.float32(cross_entropy * smoothing / classes)
    scale, near_count = np.float32(focal), np.float32(near_weight)
    loss = 0.0
    with_region, with_slopes = region.shape[1] > 0 and len(gradient) > 0, slopes.shape[2] > 0
    d = region[0].copy() if with_region else np.zeros(K if with_slopes else 0, np.float32)
    for y in range(begin, end):
        _fill_line(flat, row_index, row_weight, y, line)
        slope[:] = 0
        for x in range(labels.shape[1]):
            target = labels[y, x]
            part = hard[y, x] if len(hard) > 0 else np.float32(1)
            if target != ignore and (part > 0 or scale != 0 or with_region or with_slopes):
                _fill_pixel(line, col_index, col_weight, x, K, v)
                count = near_count if len(near) > 0 and near[y, x] else np.float32(1)
                keep, smooth = share * count * part * class_weight[target], even * count * part
                own = v[target]
                mean = _dot(class_weight, v) if smooth > 0 else np.float32(0)
                if len(logsums) > 0:
                    logsum, total = logsums[y, x], np.float32(1)
                    _to_probabilities(v, logsum)
                else:
                    top = _largest(v)
                    total = _exponentials(v, top)
                    logsum = top + np.log(total)
                p = v[target] / total
                loss += keep * (logsum - own) + smooth * (weights * logsum - mean)
                if scale != 0:
                    value, slope_of_own = _focal(logsum - own, p, gamma)
                    loss += scale * count * class_weight[target] * value
                    keep += scale * count * class_weight[target] * slope_of_own
                if with_slopes:
                    loss += count * _add_slopes(d, region, slopes, v, np.float32(1) / total, target)
                if len(gradient) > 0:
                    own_region = count * region[1, target] if with_region else np.float32(0)
                    common = keep + smooth * weights
                    common -= count * _dot(d, v) / total + own_region * p
                    _to_slope(v, np.float32(1) / total, common, count, d, smooth, class_weight)
                    v[target] += own_region * p - keep
                    _add_pixel(slope, col_index, col_weight, x, K, v)
        if len(gradient) > 0:
            _gather_gradient(gradient_flat, row_index, row_weight, y, slope)
    return loss
