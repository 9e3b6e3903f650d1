"""One reading of an image in windows, encoded from the top down as its rows are asked for.

Glossary: K classes, h w patches of one window, H W pixels of the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from meanshifter.data.rows import FileRows
from meanshifter.inference.windows import Axis
from meanshifter.ops import View

Pixels = npt.NDArray[np.uint8]
Encoded = list[Float[Tensor, "K h w"]]
"""The patch logits of one window, for each number of mean shift steps."""


def crops(
    pixels: Pixels | FileRows | Tensor, rows: Axis, cols: Axis, batch: int
) -> Iterator[Pixels | Float[Tensor, "b height width 3"]]:
    """The windows in row-major order, (b, height, width, 3) at a time; of a normalised tensor as tensors."""
    corners = list(product(rows.starts, cols.starts))
    for i in range(0, len(corners), batch):
        several: list[Any] = [pixels[y : y + rows.width, x : x + cols.width] for y, x in corners[i : i + batch]]
        yield torch.stack(several) if isinstance(pixels, Tensor) else np.stack(several)


class Reading:
    """The patch logits of an image's windows, of which only the rows that are still needed are alive.

    Args:
        windows: the encoded windows in row-major order, made as they are taken.
        rows, cols: the windows' places, and the way from patches to pixels.
        mirrored: the windows were cut from the mirrored image.
    """

    def __init__(self, windows: Iterator[Encoded], rows: Axis, cols: Axis, *, mirrored: bool) -> None:
        self._windows, self._rows = windows, rows
        self._columns = len(cols.starts)
        self._cols = cols.matrix.flip(0) if mirrored else cols.matrix
        self._strips: dict[int, list[Float[Tensor, "h all_w K"]]] = {}
        self._next = 0

    def views(self, start: int, stop: int) -> list[View]:
        """Pixel rows `start` to `stop`, for each number of mean shift steps; bands are asked for from the top down."""
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
            several.append(View(z.permute(2, 0, 1), rows.to(z.device), self._cols.to(z.device)))
        return several

    def _encode_strip(self) -> list[Tensor]:
        """One row of windows side by side, classes last as the kernels want them."""
        windows = islice(self._windows, self._columns)
        by_steps = zip(*windows, strict=True)
        return [torch.cat([z.permute(1, 2, 0) for z in several], dim=1) for several in by_steps]
