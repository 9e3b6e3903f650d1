"""From an image to its label map: resize, cut into windows, encode, read the map off the patch logits.

Source of the procedure: MMSegmentation's `slide_inference`, and its multi-scale and flip tests, which average
softmax probabilities over views. Glossary: K classes, H W pixels of the input, h w patches of one window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from meanshifter.data.labels import Labels
from meanshifter.data.reading import read_image
from meanshifter.errors import InputError
from meanshifter.inference.resizing import fitted_size, resize
from meanshifter.inference.segmentation import Segmentation
from meanshifter.inference.windows import axis_matrix, check_windows, window_starts
from meanshifter.ops import View, label_map

if TYPE_CHECKING:
    from meanshifter.model.segmenter import Segmenter

Precision = Literal["fp32", "bf16", "fp16"]
Pixels = npt.NDArray[np.uint8]
_AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class _Mosaic:
    """The pixels of one view and where its windows lie."""

    pixels: Pixels
    rows: tuple[int, ...]
    cols: tuple[int, ...]
    window: tuple[int, int]

    def crops(self, batch: int) -> Iterator[Pixels]:
        """The windows in row-major order, (b, wh, ww, 3) at a time."""
        corners = list(product(self.rows, self.cols))
        height, width = self.window
        for i in range(0, len(corners), batch):
            yield np.stack([self.pixels[y : y + height, x : x + width] for y, x in corners[i : i + batch]])

    def assemble(self, windows: Float[Tensor, "n K h w"]) -> Float[Tensor, "K h_all w_all"]:
        """The patch logits of all windows side by side, in float32."""
        _, K, h, w = windows.shape
        grid = windows.float().view(len(self.rows), len(self.cols), K, h, w)
        return grid.permute(2, 0, 3, 1, 4).reshape(K, len(self.rows) * h, len(self.cols) * w)


class Predictor:
    """Reads label maps out of a model, as large as the image and without ever holding K × H × W.

    Args:
        model: a `Segmenter`; its training flags are as before after every call.
        window: side of the square windows in pixels; None reads the whole image at once.
        stride: distance between windows in pixels, 1 to `window`; unused without windows.
        short_side: with `long_side`, the sides into which the image is resized, keeping its ratio (bilinear
            without antialiasing, as mmcv's `imrescale`); None reads the image at its own size.
        long_side: the longer of the two, in pixels.
        scales: factors on that size; with several, softmax probabilities are averaged over them.
        flip: also read the mirrored image, and average.
        mean_shift_layers: mean shift steps; None is the trained number, 0 no shift.
        device: where to run; the model is moved there for good. None: where the model is.
        precision: of the model's arithmetic (autocast); the label map is computed in float32 in any case.
        batch_size: windows per pass; None: 2 windows of 512 pixels on the CPU and 16 elsewhere, or as many
            windows of another size as have that many pixels.

    Raises:
        InputError: an argument outside its range.
    """

    def __init__(
        self,
        model: Segmenter,
        *,
        window: int | None = 512,
        stride: int = 480,
        short_side: int | None = 512,
        long_side: int = 2048,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        mean_shift_layers: int | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
        batch_size: int | None = None,
    ) -> None:
        check_windows(window, stride)
        _check_resizing(short_side, long_side, scales)
        if precision not in get_args(Precision):
            raise InputError(f"precision: {precision!r}; use one of {', '.join(get_args(Precision))}")
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size: {batch_size} windows; it must be at least 1, or None")
        self.model = model
        self.window, self.stride = window, stride
        self.short_side, self.long_side = short_side, long_side
        self.scales, self.flip = tuple(scales), flip
        self.mean_shift_layers = self.resolve_layers(mean_shift_layers)
        self.precision, self.batch_size = precision, batch_size
        if device is not None:
            _move(model, device)

    def __call__(self, image: str | Path | Image.Image | Pixels) -> Segmentation:
        """The segmentation of a file, a PIL image or an (H, W, 3) uint8 RGB array, at its own size.

        Raises:
            InputError: a file that cannot be read, or an array of another type or shape.
        """
        pixels = as_pixels(image)
        (labels,) = self.label_maps(pixels, [self.mean_shift_layers])
        return Segmentation(labels, pixels, self.model.labels)

    def label_maps(self, image: str | Path | Image.Image | Pixels, layers: Sequence[int | None]) -> list[Labels]:
        """One label map (H, W) for each number of mean shift steps; the encoder sees the image once.

        Raises:
            InputError: as `__call__`, and a number of steps that the model cannot take.
        """
        pixels = as_pixels(image)
        steps = [self.resolve_layers(entry) for entry in layers]
        if not steps:
            raise InputError("layers: 0 entries; name at least one number of mean shift steps")
        views: list[list[View]] = [[] for _ in steps]
        with _evaluating(self.model), torch.inference_mode():
            for scale, mirrored in product(self.scales, (False, True) if self.flip else (False,)):
                for several, view in zip(views, self._read(pixels, scale, mirrored, steps), strict=True):
                    several.append(view)
            return [label_map(several).cpu().numpy() for several in views]

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

    def _read(self, pixels: Pixels, scale: float, mirrored: bool, steps: list[int]) -> list[View]:
        """One view of the image for each entry of `steps`."""
        H, W = pixels.shape[:2]
        size = fitted_size(H, W, short_side=self.short_side, long_side=self.long_side, scale=scale)
        resized = resize(pixels, size)
        mosaic = _Mosaic(
            resized[:, ::-1] if mirrored else resized,
            window_starts(size[0], self.window, self.stride),
            window_starts(size[1], self.window, self.stride),
            size if self.window is None else (min(self.window, size[0]), min(self.window, size[1])),
        )
        logits = self._encode(mosaic, steps)
        rows, cols = (
            axis_matrix(length, out, window=self.window, stride=self.stride, patch_size=self.model.patch_size)
            for length, out in zip(size, (H, W), strict=True)
        )
        if mirrored:
            cols = cols.flip(0)
        device = logits[0].device
        return [View(z, rows.to(device), cols.to(device)) for z in logits]

    def _encode(self, mosaic: _Mosaic, steps: list[int]) -> list[Float[Tensor, "K h_all w_all"]]:
        device = self.model.device
        batches: list[list[Tensor]] = [[] for _ in steps]
        with torch.autocast(device.type, _AUTOCAST[self.precision], enabled=self.precision != "fp32"):
            for crops in mosaic.crops(self._batch_size(mosaic.window, device)):
                logits = self.model.logits_at(self.model.normalize(crops), steps)
                for several, batch in zip(batches, logits, strict=True):
                    several.append(batch)
        return [mosaic.assemble(torch.cat(several)) for several in batches]

    def _batch_size(self, window: tuple[int, int], device: torch.device) -> int:
        if self.batch_size is not None:
            return self.batch_size
        pixels = (2 if device.type == "cpu" else 16) * 512 * 512
        return max(pixels // (window[0] * window[1]), 1)


def as_pixels(image: str | Path | Image.Image | Pixels) -> Pixels:
    """The (H, W, 3) uint8 RGB array of a file, a PIL image or such an array itself.

    Raises:
        InputError: a file that cannot be read, or anything that is no such array, with the way to one.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return _from_picture(image)
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"image: {type(image).__name__}; give a path, a PIL image or an (H, W, 3) uint8 array "
            "(of a tensor: tensor.permute(1, 2, 0).numpy())"
        )
    shape = tuple(image.shape)
    if image.dtype != np.uint8:
        raise InputError(
            f"image: an array of {image.dtype}; RGB values are uint8 from 0 to 255: for floats in 0..1 use "
            "(image * 255).round().astype(np.uint8)"
        )
    if image.ndim != 3 or shape[2] != 3 or 0 in shape:
        raise InputError(f"image: an array of shape {shape}; expected (H, W, 3): {_shape_remedy(shape)}")
    return image


def _from_picture(picture: Image.Image) -> Pixels:
    """As `read_image` reads files, for the modes of 8 bits."""
    if picture.mode.startswith("I") or picture.mode == "F":
        raise InputError(f"image: a PIL image of mode {picture.mode}; give its path, or scale it to 8 bits per channel")
    try:
        upright = ImageOps.exif_transpose(picture)
    except OSError as error:  # files are decoded on first use
        reason = " ".join(str(error).split())
        raise InputError(f"image: the PIL image cannot be decoded ({reason}); copy or export the file again") from error
    # Pillow warns when a palette's transparency has to vanish in one step
    return np.array((upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB"))


def _shape_remedy(shape: tuple[int, ...]) -> str:
    if 0 in shape:
        return "it holds no pixels"
    if len(shape) == 2:
        return "repeat a gray image with np.stack([image] * 3, axis=-1)"
    if len(shape) == 3 and shape[2] == 4:
        return "drop the alpha channel with image[..., :3]"
    if len(shape) == 3 and shape[0] == 3:
        return "move the channels last with image.transpose(1, 2, 0)"
    if len(shape) == 4:
        return "give one image at a time"
    return "three channels in the order red, green, blue"


def _check_resizing(short_side: int | None, long_side: int, scales: Sequence[float]) -> None:
    if short_side is not None and short_side < 1:
        raise InputError(f"short_side: {short_side} pixels; it must be at least 1, or None for no resizing")
    if short_side is not None and long_side < short_side:
        raise InputError(f"long_side: {long_side} is below short_side {short_side}; exchange them")
    if not scales:
        raise InputError("scales: none given; use (1.0,) for the image at one size")
    for scale in scales:
        if not 0 < scale <= 16:
            raise InputError(f"scales: {scale}; a factor lies above 0 and is at most 16")
    smallest = min(scales)
    if short_side is not None and int(short_side * smallest) < 1:
        raise InputError(f"scales: {smallest} leaves no pixel of short_side {short_side}; use a larger factor")


def _move(model: Segmenter, device: str | torch.device) -> None:
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"device: {device} cannot be used ({reason}); 'cpu' always can") from error


@contextmanager
def _evaluating(model: Segmenter) -> Iterator[None]:
    """Evaluation mode inside, and every module's own training flag restored after."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training
