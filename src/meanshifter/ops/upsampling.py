"""Bilinear upsampling as two small matrices, evaluated one tile of pixels at a time.

Glossary: B batch, K classes, h w patch grid, H W pixels, R C rows and columns of one tile.

Upsampling is separable: class k of the full-resolution logits is ``rows @ z[k] @ cols.T`` with a matrix of a
few non-zero weights a row for each axis. Averages of overlapping windows, flips and a final resize are such
matrices too, so one function serves them all, and only tiles of the product are ever formed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from meanshifter.errors import InputError

Size = tuple[int, int]
Axes = tuple[tuple[int, int, int], tuple[int, int, int]]
"""For rows and columns: patches, the pixels they are upsampled to, and how many of those are kept."""
_CPU_TILE, _GPU_TILE = 1 << 18, 1 << 24
"""Logits of one tile: what caches hold, and what keeps a GPU busy."""


def tile_side(K: int, device: torch.device) -> int:
    """The side of tiles in pixels, so that those of K classes stay small whatever the image."""
    return max(math.isqrt((_CPU_TILE if device.type == "cpu" else _GPU_TILE) // K), 8)


def bilinear_matrix(
    n_in: int, padded: int, n_out: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n_out n_in"]:
    """The weights that take `n_in` values to `padded` by bilinear upsampling, cropped to the first `n_out`.

    Positions are half-pixel centred and clamped at the borders (``align_corners=False`` of
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
            f"size: {n_in} values to {n_out} of {padded}; sizes start at 1 and the crop must fit into the padded size"
        )


@dataclass(frozen=True)
class Tile:
    """One rectangle of pixels, and the part of the patch grid that it depends on."""

    out_rows: slice
    out_cols: slice
    in_rows: slice
    in_cols: slice

    def upsample(self, z: Tensor, rows: Tensor, cols: Tensor) -> Float[Tensor, "K R C"]:
        """The tile of ``rows @ z[k] @ cols.T`` from the whole z (K, h, w), rows (H, h) and cols (W, w).

        One equal product per class (bmm over classes), so that classes with equal logits stay equal to the bit.
        """
        down, across = self._matrices(rows, cols, len(z))
        return _between(down, z[:, self.in_rows, self.in_cols], across.mT)

    def fold(self, pixels: Tensor, rows: Tensor, cols: Tensor) -> Float[Tensor, "K r c"]:
        """The transpose of `upsample`: from pixels (K, R, C) to the part of the patch grid they depend on."""
        down, across = self._matrices(rows, cols, len(pixels))
        return _between(down.mT, pixels, across)

    def _matrices(self, rows: Tensor, cols: Tensor, K: int) -> tuple[Tensor, Tensor]:
        down, across = rows[self.out_rows, self.in_rows], cols[self.out_cols, self.in_cols]
        return down.expand(K, -1, -1), across.expand(K, -1, -1)


def _between(left: Tensor, x: Tensor, right: Tensor) -> Tensor:
    """``left @ x @ right`` of each class for weights of at least 0; one of 0 takes nothing, even of NaN or infinity."""
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
    """Rectangles of at most side × side pixels that cover the output of rows (H, h) and cols (W, w)."""
    down, across = _spans(rows, side), _spans(cols, side)
    for out_rows, in_rows in down:
        for out_cols, in_cols in across:
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
    """From the grid of `logits` (B, K, h, w) to `padded_size`, of which `size` is kept.

    Raises:
        InputError: a size below 1, or one that does not fit into the padded one.
    """
    down, across = zip(logits.shape[-2:], padded_size, size, strict=True)
    for n_in, whole, n_out in (down, across):
        _check_axis(n_in, whole, n_out)
    return down, across


def axis_matrices(axes: Axes, like: Tensor) -> tuple[Tensor, Tensor]:
    """The row and column matrices, on the device of `like` and of its precision, at least float32."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    rows, cols = (bilinear_matrix(*axis, dtype).to(like.device) for axis in axes)
    return rows, cols


def check_logits(logits: Tensor) -> None:
    """Refuse anything but floating-point logits (B, K, h, w)."""
    if logits.ndim != 4 or not logits.is_floating_point() or 0 in logits.shape[1:]:
        raise InputError(
            f"logits: shape {tuple(logits.shape)} of {logits.dtype}; expected floats (B, K, h, w) with K, h, w >= 1"
        )
