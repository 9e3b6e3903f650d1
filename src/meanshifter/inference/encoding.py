"""Encode images in windows: resize, cut, normalize, and compute patch logits, a batch of windows at a time.

Glossary: K classes, H W pixels of the input, h w patches of one window, b windows of a batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from meanshifter.data.rows import FileRows
from meanshifter.inference.precision import AUTOCAST, fused_attention_pays
from meanshifter.inference.preprocess import Pixels, Preprocess, enlarged_size, resize
from meanshifter.inference.protocol import PatchModel
from meanshifter.inference.windows import Axis, Budget, Encoded, Reading, axis, crops

Source = Pixels | FileRows | Tensor
"""What windows are cut from: pixels, or normalized floats (H, W, 3)."""


class WindowEncoder:
    """Encodes the windows of images with one preprocessing and precision.

    Args:
        preprocess: how images are resized and cut.
        precision: "fp32", "bf16" or "fp16", of models without one of their own.
        batch_size: windows per pass; None: as `Predictor` states.
        budget: how many windows have fitted into memory.
    """

    def __init__(self, preprocess: Preprocess, precision: str, batch_size: int | None, budget: Budget) -> None:
        self._preprocess, self._precision, self._batch_size, self._budget = preprocess, precision, batch_size, budget

    def read(
        self,
        model: PatchModel,
        images: Sequence[Pixels | FileRows],
        scale: float,
        mirrored: bool,
        steps: list[int],
    ) -> list[Reading]:
        """Return the readings of images of one size, whose windows share passes."""
        reading, (H, W) = self._preprocess, images[0].shape[:2]
        size = read_size = reading.size(H, W, scale)
        if reading.window is not None and reading.enlarges(size):
            size = enlarged_size(*size, reading.window)
        windows: dict[str, Any] = {"window": reading.window, "stride": reading.window_stride}
        windows |= {"stretch": reading.stretch_padding, "blend": reading.window_blend}
        rows, cols = (
            axis(length, out, patch_size=model.output_stride, **windows)
            for length, out in zip(size, (H, W), strict=True)
        )
        sources = [self._source(model, pixels, read_size, size, mirrored) for pixels in images]
        encoded = self._encode(model, sources, rows, cols, steps)
        temperature = model.config.temperature
        if len(images) == 1:
            return [Reading(encoded, rows, cols, mirrored=mirrored, temperature=temperature)]
        # the images are read band by band next to each other, but encoded one after the other
        each = len(rows.starts) * len(cols.starts)
        several = [list(islice(encoded, each)) for _ in images]
        return [Reading(iter(own), rows, cols, mirrored=mirrored, temperature=temperature) for own in several]

    def _source(
        self,
        model: PatchModel,
        pixels: Pixels | FileRows,
        read_size: tuple[int, int],
        size: tuple[int, int],
        mirrored: bool,
    ) -> Source:
        """What the windows of one image are cut from: resized to `read_size`, and enlarged to `size` if it differs."""
        resized = pixels if isinstance(pixels, FileRows) else resize(pixels, read_size)
        source: Source = resized[:, ::-1] if mirrored else resized
        if size == read_size:
            return source
        normalized = model.normalize(np.ascontiguousarray(source[0 : read_size[0], 0 : read_size[1]]))
        return F.interpolate(normalized, size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)

    def _encode(
        self, model: PatchModel, sources: Sequence[Source], rows: Axis, cols: Axis, steps: list[int]
    ) -> Iterator[Encoded]:
        """Yield encoded windows, image by image; a batch is encoded when its first window is requested."""
        count = self.batch_size((rows.width, cols.width), model.device)

        def run(windows: Pixels | Tensor) -> list[Tensor]:
            return self.logits(model, windows, rows.patches * cols.patches, steps)

        for batch in crops(sources, rows, cols, count):
            for logits in self._budget.in_parts(run, batch, model.device):
                yield from zip(*logits, strict=True)

    def logits(self, model: PatchModel, windows: Pixels | Tensor, tokens: int, steps: list[int]) -> list[Tensor]:
        """Compute patch logits (b, K, h, w) of windows (b, height, width, 3), for each entry of `steps`."""
        device = model.device
        size = {"images": len(windows), "heads": model.heads, "tokens": tokens}
        model.set_attention(fused=fused_attention_pays(device, self._precision, **size))
        context: AbstractContextManager[object] = nullcontext()
        if model.own_precision is None and self._precision != "fp32":
            context = torch.autocast(device.type, AUTOCAST[self._precision])
        with context:
            images = windows.permute(0, 3, 1, 2) if isinstance(windows, Tensor) else model.normalize(windows)
            return [logits.float() for logits in model.logits_at(images, steps)]

    def shape(self, model: PatchModel) -> tuple[int, int, int, int]:
        """Return the shape of one forward pass, (windows, 3, height, width); whole images are as in training."""
        window, (H, W) = self._preprocess.window, model.config.image_size
        H, W = (H, W) if window is None else (window, window)
        return self.batch_size((H, W), model.device), 3, H, W

    def batch_size(self, window: tuple[int, int], device: torch.device) -> int:
        """Return how many windows (height, width) one forward pass takes."""
        pixels = (2 if device.type == "cpu" else 16) * 512 * 512
        default = max(pixels // (window[0] * window[1]), 1)
        return self._budget.windows(default if self._batch_size is None else self._batch_size, window)
