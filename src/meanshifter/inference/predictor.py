"""`Predictor`: resize an image, cut it into windows, encode them, and compute the label map from the patch logits.

Source of the procedure: MMSegmentation's `slide_inference`, and its multi-scale and flip tests, which average
softmax probabilities over views. Glossary: K classes, H W pixels of the input, h w patches of one window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

import numpy as np
import numpy.typing as npt
import torch

from meanshifter.data.labels import Labels
from meanshifter.data.reading import MAX_PIXELS
from meanshifter.data.rows import FileRows, LargeFile, large_file
from meanshifter.errors import InputError
from meanshifter.inference.encoding import WindowEncoder
from meanshifter.inference.ensemble import Ensemble, members_of
from meanshifter.inference.precision import Precision, reading_precision
from meanshifter.inference.preprocess import (
    Picture,
    Pixels,
    Preprocess,
    as_pixels,
    check_requested,
    check_scales,
    enlarged_size,
    move,
)
from meanshifter.inference.resolve import (
    Engine,
    Model,
    preprocess_for,
    resolve_model,
    shared_preprocess,
    with_engine,
    with_merging,
)
from meanshifter.inference.segmentation import Segmentation
from meanshifter.inference.windows import Blend, Budget, enough_memory, window_starts
from meanshifter.ops import Confidence, View, label_map, pixel_confidence

if TYPE_CHECKING:
    pass

Readable = Picture | LargeFile
Own = Literal["model"]
BAND = 256
"""Rows of the result that are computed together."""


class Predictor:
    """Predict label maps at the size of the image, without ever holding K × H × W values.

    Args:
        model: a `Segmenter`, possibly compiled or wrapped by DDP or Fabric. It is used in evaluation mode regardless
            of its own mode, which stays unchanged: threads and predictors may share a model, even one in training.
            Also an export from `load_model`, or any name that `load_model` accepts. Several models in a list are an
            ensemble: their probabilities are averaged. They need the same classes, preprocessing and number of mean
            shift steps; encoders, patch sizes and decoders may differ.
        window: side of the square windows in pixels; None uses the full image. The window, the stride and the sides
            default to the model's configuration: 512, 480, 512 and 2048, or what a third-party checkpoint states.
        window_stride: distance between windows in pixels, 1 to `window`; unused without windows.
        window_blend: weights of overlapping windows: "constant", the default, or "cosine", decreasing from the middle
            of a window to its border, which hides borders of windows.
        short_side: resize the image to fit (`long_side`, `short_side`), keeping its aspect ratio (bilinear without
            antialiasing, as mmcv's `imrescale`); None keeps the image's own size.
        long_side: the longer side to fit, in pixels.
        compat: reproduce another tool's preprocessing exactly: "mmsegmentation", "segmenter" (see
            `meanshifter.checkpoints.compat`), or a `Preprocess` value. The four arguments above override its fields.
        scales: factors on that size; with several, softmax probabilities are averaged over them.
        flip: also average over the mirrored image.
        mean_shift_layers: mean shift steps; None is the trained number, 0 no shift.
        merge_tokens: share of the 2×2 windows of tokens, the most uniform ones, whose tokens the encoder merges
            (`Segmenter.merging_view`): faster, and approximate if the model was trained without. None: as trained.
        device: where to run; the model is moved there in place. None: where the model is.
        precision: precision of the model (autocast); "auto" is bf16 if the device has units for it, else fp32. The
            label map is always computed in float32.
        engine: what computes the patch logits: "torch", or on the CPU another runtime from an export that is kept
            (`export.engines.cache_folder`), "openvino" or "onnx"; "auto" is the fastest of them, which is measured once
            per model, machine and size of windows. `Predictor.engines` says what was chosen. Weights that are changed
            later are only seen by torch.
        batch_size: windows per pass; None: 2 windows of 512 pixels on the CPU and 16 elsewhere, or the number of
            windows of another size that has as many pixels.
        confidence: maps for `Segmentation.confidence`: "probability" of the winner, its "margin" to the second class,
            and the "entropy" in nats.
        probabilities: names of classes for `Segmentation.probabilities`.
        min_confidence: pixels whose winner has a lower probability get the ignored value of the model's `LabelSpace`
            instead of a class; 0 keeps all.
        max_pixels: larger files are refused before they are decoded.
        progress: called with the rows that are done and their total, after each band of rows of an image.

    Raises:
        InputError: an argument outside its range.
    """

    def __init__(
        self,
        model: Model | Sequence[Model],
        *,
        window: int | Own | None = "model",
        window_stride: int | Own = "model",
        window_blend: Blend | None = None,
        short_side: int | Own | None = "model",
        long_side: int | Own = "model",
        compat: str | Preprocess | None = None,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        mean_shift_layers: int | None = None,
        merge_tokens: float | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
        engine: Engine = "torch",
        batch_size: int | None = None,
        confidence: Sequence[Confidence] = (),
        probabilities: Sequence[str] = (),
        min_confidence: float = 0.0,
        max_pixels: int = MAX_PIXELS,
        progress: Callable[[int, int], object] | None = None,
    ) -> None:
        model = with_merging(resolve_model(model), merge_tokens)
        given = {"window": window, "window_stride": window_stride, "short_side": short_side, "long_side": long_side}
        fields: dict[str, Any] = {name: value for name, value in given.items() if value != "model"}
        fields |= {} if window_blend is None else {"window_blend": window_blend}
        self.preprocess = shared_preprocess(
            [replace(preprocess_for(compat, member.config), **fields) for member in members_of(model)]
        )
        check_scales(scales, self.preprocess.short_side)
        if precision not in get_args(Precision):
            raise InputError(f"precision: {precision!r}; use one of {', '.join(get_args(Precision))}")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size: {batch_size} windows; it must be at least 1, or leave it out")
        if not 0 <= min_confidence <= 1:
            raise InputError(f"min_confidence: {min_confidence}; it must be a probability from 0 to 1")
        self.model, self.merge_tokens = model, None if merge_tokens is None else float(merge_tokens)
        self.scales, self.flip = tuple(scales), flip
        self.mean_shift_layers = self.resolve_layers(mean_shift_layers)
        self.batch_size, self.max_pixels = batch_size, max_pixels
        check_requested(confidence, probabilities, model.label_space)
        self.confidence, self.probabilities = tuple(confidence), tuple(probabilities)
        self.min_confidence = min_confidence
        self.progress = progress
        if device is not None or isinstance(model, Ensemble):
            move(model, model.device if device is None else device)
        self.precision = reading_precision(precision, model.device, model.own_precision)
        self._budget = Budget()
        self.model, self.engines = with_engine(
            model, engine, layers=self.mean_shift_layers, precision=self.precision, shape=self._encoder().shape
        )

    @overload
    def __call__(self, image: Readable, *, mean_shift_layers: int | None = None) -> Segmentation: ...

    @overload
    def __call__(self, image: Readable, *, mean_shift_layers: Sequence[int | None]) -> dict[int, Segmentation]: ...

    @overload
    def __call__(self, image: list[Readable], *, mean_shift_layers: int | None = None) -> list[Segmentation]: ...

    @overload
    def __call__(
        self, image: list[Readable], *, mean_shift_layers: Sequence[int | None]
    ) -> list[dict[int, Segmentation]]: ...

    def __call__(
        self, image: Readable | list[Readable], *, mean_shift_layers: int | Sequence[int | None] | None = None
    ) -> Segmentation | dict[int, Segmentation] | list[Segmentation] | list[dict[int, Segmentation]]:
        """Segment an image, or each of a list of images, at its own size.

        Args:
            image: a file, a PIL image, or an (H, W, 3) uint8 RGB array or tensor; or a list of these.
            mean_shift_layers: number of mean shift steps instead of the predictor's own (None). A sequence returns a
                dictionary of segmentations by number of steps, for which the image is encoded only once.

        Raises:
            InputError: an unreadable file, an array of another type or shape, or an unsupported number of steps.
        """
        if isinstance(image, list):
            found: list[Any] = [self._segment(entry, mean_shift_layers) for entry in image]
            return found
        return self._segment(image, mean_shift_layers)

    def _segment(
        self, image: Readable, mean_shift_layers: int | Sequence[int | None] | None
    ) -> Segmentation | dict[int, Segmentation]:
        requested = mean_shift_layers if isinstance(mean_shift_layers, Sequence) else [mean_shift_layers]
        own = self.mean_shift_layers
        steps = list(dict.fromkeys(own if entry is None else self.resolve_layers(entry) for entry in requested))
        found = dict(zip(steps, self._predict(image, steps, self.confidence, self.probabilities), strict=True))
        return found if isinstance(mean_shift_layers, Sequence) else found[steps[0]]

    def label_maps(self, image: Readable, layers: Sequence[int | None]) -> list[Labels]:
        """Return a label map (H, W) for each number of mean shift steps; the image is encoded only once.

        Raises:
            InputError: as `__call__`.
        """
        return [out.labels for out in self.segmentations(image, layers)]

    def segmentations(
        self, image: Readable, layers: Sequence[int | None], *, confidence: Sequence[Confidence] = ()
    ) -> list[Segmentation]:
        """Return a segmentation for each number of mean shift steps, with these confidence maps only.

        Raises:
            InputError: as `__call__`.
        """
        check_requested(confidence, (), self.model.label_space)
        return self._predict(image, [self.resolve_layers(entry) for entry in layers], confidence)

    def probabilities_of(
        self, image: Readable, labels: Labels
    ) -> tuple[Labels, npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Return the label map, the probability of its class, and that of the class in `labels`, each (H, W).

        The last one is NaN where `labels` has no class.

        Raises:
            InputError: as `__call__`, or labels of another size than the image.
        """
        source = self.load(image)
        H, W = source.shape[:2]
        if labels.shape != (H, W):
            raise InputError(f"labels: {labels.shape} pixels (height, width), but the image has {(H, W)}")
        found, own = self._empty(source, ["probability"], []), np.empty((H, W), np.float32)
        with enough_memory(H, W), torch.inference_mode(), _open(source) as pixels:
            for rows, (views,) in self.bands(pixels, [self.mean_shift_layers]):
                band = pixel_confidence(views, confidence=("probability",), labels=labels[rows])
                found.labels[rows] = band.labels.cpu().numpy()
                found.confidence["probability"][rows] = band.confidence["probability"].cpu().numpy()
                assert band.label_probability is not None
                own[rows] = band.label_probability.cpu().numpy()
        return found.labels, found.confidence["probability"], own

    def _predict(
        self,
        image: Readable,
        steps: list[int],
        confidence: Sequence[Confidence] = (),
        probabilities: Sequence[str] = (),
    ) -> list[Segmentation]:
        """A segmentation after each number of steps."""
        if not steps:
            raise InputError("mean_shift_layers: 0 entries; give at least one number of mean shift steps")
        source = self.load(image)
        H, W = source.shape[:2]
        with enough_memory(H, W), torch.inference_mode(), _open(source) as pixels:
            found = [self._empty(source, confidence, probabilities) for _ in steps]
            for rows, several in self.bands(pixels, steps):
                for out, views in zip(found, several, strict=True):
                    self._read_out(views, rows, out)
        return found

    def _empty(
        self, source: Pixels | LargeFile, confidence: Sequence[str], probabilities: Sequence[str]
    ) -> Segmentation:
        size, space = source.shape[:2], self.model.label_space
        labels: Labels = np.empty(size, np.uint8) if space.num_classes <= 255 else np.empty(size, np.uint16)
        maps = ({name: np.empty(size, np.float32) for name in names} for names in (confidence, probabilities))
        return Segmentation(labels, source, space, *maps)

    def segment_batch(self, images: Sequence[Picture]) -> list[Segmentation]:
        """Segment images of one size, such as frames of a video; their windows share forward passes.

        The label maps are those of single calls, up to rounding, which differs between batch sizes. Logits of all
        windows are held at once; `images_per_pass` images fill a pass.

        Raises:
            InputError: as `__call__`, or images of different sizes.
        """
        if not images:
            return []
        sources = [as_pixels(image, self.max_pixels) for image in images]
        sizes = dict.fromkeys(source.shape[:2] for source in sources)
        if len(sizes) > 1:
            (H, W), (other_H, other_W), *_ = sizes
            raise InputError(f"images: sizes {H}×{W} and {other_H}×{other_W} in one batch; pass them one by one")
        with enough_memory(*sources[0].shape[:2]), torch.inference_mode():
            found = [self._empty(source, self.confidence, self.probabilities) for source in sources]
            for rows, several in self._bands(sources, [self.mean_shift_layers]):
                for out, (views,) in zip(found, several, strict=True):
                    self._read_out(views, rows, out)
        return found

    def images_per_pass(self, size: tuple[int, int]) -> int:
        """Return how many images of `size` (H, W) have as many windows as one forward pass takes, at least 1."""
        reading = self.preprocess
        sides = reading.size(*size, self.scales[0])
        if reading.window is not None and reading.enlarges(sides):
            sides = enlarged_size(*sides, reading.window)
        starts = [window_starts(length, reading.window, reading.window_stride) for length in sides]
        widths = [length if reading.window is None else min(reading.window, length) for length in sides]
        count = self._encoder().batch_size((widths[0], widths[1]), self.model.device)
        return max(count // (len(starts[0]) * len(starts[1])), 1)

    def load(self, image: Readable) -> Pixels | LargeFile:
        """Load an image for prediction, e.g. ahead of time: as pixels, or a large TIFF that is read by window.

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
        """Return the fields of `evaluation.Protocol` that the predictor determines."""
        reading = self.preprocess
        return {
            "short_side": reading.short_side,
            "long_side": None if reading.short_side is None else reading.long_side,
            "window": reading.window,
            "window_stride": None if reading.window is None else reading.window_stride,
            "window_blend": None if reading.window is None else reading.window_blend,
            "flip": self.flip,
            "scales": self.scales,
            "mean_shift_layers": self.mean_shift_layers,
            "merge_tokens": self.merge_tokens,
            "precision": self.precision,
            "engine": self.engine_for([self.mean_shift_layers]),
            "compat": reading.compat,
            "temperature": tuple(member.config.temperature for member in members_of(self.model)),
        }

    def engine_for(self, layers: Sequence[int]) -> str | None:
        """The engines other than torch, joined by "+", that compute the logits after these numbers of steps in one
        pass; None: torch."""
        names = [
            member.engine_for(layers) if hasattr(member, "engine_for") else "torch" for member in members_of(self.model)
        ]
        return "+".join(names) if set(names) - {"torch"} else None

    def resolve_layers(self, layers: int | None) -> int:
        """Resolve `layers`, where None is the trained number, or 0 for a model without mean shift.

        Raises:
            InputError: a negative number, or steps for a model without the block.
        """
        if layers is not None and (isinstance(layers, bool) or not isinstance(layers, int) or layers < 0):
            raise InputError(
                f"mean_shift_layers: {layers!r}; use an integer from 0 on, or leave it out for the trained number"
            )
        return self.model.steps(layers)

    def _read_out(self, views: list[View], rows: slice, out: Segmentation) -> None:
        """Fill in the maps of one band."""
        wanted: list[Any] = list(out.confidence)
        if self.min_confidence > 0 and "probability" not in wanted:
            wanted.append("probability")
        if not wanted and not out.probabilities:
            out.labels[rows] = label_map(views).cpu().numpy()
            return
        classes = [self.model.label_space.names.index(name) for name in out.probabilities]
        found = pixel_confidence(views, confidence=wanted, probabilities=classes)
        out.labels[rows] = found.labels.cpu().numpy()
        for name in wanted:
            if name in out.confidence:
                out.confidence[name][rows] = found.confidence[name].cpu().numpy()
        for title, k in zip(out.probabilities, classes, strict=True):
            out.probabilities[title][rows] = found.probabilities[k].cpu().numpy()
        if self.min_confidence > 0:
            unsure = ~(found.confidence["probability"] >= self.min_confidence)  # also NaN
            out.labels[rows][unsure.cpu().numpy()] = self.model.label_space.ignore

    def bands(self, pixels: Pixels | FileRows, steps: list[int]) -> Iterator[tuple[slice, list[list[View]]]]:
        """Yield bands of rows from the top down, each with the views for every entry of `steps`.

        Only the logits of windows that overlap the band are kept.
        """
        for rows, (views,) in self._bands([pixels], steps):
            yield rows, views

    def _bands(
        self, images: Sequence[Pixels | FileRows], steps: list[int]
    ) -> Iterator[tuple[slice, list[list[list[View]]]]]:
        """As `bands`, for images of one size: the views of each image, for every entry of `steps`."""
        H, model = images[0].shape[0], self.model.evaluation_view()
        mirrors, encoder = (False, True) if self.flip else (False,), self._encoder()
        ways = product(members_of(model), self.scales, mirrors)
        readings = [encoder.read(member, images, scale, mirrored, steps) for member, scale, mirrored in ways]
        for start in range(0, H, BAND):
            rows = slice(start, min(start + BAND, H))
            several = []
            for of_image in zip(*readings, strict=True):
                views = [reading.views(rows.start, rows.stop) for reading in of_image]
                several.append([list(of_step) for of_step in zip(*views, strict=True)])
            yield rows, several
            if self.progress is not None:
                self.progress(rows.stop, H)

    def _encoder(self) -> WindowEncoder:
        """With the settings as they are now, since attributes may be set."""
        return WindowEncoder(self.preprocess, self.precision, self.batch_size, self._budget)

    def _reads_as_stored(self, size: tuple[int, int]) -> bool:
        """Whether an image of `size` is read only once, neither resized nor mirrored."""
        once = not self.flip and len(self.scales) == len(members_of(self.model)) == 1
        return once and self.preprocess.size(*size, self.scales[0]) == size


def _open(source: Pixels | LargeFile) -> AbstractContextManager[Pixels | FileRows]:
    return source.rows() if isinstance(source, LargeFile) else nullcontext(source)
