"""Bilinear upsampling as products with two small matrices, evaluated tile by tile.

Upsampling is separable: class k of the full-resolution logits is ``rows @ z[k] @ cols.T``, with one matrix per axis
that has a few non-zero weights per row. Averages of overlapping windows, flips and a final resize are such matrices
too, so the same functions apply to all of them, and only tiles of the product are ever computed.

Glossary: B batch, K classes, h w patch grid, H W pixels, R C rows and columns of one tile, n outputs along an axis,
m inputs (patches of all windows), T taps, the inputs of one output.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from meanshifter.errors import InputError

Size = tuple[int, int]
Axes = tuple[tuple[int, int, int], tuple[int, int, int]]
"""For rows and columns: patches, the pixels they are upsampled to, and the number of pixels that are kept."""
_CPU_TILE, _GPU_TILE = 1 << 18, 1 << 24
"""Logits per tile, which fit into CPU caches or keep a GPU busy."""
NEVER = -1e30
"""The logit of padding classes in the CPU kernels, whose softmax is 0."""


def tile_side(K: int, device: torch.device) -> int:
    """Return the side of tiles in pixels, which depends on K but not on the image size."""
    return max(math.isqrt((_CPU_TILE if device.type == "cpu" else _GPU_TILE) // K), 8)


def bilinear_matrix(
    n_in: int, padded: int, n_out: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n_out n_in"]:
    """Return the weights that upsample `n_in` values bilinearly to `padded`, cropped to the first `n_out`.

    Pixel centers are at half-integers and clamped at the borders (``align_corners=False`` of
    `torch.nn.functional.interpolate`, without antialiasing). Computed in float64, returned in `dtype`.

    Raises:
        InputError: a size below 1, or `n_out` above `padded`.
    """
    _check_axis(n_in, padded, n_out)
    position = (torch.arange(n_out, dtype=torch.float64) + 0.5) * (n_in / padded) - 0.5
    position = position.clamp(0, n_in - 1)
    low = position.floor().long()
    high = (low + 1).clamp(max=n_in - 1)
    matrix = torch.zeros(n_out, n_in, dtype=torch.float64)
    row = torch.arange(n_out)
    matrix[row, low] += 1 - (position - low)
    matrix[row, high] += position - low
    return matrix.to(dtype)


def _check_axis(n_in: int, padded: int, n_out: int) -> None:
    if n_in < 1 or not 1 <= n_out <= padded:
        raise InputError(
            f"size: {n_in} values to {n_out} of {padded}; sizes are at least 1, and the crop at most the padded size"
        )


class View(NamedTuple):
    """Patch logits and the matrices that upsample them to pixels: class k is ``rows @ z[k] @ cols.T``."""

    z: Float[Tensor, "K h w"]
    rows: Float[Tensor, "H h"]
    cols: Float[Tensor, "W w"]
    temperature: float = 1.0
    """T: probabilities are the softmax of the upsampled logits divided by T. The label map of a single view does not
    depend on it."""

    def scaled(self, logits: Tensor) -> Tensor:
        """Divide logits by the temperature; a temperature of 1 leaves them untouched."""
        return logits if self.temperature == 1 else logits / self.temperature


@dataclass(frozen=True)
class Tile:
    """A rectangle of pixels, and the part of the patch grid that it depends on."""

    out_rows: slice
    out_cols: slice
    in_rows: slice
    in_cols: slice

    def upsample(self, z: Tensor, rows: Tensor, cols: Tensor) -> Float[Tensor, "K R C"]:
        """Compute the tile of ``rows @ z[k] @ cols.T`` from the full z (K, h, w), rows (H, h) and cols (W, w).

        Every class has the same product (bmm over classes), so that classes with equal logits stay bit-equal.
        """
        down, across = self._matrices(rows, cols, len(z))
        return _between(down, z[:, self.in_rows, self.in_cols], across.mT)

    def fold(self, pixels: Tensor, rows: Tensor, cols: Tensor) -> Float[Tensor, "K r c"]:
        """Apply the transpose of `upsample`, from pixels (K, R, C) to the part of the patch grid they depend on."""
        down, across = self._matrices(rows, cols, len(pixels))
        return _between(down.mT, pixels, across)

    def _matrices(self, rows: Tensor, cols: Tensor, K: int) -> tuple[Tensor, Tensor]:
        down, across = rows[self.out_rows, self.in_rows], cols[self.out_cols, self.in_cols]
        return down.expand(K, -1, -1), across.expand(K, -1, -1)


def _between(left: Tensor, x: Tensor, right: Tensor) -> Tensor:
    """``left @ x @ right`` per class for non-negative weights, where 0 times NaN or infinity is 0."""
    with torch.autocast(x.device.type, enabled=False):
        finite = x.isfinite()
        if finite.all():
            return torch.bmm(left, torch.bmm(x, right))
        out = torch.bmm(left, torch.bmm(x.where(finite, 0), right))
        for places, value in ((x == math.inf, math.inf), (x == -math.inf, -math.inf), (x.isnan(), math.nan)):
            reached = torch.bmm(left, torch.bmm(places.to(x.dtype), right)) > 0
            out = torch.where(reached, out + value, out)
        return out


def tiles(rows: Tensor, cols: Tensor, side: int) -> Iterator[Tile]:
    """Yield rectangles of at most side × side pixels that cover the output of rows (H, h) and cols (W, w)."""
    for (out_rows, in_rows), (out_cols, in_cols) in product(_spans(rows, side), _spans(cols, side)):
        yield Tile(out_rows, out_cols, in_rows, in_cols)


def _spans(matrix: Tensor, side: int) -> list[tuple[slice, slice]]:
    """Runs of at most `side` outputs, each with the inputs from its first to its last non-zero weight."""
    used = (matrix != 0).cpu()
    spans = []
    for start in range(0, len(matrix), side):
        stop = min(start + side, len(matrix))
        inputs = used[start:stop].any(0).nonzero()
        spans.append((slice(start, stop), slice(int(inputs[0]), int(inputs[-1]) + 1)))
    return spans


def upsampling_axes(logits: Tensor, size: Sequence[int], padded_size: Sequence[int]) -> Axes:
    """Describe upsampling from the grid of `logits` (B, K, h, w) to `padded_size`, of which `size` is kept.

    Raises:
        InputError: a size below 1, or above the padded one.
    """
    down, across = zip(logits.shape[-2:], padded_size, size, strict=True)
    for n_in, padded, n_out in (down, across):
        _check_axis(n_in, padded, n_out)
    return down, across


def axis_matrices(axes: Axes, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the row and column matrices on the device of `like` and in its precision, at least float32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    rows, cols = (bilinear_matrix(*axis, dtype).to(like.device) for axis in axes)
    return rows, cols


def check_logits(logits: Tensor) -> None:
    """Raise unless `logits` are floats of shape (B, K, h, w)."""
    if logits.ndim != 4 or not logits.is_floating_point() or 0 in logits.shape[1:]:
        raise InputError(
            f"logits: shape {tuple(logits.shape)} of {logits.dtype}; expected floats (B, K, h, w) with K, h, w >= 1"
        )


SPAN = 32
"""Maximum outputs per run, so that a cell's scores fit into the L1 cache."""


class Taps(NamedTuple):
    """Output i of an axis is the sum of ``weight[t, i] * x[inputs[i, t]]``; the weights of each output sum to 1."""

    inputs: npt.NDArray[np.int32]
    """(n, T), ascending; if an output has fewer than T inputs, its last one is repeated with weight 0."""
    weight: npt.NDArray[np.float32]
    """(T, n)."""
    starts: npt.NDArray[np.int32]
    """Start of each run of outputs with the same inputs, and n at the end."""


def group_weights(inputs: npt.NDArray[np.int32], weight: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sum the weights (T, n) over the inputs of each window, which are neighbors, as (n, T)."""
    group = np.cumsum(np.diff(inputs, axis=1, prepend=inputs[:, :1]) > 1, axis=1)
    same = group[:, :, None] == group[:, None, :]
    found: npt.NDArray[np.float32] = (same * weight.T[:, None, :]).sum(2, dtype=np.float32)
    return found


def _joined(
    dense: npt.NDArray[np.float32], index: npt.NDArray[np.int32], count: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Give outputs in the middle of an input the inputs of the next output, so that they belong to its run.

    With an odd number of outputs per input these are a third of all, or fewer. An output is left alone where windows
    begin or end, that is, where their weights would differ from those of the next output.
    """
    widest = index.shape[1]
    own = np.arange(widest) < count[:, None]
    known = (index[:-1, :, None] == index[1:, None, :]).any(2) | ~own[:-1]
    places = np.flatnonzero(known.all(1) & (count[:-1] < count[1:]))
    inputs, theirs = index[places + 1], own[places + 1]
    here, there = (
        group_weights(inputs, np.where(theirs, dense[rows[:, None], inputs], 0).T) for rows in (places, places + 1)
    )
    places = places[(np.abs(here - there) < 1e-6).all(1)]
    joined = np.arange(len(index))
    joined[places] += 1
    return index[joined], count[joined]


def axis_taps(matrix: Tensor, *, join: bool = False) -> Taps:
    """Convert a dense matrix (n, m) of non-negative weights to taps.

    `join`: give an output in the middle of an input, which needs no other, those of the next output, with weight 0, so
    that there are fewer runs. Only for finite inputs, since 0 times infinity is NaN.
    """
    dense = matrix.detach().cpu().numpy()
    row, column = dense.nonzero()
    count = np.bincount(row, minlength=len(dense))
    place = np.arange(len(row)) - (np.cumsum(count) - count)[row]
    widest = int(count.max())
    last = column[np.cumsum(count) - 1]
    index = np.repeat(last[:, None], widest, axis=1).astype(np.int32)
    index[row, place] = column
    if join:
        index, count = _joined(dense, index, count)
    own = np.arange(widest) < count[:, None]
    weight = np.where(own, dense[np.arange(len(dense))[:, None], index], 0).astype(np.float32).T.copy()
    changed = np.flatnonzero((index[1:] != index[:-1]).any(1)) + 1
    edges = np.concatenate([[0], changed, [len(index)]])
    runs = [np.arange(start, stop, SPAN) for start, stop in pairwise(edges)]
    return Taps(index, weight, np.concatenate([*runs, [len(index)]]).astype(np.int32))
