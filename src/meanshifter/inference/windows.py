"""Sliding windows along one axis, and the matrix that averages them and resizes the result.

MMSegmentation's `slide_inference` upsamples the logits of each window to pixels, adds them to a K × H × W tensor,
divides by the number of windows at each pixel and resizes to the size of the original image. All of that is linear and
separable, so here the patch logits of all windows are tiled into one tensor z (K, nr·h, nc·w), and one matrix per axis
does the rest: class k is ``rows @ z[k] @ cols.T``. `ops.label_map` evaluates it for a band of rows at a time.

Glossary: P patch size, K classes, n windows along an axis, h w patches of one window, H W pixels of the result.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, product
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from meanshifter.data.rows import FileRows
from meanshifter.errors import InputError, is_out_of_memory
from meanshifter.ops import View, bilinear_matrix

Blend = Literal["constant", "cosine"]


def check_windows(window: int | None, stride: int) -> None:
    """Check that windows cover every pixel.

    Raises:
        InputError: a window or stride below 1, or a stride above the window.
    """
    if window is None:
        return
    if window < 1:
        raise InputError(f"window: {window} pixels; it must be at least 1, or None for the full image")
    if stride < 1:
        raise InputError(f"window_stride: {stride} pixels; it must be at least 1")
    if stride > window:
        raise InputError(
            f"window_stride: {stride} is above the window of {window} pixels and would skip pixels; use 1 to {window}"
        )


def window_starts(length: int, window: int | None, stride: int) -> tuple[int, ...]:
    """Return the starts of the windows on an axis of `length` pixels, as in MMSegmentation's `slide_inference`.

    There are ``max(length - window + stride - 1, 0) // stride + 1``; the last one is shifted back inside. Each is
    ``min(window, length)`` pixels wide; None is one window over the full axis.
    """
    check_windows(window, stride)
    if window is None:
        return (0,)
    count = max(length - window + stride - 1, 0) // stride + 1
    return tuple(max(min(i * stride, length - window), 0) for i in range(count))


def blend_weights(width: int, blend: Blend) -> Float[Tensor, " width"]:
    """Weights of the pixels of a window where windows overlap, in float64.

    "constant": 1. "cosine": the Hann window, sin² from border to border.
    """
    place = (torch.arange(width, dtype=torch.float64) + 0.5) / width
    return torch.ones_like(place) if blend == "constant" else (torch.pi * place).sin().square()


@dataclass(frozen=True, eq=False)
class Axis:
    """The windows along one axis, and the matrix from their patches to the pixels of the result."""

    starts: tuple[int, ...]
    """First pixel of each window."""
    width: int
    """Pixels per window."""
    patches: int
    """Patches per window."""
    matrix: Float[Tensor, "size all_patches"]

    def band(self, start: int, stop: int) -> tuple[slice, Float[Tensor, "band used"]]:
        """Return the patches that pixels `start` to `stop` depend on, and their part of the matrix."""
        used = (self.matrix[start:stop] != 0).any(0).nonzero()
        patches = slice(int(used[0]), int(used[-1]) + 1)
        return patches, self.matrix[start:stop, patches]


@lru_cache(maxsize=8)
def axis(
    length: int,
    size: int,
    *,
    window: int | None,
    stride: int,
    patch_size: int,
    stretch: bool = False,
    blend: Blend = "constant",
) -> Axis:
    """Place windows on `length` pixels of the resized image, for `size` pixels of the result."""
    starts = window_starts(length, window, stride)
    width = length if window is None else min(window, length)
    given: dict[str, Any] = {"window": window, "stride": stride, "patch_size": patch_size}
    matrix = axis_matrix(length, size, **given, stretch=stretch, blend=blend)
    return Axis(starts, width, -(-width // patch_size), matrix)


def axis_matrix(
    length: int,
    size: int,
    *,
    window: int | None,
    stride: int,
    patch_size: int,
    stretch: bool = False,
    blend: Blend = "constant",
) -> Float[Tensor, "size patches"]:
    """Return the matrix from the patch logits of all windows along one axis to `size` pixels.

    It upsamples each window from h patches to h·P pixels (bilinear, align_corners=False), crops the model's padding,
    places the window, takes the mean over windows at each of the `length` pixels, weighted by `blend_weights`, and
    resizes from `length` to `size`. With `stretch`, the h patches of a window, including padding, are upsampled to the
    window's own pixels, as MMSegmentation does. Computed in float64, returned in float32 on the CPU.

    The mean over the windows of an image is that over rows, then over columns: the weights of a window are products
    over rows and columns, and so is their sum over windows.
    """
    width = length if window is None else min(window, length)
    patches = -(-width // patch_size)
    upsample = bilinear_matrix(patches, width if stretch else patches * patch_size, width, torch.float64)
    starts = window_starts(length, window, stride)
    matrix = torch.zeros(length, len(starts) * patches, dtype=torch.float64)
    weight = blend_weights(width, blend)[:, None]
    total = torch.zeros(length, 1, dtype=torch.float64)
    for i, start in enumerate(starts):
        matrix[start : start + width, i * patches : (i + 1) * patches] += weight * upsample
        total[start : start + width] += weight
    matrix /= total
    if size != length:
        matrix = F.interpolate(matrix.T[None], size=size, mode="linear", align_corners=False)[0].T
    return matrix.float().contiguous()


Pixels = npt.NDArray[np.uint8]
Encoded = list[Float[Tensor, "K h w"]]
"""The patch logits of one window, for each number of mean shift steps."""


def crops(
    images: Sequence[Pixels | FileRows | Tensor], rows: Axis, cols: Axis, batch: int
) -> Iterator[Pixels | Float[Tensor, "b height width 3"]]:
    """Yield the windows of images of one size and kind, image by image and in row-major order.

    Each batch is (b, height, width, 3), a tensor if the images are.
    """
    corners = list(product(images, rows.starts, cols.starts))
    for i in range(0, len(corners), batch):
        several: list[Any] = [pixels[y : y + rows.width, x : x + cols.width] for pixels, y, x in corners[i : i + batch]]
        yield torch.stack(several) if isinstance(several[0], Tensor) else np.stack(several)


class Reading:
    """The patch logits of an image's windows; only rows of windows that are still needed are kept.

    Args:
        windows: the encoded windows in row-major order, computed lazily.
        rows, cols: the places of the windows, and the matrices from patches to pixels.
        mirrored: the windows were cut from the mirrored image.
        temperature: that of the model.
    """

    def __init__(
        self, windows: Iterator[Encoded], rows: Axis, cols: Axis, *, mirrored: bool, temperature: float = 1.0
    ) -> None:
        self._windows, self._rows, self._temperature = windows, rows, temperature
        self._columns = len(cols.starts)
        self._cols = cols.matrix.flip(0) if mirrored else cols.matrix
        self._strips: dict[int, list[Float[Tensor, "h all_w K"]]] = {}
        self._next = 0

    def views(self, start: int, stop: int) -> list[View]:
        """Return pixel rows `start` to `stop` for each number of mean shift steps; call it from the top down."""
        patches, rows = self._rows.band(start, stop)
        first, last = patches.start // self._rows.patches, (patches.stop - 1) // self._rows.patches
        self._strips = {i: strip for i, strip in self._strips.items() if i >= first}
        while self._next <= last:
            self._strips[self._next] = self._encode_strip()
            self._next += 1
        offset = first * self._rows.patches
        used = slice(patches.start - offset, patches.stop - offset)
        several = []
        for strips in zip(*(self._strips[i] for i in range(first, last + 1)), strict=True):
            z = (strips[0] if len(strips) == 1 else torch.cat(strips))[used]
            several.append(View(z.permute(2, 0, 1), rows.to(z.device), self._cols.to(z.device), self._temperature))
        return several

    def _encode_strip(self) -> list[Tensor]:
        """One row of windows, concatenated, with classes last as the kernels need them."""
        windows = islice(self._windows, self._columns)
        by_steps = zip(*windows, strict=True)
        return [torch.cat([z.permute(1, 2, 0) for z in several], dim=1) for several in by_steps]


Windows = npt.NDArray[np.uint8] | Tensor
"""(b, height, width, 3)."""


class Budget:
    """The number of windows per pass, which is permanently reduced when memory runs out."""

    def __init__(self) -> None:
        self._pixels: int | None = None

    def windows(self, wanted: int, size: tuple[int, int]) -> int:
        """Return at most `wanted` windows of `size` (height, width), and at least 1."""
        if self._pixels is None:
            return wanted
        return max(min(wanted, self._pixels // (size[0] * size[1])), 1)

    def in_parts(
        self, run: Callable[[Windows], list[Tensor]], batch: Windows, device: torch.device
    ) -> Iterator[list[Tensor]]:
        """Call `run` on the batch, in as many parts as memory requires; warn when the size of parts is reduced.

        Raises:
            InputError: a single window does not fit into memory.
        """
        size = (batch.shape[1], batch.shape[2])
        done, tried = 0, 0
        while done < len(batch):
            count = self.windows(len(batch) - done, size)
            try:
                results = run(batch[done : done + count])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                results = None
            if results is None:  # outside the handler, whose traceback keeps the tensors of the failed pass alive
                self._lower(count, size, device)
                tried = max(tried, count)
                continue
            if tried:
                warnings.warn(
                    f"batch_size: {tried} windows of {size[0]}×{size[1]} pixels do not fit into the memory of "
                    f"{device}; continuing with {count} per pass; start with --batch-size {count} to avoid this",
                    stacklevel=2,
                )
                tried = 0
            yield results
            done += count

    def _lower(self, failed: int, size: tuple[int, int], device: torch.device) -> None:
        if failed == 1:
            raise InputError(
                f"window: a single window of {size[0]}×{size[1]} pixels does not fit into the memory of {device}; use "
                f"a smaller one, such as --window {max(min(size) // 2, 1)}"
            )
        self._pixels = failed // 2 * size[0] * size[1]
        if device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def enough_memory(height: int, width: int) -> Iterator[None]:
    """Turn out-of-memory errors outside the model's passes into an `InputError` with the image's size."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"image: {height}×{width} pixels need more memory than is available; split the image into tiles, or "
            "request fewer confidence maps"
        ) from error
