"""From an image to its label map: resize, cut into windows, encode, read the map off the patch logits.

Source of the procedure: MMSegmentation's `slide_inference`, and its multi-scale and flip tests, which average
softmax probabilities over views. Glossary: K classes, H W pixels of the input, h w patches of one window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from meanshifter.data.labels import Labels
from meanshifter.data.reading import MAX_PIXELS
from meanshifter.data.rows import FileRows, LargeFile, large_file, opened
from meanshifter.errors import InputError
from meanshifter.inference.arguments import check_asked, check_resizing, move
from meanshifter.inference.memory import Budget, enough_memory
from meanshifter.inference.pictures import Picture, Pixels, as_pixels
from meanshifter.inference.precision import AUTOCAST, Precision, fused_attention_pays, reading_precision
from meanshifter.inference.reading import Encoded, Reading, crops
from meanshifter.inference.resizing import enlarged_size, fitted_size, resize
from meanshifter.inference.segmentation import Segmentation
from meanshifter.inference.windows import Axis, axis, check_windows
from meanshifter.interop.contract import PatchModel
from meanshifter.interop.official import scoring_windows
from meanshifter.ops import Score, View, label_map, pixel_scores

Readable = Picture | LargeFile
Source = Pixels | FileRows | Tensor
"""What windows are cut from: pixels, or normalised floats (H, W, 3)."""
Own = Literal["model"]
Tool = Literal["mmsegmentation", "segmenter"]
"""Tools whose reading of images is repeated where it differs from ours. MMSegmentation upsamples the logits of a window
that is no multiple of the patch to the window, padding and all, where we crop the padding. The Segmenter of its authors
enlarges images of which one side is below the window. Sources: `encode_decode` and `slide_inference` of MMSegmentation
1.2.2, `segm/model/utils.py` of github.com/rstrudel/segmenter."""
BAND = 256
"""Rows of the result that are finished together."""


class Predictor:
    """Reads label maps out of a model, as large as the image and without ever holding K × H × W.

    Args:
        model: a `Segmenter`, read in evaluation mode whatever its own, which is neither asked nor touched: several
            threads and predictors may share one, also while it trains. Or an export that `load_model` read.
        window: side of the square windows in pixels; None reads the whole image at once. This, the stride and the
            sides default to what the model's configuration says, which is 512, 480, 512 and 2048 unless another
            tool's checkpoint said otherwise.
        stride: distance between windows in pixels, 1 to `window`; unused without windows.
        short_side: with `long_side`, the sides into which the image is resized, keeping its ratio (bilinear
            without antialiasing, as mmcv's `imrescale`); None reads the image at its own size.
        long_side: the longer of the two, in pixels.
        protocol: "mmsegmentation" or "segmenter" where the label maps that another tool scores are to be repeated to
            the pixel; see `Tool`. With "segmenter" windows default to those of its `segm.eval.miou`;
            `interop.official.labelling(model.config)` has the arguments with which to repeat its `segm.inference`.
        scales: factors on that size; with several, softmax probabilities are averaged over them.
        flip: also read the mirrored image, and average.
        mean_shift_layers: mean shift steps; None is the trained number, 0 no shift.
        device: where to run; the model is moved there for good. None: where the model is.
        precision: of the model's arithmetic (autocast); "auto" is bf16 where the device has units for it, else
            fp32. The label map is computed in float32 in any case.
        batch_size: windows per pass; None: 2 windows of 512 pixels on the CPU and 16 elsewhere, or as many
            windows of another size as have that many pixels.
        scores: maps of how sure each pixel is, for `Segmentation.scores`: "probability" of the winner, its
            "margin" to the second class, and the "entropy" in nats.
        probabilities: names of classes whose probability is wanted, for `Segmentation.probabilities`.
        max_pixels: files of more are refused before they are decoded.
        progress: called with the rows of an image that are done and their total, as bands of rows are finished.

    Raises:
        InputError: an argument outside its range.
    """

    def __init__(
        self,
        model: PatchModel,
        *,
        window: int | Own | None = "model",
        stride: int | Own = "model",
        short_side: int | Own | None = "model",
        long_side: int | Own = "model",
        protocol: Tool | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        mean_shift_layers: int | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
        batch_size: int | None = None,
        scores: Sequence[Score] = (),
        probabilities: Sequence[str] = (),
        max_pixels: int = MAX_PIXELS,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        own = model.config
        windows = scoring_windows(own) if protocol == "segmenter" else (own.window, own.stride)
        self.window = windows[0] if window == "model" else window
        self.stride = windows[1] if stride == "model" else stride
        self.short_side = own.short_side if short_side == "model" else short_side
        self.long_side = own.long_side if long_side == "model" else long_side
        check_windows(self.window, self.stride)
        check_resizing(self.short_side, self.long_side, scales)
        if protocol is not None and protocol not in get_args(Tool):
            raise InputError(f"protocol: {protocol!r}; use one of {', '.join(get_args(Tool))}, or None")
        if precision not in get_args(Precision):
            raise InputError(f"precision: {precision!r}; use one of {', '.join(get_args(Precision))}")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size: {batch_size} windows; it must be at least 1, or None")
        self.model = model
        self.tool = protocol
        self.scales, self.flip = tuple(scales), flip
        self.mean_shift_layers = self.resolve_layers(mean_shift_layers)
        self.batch_size, self.max_pixels = batch_size, max_pixels
        check_asked(scores, probabilities, model.labels)
        self.scores, self.probabilities = tuple(scores), tuple(probabilities)
        self.progress = progress
        if device is not None:
            move(model, device)
        self.precision = reading_precision(precision, model.device, model.own_precision)
        self._budget = Budget()

    @overload
    def __call__(self, image: Readable, *, mean_shift_layers: int | None = None) -> Segmentation: ...

    @overload
    def __call__(self, image: Readable, *, mean_shift_layers: Sequence[int | None]) -> dict[int, Segmentation]: ...

    def __call__(
        self, image: Readable, *, mean_shift_layers: int | Sequence[int | None] | None = None
    ) -> Segmentation | dict[int, Segmentation]:
        """The segmentation of a file, a PIL image or an (H, W, 3) uint8 RGB array, at its own size.

        `mean_shift_layers`: another number of mean shift steps than the predictor's own (None), or several for a
        segmentation after each, by number of steps; the encoder sees the image once.

        Raises:
            InputError: a file that cannot be read, an array of another type or shape, or a number of steps that the
                model cannot take.
        """
        several = isinstance(mean_shift_layers, Sequence)
        asked = mean_shift_layers if isinstance(mean_shift_layers, Sequence) else [mean_shift_layers]
        own = self.mean_shift_layers
        steps = list(dict.fromkeys(own if entry is None else self.resolve_layers(entry) for entry in asked))
        source, maps = self._maps(image, steps, self.scores, self.probabilities)
        found = {
            count: Segmentation(out.labels, source, self.model.labels, out.scores, out.probabilities)
            for count, out in zip(steps, maps, strict=True)
        }
        return found if several else found[steps[0]]

    def label_maps(self, image: Readable, layers: Sequence[int | None]) -> list[Labels]:
        """One label map (H, W) for each number of mean shift steps; the encoder sees the image once.

        Raises:
            InputError: as `__call__`.
        """
        return [out.labels for out in self._maps(image, [self.resolve_layers(entry) for entry in layers])[1]]

    def _maps(
        self, image: Readable, steps: list[int], scores: Sequence[str] = (), probabilities: Sequence[str] = ()
    ) -> tuple[Pixels | LargeFile, list[_Maps]]:
        """What the image is read from, and what is read out of it after each number of steps."""
        if not steps:
            raise InputError("mean_shift_layers: 0 entries; name at least one number of mean shift steps")
        source = self.load(image)
        H, W = source.shape[:2]
        with enough_memory(H, W), torch.inference_mode(), opened(source) as pixels:
            maps = [_Maps((H, W), self.model.labels.num_classes, scores, probabilities) for _ in steps]
            for rows, several in self.bands(pixels, steps):
                for out, views in zip(maps, several, strict=True):
                    self._read_out(views, rows, out)
        return source, maps

    def load(self, image: Readable) -> Pixels | LargeFile:
        """What a prediction starts from, for who reads ahead: pixels, or a large TIFF that is read window by window.

        Raises:
            InputError: as `__call__`.
        """
        if isinstance(image, LargeFile):
            return image
        if isinstance(image, str | Path):
            file = large_file(Path(image), self.max_pixels)
            if file is not None and self._reads_as_stored(file.shape[:2]):
                return file
        return as_pixels(image, self.max_pixels)

    def protocol(self) -> dict[str, Any]:
        """How images are read: the part of `evaluation.Protocol` that the predictor decides."""
        return {
            "short_side": self.short_side,
            "long_side": None if self.short_side is None else self.long_side,
            "window": self.window,
            "stride": None if self.window is None else self.stride,
            "flip": self.flip,
            "scales": self.scales,
            "mean_shift_layers": self.mean_shift_layers,
            "precision": self.precision,
            "tool": self.tool,
        }

    def resolve_layers(self, layers: int | None) -> int:
        """`layers` as a number: None is the trained number, which is 0 for a model without mean shift.

        Raises:
            InputError: a negative number, or steps asked of a model without the block.
        """
        if layers is not None and (isinstance(layers, bool) or not isinstance(layers, int) or layers < 0):
            raise InputError(
                f"mean_shift_layers: {layers!r}; use a whole number from 0 on, or None for the trained one"
            )
        return self.model.steps(layers)

    def _read_out(self, views: list[View], rows: slice, out: _Maps) -> None:
        """Fill in what one band says."""
        if not out.scores and not out.probabilities:
            out.labels[rows] = label_map(views).cpu().numpy()
            return
        classes = [self.model.labels.names.index(name) for name in self.probabilities]
        found = pixel_scores(views, scores=self.scores, probabilities=classes)
        out.labels[rows] = found.labels.cpu().numpy()
        for name in self.scores:
            out.scores[name][rows] = found.scores[name].cpu().numpy()
        for title, k in zip(self.probabilities, classes, strict=True):
            out.probabilities[title][rows] = found.probabilities[k].cpu().numpy()

    def bands(self, pixels: Pixels | FileRows, steps: list[int]) -> Iterator[tuple[slice, list[list[View]]]]:
        """Bands of rows from the top down, each with the views of every entry of `steps`.

        At most the logits of the windows that one band touches are alive.
        """
        H, model = pixels.shape[0], self.model.evaluation_view()
        readings = [self._read(model, pixels, scale, mirrored, steps) for scale, mirrored in self._ways()]
        for start in range(0, H, BAND):
            rows = slice(start, min(start + BAND, H))
            views = [reading.views(rows.start, rows.stop) for reading in readings]
            yield rows, [list(several) for several in zip(*views, strict=True)]
            if self.progress is not None:
                self.progress(rows.stop, H)

    def _ways(self) -> list[tuple[float, bool]]:
        """Scale, and whether mirrored, of every reading."""
        return list(product(self.scales, (False, True) if self.flip else (False,)))

    def _size(self, size: tuple[int, int], scale: float) -> tuple[int, int]:
        """The size at which an image of `size` is read."""
        return fitted_size(*size, short_side=self.short_side, long_side=self.long_side, scale=scale)

    def _reads_as_stored(self, size: tuple[int, int]) -> bool:
        """Whether an image of `size` is read once only, neither resized nor mirrored."""
        return not self.flip and len(self.scales) == 1 and self._size(size, self.scales[0]) == size

    def _read(
        self, model: PatchModel, pixels: Pixels | FileRows, scale: float, mirrored: bool, steps: list[int]
    ) -> Reading:
        H, W = pixels.shape[:2]
        size = self._size((H, W), scale)
        resized = pixels if isinstance(pixels, FileRows) else resize(pixels, size)
        source: Source = resized[:, ::-1] if mirrored else resized
        if self.tool == "segmenter" and self.window is not None and min(size) < self.window:
            whole = model.normalize(np.ascontiguousarray(source[0 : size[0], 0 : size[1]]))
            size = enlarged_size(*size, self.window)
            source = F.interpolate(whole, size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        stretch = self.tool == "mmsegmentation"
        rows, cols = (
            axis(length, out, window=self.window, stride=self.stride, patch_size=model.stride, stretch=stretch)
            for length, out in zip(size, (H, W), strict=True)
        )
        return Reading(self._encode(model, source, rows, cols, steps), rows, cols, mirrored=mirrored)

    def _encode(
        self, model: PatchModel, pixels: Pixels | FileRows | Tensor, rows: Axis, cols: Axis, steps: list[int]
    ) -> Iterator[Encoded]:
        """The windows one by one; they are encoded in batches, each when its first is taken."""
        count = self._batch_size((rows.width, cols.width), model.device)

        def run(windows: Pixels | Tensor) -> list[Tensor]:
            return self._logits(model, windows, rows.patches * cols.patches, steps)

        for batch in crops(pixels, rows, cols, count):
            for logits in self._budget.in_parts(run, batch, model.device):
                yield from zip(*logits, strict=True)

    def _logits(self, model: PatchModel, windows: Pixels | Tensor, tokens: int, steps: list[int]) -> list[Tensor]:
        """Patch logits (b, K, h, w) of windows (b, height, width, 3), for each entry of `steps`."""
        device = model.device
        size = {"images": len(windows), "heads": model.heads, "tokens": tokens}
        model.set_attention(fused=fused_attention_pays(device, self.precision, **size))
        with self._arithmetic(device):
            images = windows.permute(0, 3, 1, 2) if isinstance(windows, Tensor) else model.normalize(windows)
            return [logits.float() for logits in model.logits_at(images, steps)]

    def _arithmetic(self, device: torch.device) -> AbstractContextManager[object]:
        if self.model.own_precision is not None or self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, AUTOCAST[self.precision])

    def _batch_size(self, window: tuple[int, int], device: torch.device) -> int:
        pixels = (2 if device.type == "cpu" else 16) * 512 * 512
        usual = max(pixels // (window[0] * window[1]), 1)
        return self._budget.windows(usual if self.batch_size is None else self.batch_size, window)


class _Maps:
    """Arrays (H, W) for everything that is asked about an image."""

    def __init__(
        self, size: tuple[int, ...], K: int, scores: Sequence[str] = (), probabilities: Sequence[str] = ()
    ) -> None:
        self.labels: Labels = np.empty(size, np.uint8) if K <= 255 else np.empty(size, np.uint16)
        self.scores: dict[str, npt.NDArray[np.float32]] = {name: np.empty(size, dtype=np.float32) for name in scores}
        self.probabilities = {name: np.empty(size, dtype=np.float32) for name in probabilities}
