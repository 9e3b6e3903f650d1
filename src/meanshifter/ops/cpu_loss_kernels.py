"""Compiled CPU kernels of `ops.loss_terms`: its two passes over the pixels of an image.

Glossary: as in `ops.cpu_kernels`. Arrays of what is not requested are empty.
"""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np

from meanshifter.ops.cpu_kernels import (
    _add_pixel,
    _dot,
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
    overlap: Any,
) -> None:
    """Fill the -log q_t of pixel rows begin..end in `losses` (H, W), and add to `overlap` (3, K) as in `Sums`."""
    h, w, K = z.shape
    flat = z.reshape(h, w * K)
    line, v = np.empty(w * K, np.float32), np.empty(K, np.float32)
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
                if len(losses) > 0:
                    loss = top + np.log(total) - own
                    losses[y, x] = loss if loss > 0 else np.float32(0)
                if overlap.shape[1] > 0:
                    count = np.float32(near_weight if len(near) > 0 and near[y, x] else 1)
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
    class_weight: Any,
    classes: Any,
    smoothing: Any,
    cross_entropy: Any,
    focal: Any,
    gamma: Any,
    region: Any,
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
    loss = 0.0
    with_region = region.shape[1] > 0 and len(gradient) > 0
    for y in range(begin, end):
        _fill_line(flat, row_index, row_weight, y, line)
        slope[:] = 0
        for x in range(labels.shape[1]):
            target = labels[y, x]
            part = hard[y, x] if len(hard) > 0 else np.float32(1)
            if target != ignore and (part > 0 or focal != 0 or with_region):
                _fill_pixel(line, col_index, col_weight, x, K, v)
                count = np.float32(near_weight if len(near) > 0 and near[y, x] else 1)
                kept = np.float32(cross_entropy) * count * part
                keep = np.float32(1 - smoothing) * kept * class_weight[target]
                smooth = kept * np.float32(smoothing / classes)
                top, own = _largest(v), v[target]
                mean = _dot(class_weight, v) if smooth > 0 else np.float32(0)
                total = _exponentials(v, top)
                logsum = top + np.log(total)
                p = v[target] / total
                loss += keep * (logsum - own) + smooth * (weights * logsum - mean)
                if focal != 0:
                    scale = np.float32(focal) * count * class_weight[target]
                    value, slope_of_own = _focal(logsum - own, p, gamma)
                    loss += scale * value
                    keep += scale * slope_of_own
                if len(gradient) > 0:
                    own_region = count * region[1, target] if with_region else np.float32(0)
                    common = keep + smooth * weights
                    if with_region:
                        common -= count * _dot(region[0], v) / total + own_region * p
                    _to_slope(v, np.float32(1) / total, common, count, region[0], smooth, class_weight)
                    v[target] += own_region * p - keep
                    _add_pixel(slope, col_index, col_weight, x, K, v)
        if len(gradient) > 0:
            _gather_gradient(gradient_flat, row_index, row_weight, y, slope)
    return loss
