"""Sliding windows along one axis, and the matrix that averages them and resizes the result.

MMSegmentation's `slide_inference` upsamples the logits of each window to pixels, adds them into a K × H × W
tensor, divides by the number of windows over each pixel and resizes to the size of the original image. All of
that is linear and separable, so here the patch logits of all windows lie side by side in one mosaic
z (K, nr·h, nc·w), and one matrix for each axis does the rest: class k is ``rows @ z[k] @ cols.T``.
`ops.label_map` evaluates it, for a band of rows at a time.

Glossary: P patch size, n windows along the axis, h patches of one window along it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from meanshifter.errors import InputError
from meanshifter.ops import bilinear_matrix


def check_windows(window: int | None, stride: int) -> None:
    """Refuse windows and strides that would leave pixels uncovered.

    Raises:
        InputError: a window or stride below 1, or a stride above the window.
    """
    if window is None:
        return
    if window < 1:
        raise InputError(f"window: {window} pixels; it must be at least 1, or None for the whole image")
    if stride < 1:
        raise InputError(f"stride: {stride} pixels; it must be at least 1")
    if stride > window:
        raise InputError(
            f"stride: {stride} is above the window of {window} pixels and would skip pixels; use 1 to {window}"
        )


def window_starts(length: int, window: int | None, stride: int) -> tuple[int, ...]:
    """Where the windows begin on an axis of `length` pixels, as in MMSegmentation's `slide_inference`.

    Their number is ``max(length - window + stride - 1, 0) // stride + 1``; the last is shifted back inside.
    Every window is ``min(window, length)`` pixels wide; None is one window over the whole axis.
    """
    check_windows(window, stride)
    if window is None:
        return (0,)
    count = max(length - window + stride - 1, 0) // stride + 1
    return tuple(max(min(i * stride, length - window), 0) for i in range(count))


@dataclass(frozen=True, eq=False)
class Axis:
    """The windows along one axis, and the matrix from their patches to the pixels of the result."""

    starts: tuple[int, ...]
    """Where the windows begin."""
    width: int
    """Pixels of each."""
    patches: int
    """Patches of each."""
    matrix: Float[Tensor, "size all_patches"]

    def band(self, start: int, stop: int) -> tuple[slice, Float[Tensor, "band used"]]:
        """The patches that pixels `start` to `stop` depend on, and their part of the matrix."""
        used = (self.matrix[start:stop] != 0).any(0).nonzero()
        patches = slice(int(used[0]), int(used[-1]) + 1)
        return patches, self.matrix[start:stop, patches]


@lru_cache(maxsize=8)
def axis(length: int, size: int, *, window: int | None, stride: int, patch_size: int, stretch: bool = False) -> Axis:
    """The windows over `length` pixels of the resized image, and their way to `size` pixels of the result."""
    starts = window_starts(length, window, stride)
    width = length if window is None else min(window, length)
    matrix = axis_matrix(length, size, window=window, stride=stride, patch_size=patch_size, stretch=stretch)
    return Axis(starts, width, -(-width // patch_size), matrix)


def axis_matrix(
    length: int, size: int, *, window: int | None, stride: int, patch_size: int, stretch: bool = False
) -> Float[Tensor, "size patches"]:
    """The matrix from the patch logits of all windows along one axis to `size` pixels.

    It upsamples each window from h patches to h·P pixels (bilinear, align_corners=False), crops what the
    model padded, places it, divides by the number of windows over each pixel of the axis of `length` pixels,
    and resizes from `length` to `size`. `stretch`: the h patches of a window, padding and all, are upsampled to
    its own pixels instead, as MMSegmentation does. Computed in float64, returned in float32 on the CPU.
    """
    width = length if window is None else min(window, length)
    patches = -(-width // patch_size)
    upsample = bilinear_matrix(patches, width if stretch else patches * patch_size, width, torch.float64)
    starts = window_starts(length, window, stride)
    matrix = torch.zeros(length, len(starts) * patches, dtype=torch.float64)
    count = torch.zeros(length, 1, dtype=torch.float64)
    for i, start in enumerate(starts):
        matrix[start : start + width, i * patches : (i + 1) * patches] += upsample
        count[start : start + width] += 1
    matrix /= count
    if size != length:
        matrix = F.interpolate(matrix.T[None], size=size, mode="linear", align_corners=False)[0].T
    return matrix.float().contiguous()
