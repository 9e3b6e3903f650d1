"""Triton kernels for CUDA, with one program per cell of pixels that depend on the same patches.

The corners of a cell are scalars in its program, so that no pixel reads a logit twice and nothing of size K × H × W is
written. Gradients are written as one sum per corner of each cell, in a fixed order, and added to the patches by a
product with two small matrices, so that results are bit-reproducible.

Glossary: B batch, K classes, h w patch grid, H W pixels, T taps of an axis.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import lru_cache
from typing import NamedTuple, no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from meanshifter.ops.upsampling import Axes, Taps, View, axis_taps, bilinear_matrix

LOWEST = tl.constexpr(torch.finfo(torch.float32).min)  # type: ignore[no-untyped-call]


class Axis(NamedTuple):
    """The taps of one axis on the device."""

    inputs: Tensor
    """(n, T) int32."""
    weight: Tensor
    """(T, n)."""
    starts: Tensor
    """(cells + 1,) int32."""
    block: int
    """A power of 2, at least the number of pixels in the longest cell."""

    @property
    def cells(self) -> int:
        """Number of cells along the axis."""
        return len(self.starts) - 1

    @property
    def taps(self) -> int:
        """T."""
        return self.inputs.shape[1]

    def fold(self, patches: int) -> Tensor:
        """Return the matrix (patches, cells · T) that adds the values at the corners of cells to their patches."""
        corners = self.inputs[self.starts[:-1].long()].flatten().long()
        return torch.nn.functional.one_hot(corners, patches).T.to(self.weight.dtype)


def to_device(taps: Taps, device: torch.device) -> Axis:
    """Copy the taps of an axis to a device."""
    longest = int((taps.starts[1:] - taps.starts[:-1]).max())
    inputs, weight, starts = (torch.from_numpy(array).to(device) for array in (taps.inputs, taps.weight, taps.starts))
    return Axis(inputs, weight, starts, triton.next_power_of_2(max(longest, 4)))


@lru_cache(maxsize=32)
def bilinear_axis(n_in: int, padded: int, n_out: int, device: torch.device) -> Axis:
    """Return the axis of `ops.bilinear_matrix`, cached because every training step needs the same ones."""
    return to_device(axis_taps(bilinear_matrix(n_in, padded, n_out)), device)


@no_type_check
@triton.jit
def _logits(
    z, rows_in, rows_w, cols_in, cols_w, y0, y1, x0, x1, ys, xs, k, h, w, H, W,
    TY: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    """Class k in one cell (BY, BX), with the last row and column repeated beyond it.

    A tap that repeats the previous one, with weight 0, is read as 0, because infinity times 0 is NaN.
    """
    v = tl.zeros((BY, BX), tl.float32)
    for j in tl.static_range(TX):
        col = tl.load(cols_in + x0 * TX + j)
        new_col = col == col
        if j > 0:
            new_col = col != tl.load(cols_in + x0 * TX + j - 1)
        line = tl.zeros((BY,), tl.float32)
        for i in tl.static_range(TY):
            row = tl.load(rows_in + y0 * TY + i)
            new = new_col
            if i > 0:
                new = new_col & (row != tl.load(rows_in + y0 * TY + i - 1))
            value = tl.load(z + (k * h + row) * w + col, mask=new, other=0.0)
            line += tl.load(rows_w + i * H + tl.minimum(ys, y1 - 1)) * value
        v += line[:, None] * tl.load(cols_w + j * W + tl.minimum(xs, x1 - 1))[None, :]
    return v


@no_type_check
@triton.jit
def _argmax_cell(
    z, rows_in, rows_w, y_starts, cols_in, cols_w, x_starts, out, K, h, w, H, W,
    TY: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr,
):  # fmt: skip
    y0, y1 = tl.load(y_starts + tl.program_id(0)), tl.load(y_starts + tl.program_id(0) + 1)
    x0, x1 = tl.load(x_starts + tl.program_id(1)), tl.load(x_starts + tl.program_id(1) + 1)
    ys, xs = y0 + tl.arange(0, BY), x0 + tl.arange(0, BX)
    in_y, in_x = ys < y1, xs < x1
    best = tl.full((BY, BX), float("-inf"), tl.float32)
    winner = tl.zeros((BY, BX), tl.int32)
    for k in range(K):
        v = _logits(
            z, rows_in, rows_w, cols_in, cols_w, y0, y1, x0, x1, ys, xs, k, h, w, H, W, TY, TX, BY, BX
        )  # fmt: skip
        wins = (v > best) | ((v != v) & (best == best))  # the first NaN wins, as in torch.argmax
        winner, best = tl.where(wins, k, winner), tl.where(wins, v, best)
    tl.store(out + ys[:, None] * W + xs[None, :], winner, mask=in_y[:, None] & in_x[None, :])


@no_type_check
@triton.jit
def _cross_entropy_cell(
    logits, rows_in, rows_w, y_starts, cols_in, cols_w, x_starts, labels, class_weight, losses, sums,
    ignore, keep_share, smooth, weight_sum, K, h, w, H, W,
    TY: tl.constexpr, TX: tl.constexpr, BY: tl.constexpr, BX: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Loss of one cell and, if requested, the gradient of each class at each of its corners.

    With t the label of a pixel, q the softmax of its logits v, f = keep_share w_t and s = smooth:
    loss = f (logsum - v_t) + s sum_k w_k (logsum - v_k); gradient = (f + s sum w) q - s w - f [k = t].
    A label that is not a class has the factor NaN.
    """
    ry, rx, b = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    ny, nx = tl.num_programs(0), tl.num_programs(1)
    y0, y1 = tl.load(y_starts + ry), tl.load(y_starts + ry + 1)
    x0, x1 = tl.load(x_starts + rx), tl.load(x_starts + rx + 1)
    ys, xs = y0 + tl.arange(0, BY), x0 + tl.arange(0, BX)
    in_y, in_x = ys < y1, xs < x1
    z = logits + b.to(tl.int64) * K * h * w
    inside = in_y[:, None] & in_x[None, :]
    pixel = b.to(tl.int64) * H * W + ys[:, None] * W + xs[None, :]
    target = tl.load(labels + pixel, mask=inside, other=0).to(tl.int64)
    valid = inside & (target != ignore)
    known = (target >= 0) & (target < K)
    keep = tl.load(class_weight + target, mask=valid & known, other=0.0) * keep_share
    keep = tl.where(valid & (known == 0), float("nan"), keep)
    top = tl.full((BY, BX), LOWEST, tl.float32)  # not -inf, since -inf - (-inf) is NaN
    total, own, mean = tl.zeros((BY, BX), tl.float32), tl.zeros((BY, BX), tl.float32), tl.zeros((BY, BX), tl.float32)
    for k in range(K):
        v = _logits(
            z, rows_in, rows_w, cols_in, cols_w, y0, y1, x0, x1, ys, xs, k, h, w, H, W, TY, TX, BY, BX
        )  # fmt: skip
        higher = tl.maximum(top, v)
        total = total * tl.exp(top - higher) + tl.exp(v - higher)
        top = higher
        own = tl.where(target == k, v, own)
        mean += tl.load(class_weight + k) * v
    logsum = top + tl.log(total)
    loss, weights = keep * (logsum - own), tl.load(weight_sum)
    if smooth > 0:
        loss += smooth * (weights * logsum - mean)
    tl.store(losses + (b * ny + ry) * nx + rx, tl.sum(tl.where(valid, loss, 0.0)))
    if GRADIENT:
        share = tl.where(valid, keep + smooth * weights, 0.0)
        for k in range(K):
            v = _logits(
                z, rows_in, rows_w, cols_in, cols_w, y0, y1, x0, x1, ys, xs, k, h, w, H, W, TY, TX, BY, BX
            )  # fmt: skip
            slope = tl.exp(v - logsum) * share - tl.where(target == k, keep, 0.0)
            slope -= tl.where(valid, smooth * tl.load(class_weight + k), 0.0)
            for i in tl.static_range(TY):
                down = tl.load(rows_w + i * H + ys, mask=in_y, other=0.0)
                line = tl.sum(slope * down[:, None], axis=0)
                for j in tl.static_range(TX):
                    across = tl.load(cols_w + j * W + xs, mask=in_x, other=0.0)
                    place = ((b.to(tl.int64) * K + k) * ny * TY + ry * TY + i) * nx * TX + rx * TX + j
                    tl.store(sums + place, tl.sum(line * across))


def _current(tensor: Tensor) -> AbstractContextManager[None]:
    """Make the tensor's device current, because Triton launches kernels on the current device."""
    device: AbstractContextManager[None] = torch.cuda.device_of(tensor)  # type: ignore[no-untyped-call]
    return device


def label_map(view: View) -> Tensor:
    """Compute the label map (H, W) of one view."""
    rows, cols = (to_device(axis_taps(matrix), view.z.device) for matrix in (view.rows, view.cols))
    return _argmax(view.z.detach(), rows, cols)


def upsampled_argmax(logits: Tensor, axes: Axes) -> Tensor:
    """Compute the label maps (B, H, W) of logits (B, K, h, w)."""
    rows, cols = (bilinear_axis(*axis, logits.device) for axis in axes)
    return torch.stack([_argmax(z, rows, cols) for z in logits])


def _argmax(z: Tensor, rows: Axis, cols: Axis) -> Tensor:
    K, h, w = z.shape
    H, W = len(rows.inputs), len(cols.inputs)
    out = torch.empty((H, W), dtype=torch.int32, device=z.device)
    with _current(z):
        _argmax_cell[rows.cells, cols.cells](
            z.contiguous(), *rows[:3], *cols[:3], out, K, h, w, H, W, rows.taps, cols.taps, rows.block, cols.block
        )  # fmt: skip
    return out.to(torch.uint8 if K <= 255 else torch.uint16)


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    axes: Axes,
    weight: Tensor,
    *,
    ignore_index: int,
    smoothing: float,
    with_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute the summed loss of logits (B, K, h, w) and its gradient, which is empty unless requested.

    Where the reference's gradient is NaN at a patch, this one is too, and possibly at its complete row and column.
    """
    rows, cols = (bilinear_axis(*axis, logits.device) for axis in axes)
    B, K, h, w = logits.shape
    H, W = labels.shape[-2:]
    losses = logits.new_empty((B, rows.cells, cols.cells))
    sums = logits.new_empty((B, K, rows.cells * rows.taps, cols.cells * cols.taps) if with_gradient else 0)
    smooth = smoothing / K
    targets = labels.to(torch.uint8) if labels.dtype == torch.bool else labels
    with _current(logits):
        _cross_entropy_cell[rows.cells, cols.cells, B](
            logits.contiguous(), *rows[:3], *cols[:3], targets.contiguous(), weight.contiguous(), losses, sums,
            ignore_index, 1 - smoothing, smooth, weight.sum(), K, h, w, H, W,
            rows.taps, cols.taps, rows.block, cols.block, with_gradient,
        )  # fmt: skip
    with torch.autocast(logits.device.type, enabled=False):
        return losses.sum(), rows.fold(h) @ sums @ cols.fold(w).T if with_gradient else sums
