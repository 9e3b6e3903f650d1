"""Triton kernels of `ops.loss_terms`: its two passes, with one program per cell as in `ops.cuda`.

Glossary: as in `ops.cuda`. What is not requested is neither read nor written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from meanshifter.ops.cuda import LOWEST, _current, _logits, bilinear_axis

if TYPE_CHECKING:
    from meanshifter.ops.loss_passes import Pixels, Recipe


@no_type_check
@triton.jit
def _pixels(
    labels, near, y_starts, x_starts, ignore, near_weight, K, H, W,
    BY: tl.constexpr, BX: tl.constexpr, NEAR: tl.constexpr,
):  # fmt: skip
    """The pixels of a cell: where they are, the target, and how often each counts (NaN if it is not a class)."""
    ry, rx, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    y0, y1 = tl.load(y_starts + ry), tl.load(y_starts + ry + 1)
    x0, x1 = tl.load(x_starts + rx), tl.load(x_starts + rx + 1)
    ys, xs = y0 + tl.arange(0, BY), x0 + tl.arange(0, BX)
    inside = (ys < y1)[:, None] & (xs < x1)[None, :]
    pixel = b.to(tl.int64) * H * W + ys[:, None] * W + xs[None, :]
    target = tl.load(labels + pixel, mask=inside, other=0).to(tl.int64)
    valid = inside & (target != ignore)
    known = (target >= 0) & (target < K)
    count = tl.full((BY, BX), 1.0, tl.float32)
    if NEAR:
        count = tl.where(tl.load(near + pixel, mask=inside, other=0) != 0, near_weight, count)
    count = tl.where(valid, tl.where(known, count, float("nan")), 0.0)
    return y0, y1, x0, x1, ys, xs, pixel, target, valid, known, count


@no_type_check
@triton.jit
def _sums_cell(
    logits, rows_in, rows_w, y_starts, cols_in, cols_w, x_starts, labels, near, losses, overlap,
    ignore, near_weight, K, h, w, H, W,
    TY: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
    NEAR: tl.constexpr, LOSSES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Fill `losses` (B, H, W) and `overlap` (B, 3, K, cells), as in `Sums`, for one cell."""
    ry, rx, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    y0, y1, x0, x1, ys, xs, pixel, target, valid, _known, count = _pixels(
        labels, near, y_starts, x_starts, ignore, near_weight, K, H, W, BY, BX, NEAR
    )  # fmt: skip
    z = logits + b.to(tl.int64) * K * h * w
    top = tl.full((BY, BX), LOWEST, tl.float32)
    total, own = tl.zeros((BY, BX), tl.float32), tl.zeros((BY, BX), tl.float32)
    for k in range(K):
        v = _logits(
            z, rows_in, rows_w, cols_in, cols_w, y0, y1, x0, x1, ys, xs, k, h, w, H, W, TY, TX, BY, BX
        )  # fmt: skip
        higher = tl.maximum(top, v)
        total = total * tl.exp(top - higher) + tl.exp(v - higher)
        top = higher
        own = tl.where(target == k, v, own)
    logsum = top + tl.log(total)
    if LOSSES:
        tl.store(losses + pixel, tl.where(logsum - own <= 0, 0.0, logsum - own), mask=valid)  # NaN stays
    if OVERLAP:
        cells = tl.num_programs(0) * tl.num_programs(1)
        place = overlap + b.to(tl.int64) * 3 * K * cells + ry * tl.num_programs(1) + rx
        for k in range(K):
            v = _logits(
                z, rows_in, rows_w, cols_in, cols_w, y0, y1, x0, x1, ys, xs, k, h, w, H, W, TY, TX, BY, BX
            )  # fmt: skip
            q = tl.where(valid, tl.exp(v - logsum) * count, 0.0)
            tl.store(place + k * cells, tl.sum(tl.where(target == k, q, 0.0)))
            tl.store(place + (K + k) * cells, tl.sum(q))
            tl.store(place + (2 * K + k) * cells, tl.sum(tl.where(target == k, count, 0.0)))


@no_type_check
@triton.jit
def _focal(each, p, gamma, BY: tl.constexpr, BX: tl.constexpr):
    """Of -log q_t and p = q_t: the factor (1 - p)^gamma, and the negative derivative of the loss in log q_t."""
    rate, slope = tl.full((BY, BX), 1.0, tl.float32), tl.full((BY, BX), 1.0, tl.float32)
    if gamma > 0:
        rest = tl.where(1 - p < 0, 0.0, 1 - p)
        base = tl.where(rest == 0, 1.0, rest)
        rate = tl.where(rest == 0, 0.0, tl.exp(gamma * tl.log(base)))
        slope = rate + tl.where(p == 0, 0.0, gamma * p * each * rate / base)
    return rate, slope


@no_type_check
@triton.jit
def _loss_cell(
    logits, rows_in, rows_w, y_starts, cols_in, cols_w, x_starts, labels, near, hard, class_weight, region,
    scalars, losses, sums, ignore, near_weight, smoothing, gamma, K, h, w, H, W,
    TY: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
    NEAR: tl.constexpr, HARD: tl.constexpr, REGION: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Cross-entropy and focal loss of one cell, and the gradient at its corners with that of the region.

    `scalars` holds the factors of cross-entropy and focal loss and the sum of the class weights; formulas as in
    `loss_terms._make`.
    """
    ry, rx, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    ny, nx = tl.num_programs(0), tl.num_programs(1)
    y0, y1, x0, x1, ys, xs, pixel, target, valid, known, count = _pixels(
        labels, near, y_starts, x_starts, ignore, near_weight, K, H, W, BY, BX, NEAR
    )  # fmt: skip
    in_y, in_x = ys < y1, xs < x1
    z = logits + b.to(tl.int64) * K * h * w
    weighted = tl.load(class_weight + target, mask=valid & known, other=0.0) * count
    part = tl.full((BY, BX), 1.0, tl.float32)
    if HARD:
        part = tl.load(hard + pixel, mask=valid, other=0.0)
    keep = tl.load(scalars) * (1 - smoothing) * weighted * part
    smooth = tl.load(scalars) * smoothing / K * count * part
    scale, weights = tl.load(scalars + 1) * weighted, tl.load(scalars + 2)
    top = tl.full((BY, BX), LOWEST, tl.float32)
    total, own, mean = tl.zeros((BY, BX), tl.float32), tl.zeros((BY, BX), tl.float32), tl.zeros((BY, BX), tl.float32)
    dot = tl.zeros((BY, BX), tl.float32)
    for k in range(K):
        v = _logits(
            z, rows_in, rows_w, cols_in, cols_w, y0, y1, x0, x1, ys, xs, k, h, w, H, W, TY, TX, BY, BX
        )  # fmt: skip
        higher = tl.maximum(top, v)
        shrink, e = tl.exp(top - higher), tl.exp(v - higher)
        total = total * shrink + e
        if REGION:
            dot = dot * shrink + tl.load(region + k) * e
        top = higher
        own = tl.where(target == k, v, own)
        mean += tl.load(class_weight + k) * v
    logsum = top + tl.log(total)
    each = logsum - own
    loss = tl.where(keep == 0, 0.0, keep * each)
    loss += tl.where(smooth == 0, 0.0, smooth * (weights * logsum - mean))
    p = tl.exp(-each)
    rate, slope_of_own = _focal(each, p, gamma, BY, BX)
    loss += tl.where((scale == 0) | (rate == 0), 0.0, scale * rate * each)
    tl.store(losses + (b * ny + ry) * nx + rx, tl.sum(tl.where(valid, loss, 0.0)))
    if GRADIENT:
        keep += tl.where(scale == 0, 0.0, scale * slope_of_own)
        common, own_region = keep + smooth * weights, tl.zeros((BY, BX), tl.float32)
        if REGION:
            own_region = count * tl.load(region + K + target, mask=valid & known, other=0.0) * p
            common -= count * dot / total + own_region
        for k in range(K):
            v = _logits(
                z, rows_in, rows_w, cols_in, cols_w, y0, y1, x0, x1, ys, xs, k, h, w, H, W, TY, TX, BY, BX
            )  # fmt: skip
            rise = common
            if REGION:
                rise += count * tl.load(region + k)
            slope = tl.exp(v - logsum) * rise - smooth * tl.load(class_weight + k)
            slope = tl.where(valid, slope + tl.where(target == k, own_region - keep, 0.0), 0.0)
            for i in tl.static_range(TY):
                down = tl.load(rows_w + i * H + ys, mask=in_y, other=0.0)
                line = tl.sum(slope * down[:, None], axis=0)
                for j in tl.static_range(TX):
                    across = tl.load(cols_w + j * W + xs, mask=in_x, other=0.0)
                    place = ((b.to(tl.int64) * K + k) * ny * TY + ry * TY + i) * nx * TX + rx * TX + j
                    tl.store(sums + place, tl.sum(line * across))


def loss_sums(pixels: Pixels, *, losses: bool, overlap: bool, errors: bool) -> tuple[Tensor, Tensor, None, None]:
    """Collect the `Sums` of `ops.loss_terms`, without `errors`, which must not be requested."""
    assert not errors
    z, labels = pixels.logits, _integers(pixels.labels)
    rows, cols = (bilinear_axis(*axis, z.device) for axis in pixels.axes)
    (B, K, h, w), (H, W) = z.shape, labels.shape[-2:]
    found = z.new_zeros(labels.shape if losses else 0)
    sums = z.new_empty((B, 3, K, rows.cells * cols.cells) if overlap else 0)
    near = labels if pixels.near is None else pixels.near
    with _current(z):
        _sums_cell[rows.cells, cols.cells, B](
            z.contiguous(), *rows[:3], *cols[:3], labels, near, found, sums,
            pixels.ignore_index, float(pixels.near_weight), K, h, w, H, W,
            rows.taps, cols.taps, rows.block, cols.block, pixels.near is not None, losses, overlap,
        )  # fmt: skip
    return found, sums.sum((0, 3), dtype=torch.float64) if overlap else sums, None, None


def weighted_loss(pixels: Pixels, recipe: Recipe, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Make the second pass of `ops.loss_terms`; where its gradient is not finite, see `cuda.cross_entropy`."""
    z, labels, weight = pixels.logits, _integers(pixels.labels), recipe.weight
    rows, cols = (bilinear_axis(*axis, z.device) for axis in pixels.axes)
    (B, K, h, w), (H, W) = z.shape, labels.shape[-2:]
    losses = z.new_empty((B, rows.cells, cols.cells))
    sums = z.new_empty((B, K, rows.cells * rows.taps, cols.cells * cols.taps) if with_gradient else 0)
    near, hard = (labels if each is None else each for each in (pixels.near, recipe.hard))
    region = weight if recipe.region is None else recipe.region.to(z.dtype).contiguous()
    scalars = torch.stack([recipe.cross_entropy, recipe.focal, weight.sum()]).to(z.dtype)
    with _current(z):
        _loss_cell[rows.cells, cols.cells, B](
            z.contiguous(), *rows[:3], *cols[:3], labels, near, hard, weight.contiguous(), region,
            scalars, losses, sums, pixels.ignore_index, float(pixels.near_weight), float(recipe.smoothing),
            float(recipe.gamma), K, h, w, H, W, rows.taps, cols.taps, rows.block, cols.block,
            pixels.near is not None, recipe.hard is not None, recipe.region is not None, with_gradient,
        )  # fmt: skip
    with torch.autocast(z.device.type, enabled=False):
        return losses.sum(), rows.fold(h) @ sums @ cols.fold(w).T if with_gradient else sums


def _integers(labels: Tensor) -> Tensor:
    return (labels.to(torch.uint8) if labels.dtype == torch.bool else labels).contiguous()
