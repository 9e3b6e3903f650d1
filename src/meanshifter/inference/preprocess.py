"""Preprocessing: reading images, resizing them, and the settings of sliding windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps

from meanshifter.data.labels import LabelSpace
from meanshifter.data.reading import MAX_PIXELS, read_image
from meanshifter.errors import InputError, did_you_mean, summarize_error
from meanshifter.inference.protocol import PatchModel
from meanshifter.inference.windows import Blend, check_windows
from meanshifter.model.config import LARGEST, ModelConfig
from meanshifter.ops import Confidence

Pixels = npt.NDArray[np.uint8]
Picture = str | Path | Image.Image | Pixels | torch.Tensor


@dataclass(frozen=True)
class Preprocess:
    """Settings for resizing and sliding windows. The defaults are MMSegmentation's for ADE20K.

    Raises:
        InputError: a value outside its range.
    """

    window: int | None = 512
    """Side of the square windows in pixels; None: the full image."""
    window_stride: int = 480
    """Distance between windows in pixels, 1 to `window`; unused without windows."""
    short_side: int | None = 512
    """Resize images to fit (`long_side`, `short_side`) pixels, keeping their aspect ratio; None: no resizing."""
    long_side: int = 2048
    """The longer of the two sides."""
    enlarge_to_window: bool = False
    """Upsample normalized images that are smaller than the window, bilinearly."""
    stretch_padding: bool = False
    """Upsample the logits of a padded window, including its padding, to the window's size instead of cropping them."""
    window_blend: Blend = "constant"
    """Weights of overlapping windows: equal, or decreasing as a cosine from the middle of a window to its border."""
    compat: str | None = None
    """The tool whose preprocessing this is, for the protocol of a score; None: our own."""

    def __post_init__(self) -> None:
        check_windows(self.window, self.window_stride)
        if self.window_blend not in get_args(Blend):
            raise InputError(f"window_blend: {self.window_blend!r}; use one of {', '.join(get_args(Blend))}")
        short, long = self.short_side, self.long_side
        if short is not None and short < 1:
            raise InputError(f"short_side: {short} pixels; it must be at least 1, or None for no resizing")
        if short is not None and long < short:
            raise InputError(f"long_side: {long} is below short_side {short}; swap them")
        if short is not None and long > LARGEST:
            raise InputError(f"long_side: {long} pixels; it must be at most {LARGEST}")

    @classmethod
    def of(cls, config: ModelConfig) -> Preprocess:
        """Return the preprocessing in a model's configuration."""
        return cls(config.window, config.window_stride, config.short_side, config.long_side)

    def size(self, height: int, width: int, scale: float = 1.0) -> tuple[int, int]:
        """Return the size (H, W) to which an image is resized, with both sides multiplied by `scale`."""
        return fitted_size(height, width, short_side=self.short_side, long_side=self.long_side, scale=scale)

    def enlarges(self, size: tuple[int, int]) -> bool:
        """Return whether an image resized to `size` is then upsampled to the window."""
        return self.enlarge_to_window and self.window is not None and min(size) < self.window


def as_pixels(image: Picture, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Convert a file, PIL image, tensor or array to an (H, W, 3) uint8 RGB array.

    Raises:
        InputError: an unreadable file or an unsupported array; the message says how to convert it.
    """
    if isinstance(image, str | Path):
        return read_image(image, max_pixels=max_pixels)
    if isinstance(image, Image.Image):
        return _from_picture(image)
    if isinstance(image, torch.Tensor):
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise InputError(
            f"image: {type(image).__name__}; expected a path, a PIL image, or an (H, W, 3) uint8 array or tensor"
        )
    shape = tuple(image.shape)
    if image.dtype != np.uint8:
        raise InputError(
            f"image: array of {image.dtype}; expected uint8 from 0 to 255; convert floats in 0..1 with "
            "(image * 255).round().astype(np.uint8)"
        )
    if image.ndim != 3 or shape[2] != 3 or 0 in shape:
        raise InputError(f"image: array of shape {shape}; expected (H, W, 3): {_shape_remedy(shape)}")
    return image


def _from_picture(picture: Image.Image) -> Pixels:
    """Convert a PIL image as `read_image` does files; 8-bit modes only."""
    if picture.mode.startswith("I") or picture.mode == "F":
        raise InputError(f"image: a PIL image of mode {picture.mode}; give its path, or scale it to 8 bits per channel")
    try:
        upright = ImageOps.exif_transpose(picture)
    except OSError as error:  # PIL decodes files on first use
        reason = summarize_error(error)
        raise InputError(f"image: the PIL image cannot be decoded ({reason}); copy or export the file again") from error
    # via RGBA, since Pillow warns when a palette's transparency is dropped directly
    try:
        return np.array((upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB"))
    except ValueError as error:
        raise InputError(f"image: a PIL image of mode {picture.mode} ({error}); convert it to RGB") from error


def _shape_remedy(shape: tuple[int, ...]) -> str:
    if 0 in shape:
        return "it has no pixels"
    if len(shape) == 2:
        return "repeat a gray image with np.stack([image] * 3, axis=-1)"
    if len(shape) == 3 and shape[2] == 4:
        return "drop the alpha channel with image[..., :3]"
    if len(shape) == 3 and shape[0] == 3:
        return "move the channels last with image.transpose(1, 2, 0)"
    if len(shape) == 4:
        return "give one image at a time"
    return "it needs three channels, in the order red, green, blue"


Integers = npt.NDArray[np.signedinteger[Any]]


def fitted_size(height: int, width: int, *, short_side: int | None, long_side: int, scale: float) -> tuple[int, int]:
    """Return the size (H, W) that fits into (long_side, short_side) times `scale`, keeping the aspect ratio.

    As in mmcv's `rescale_size`, the factor is the largest that keeps both sides inside, above 1 for smaller images,
    and sides are rounded half up. Without `short_side`, the factor is `scale` itself.
    """
    factor = scale
    if short_side is not None:
        factor = min(int(long_side * scale) / max(height, width), int(short_side * scale) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def enlarged_size(height: int, width: int, window: int) -> tuple[int, int]:
    """Return the size (H, W) to which the official Segmenter upsamples images with a side below the window.

    Source: `resize` in `segm/model/utils.py` of github.com/rstrudel/segmenter.
    """
    if min(height, width) >= window:
        return height, width
    return (window, int(width / height * window)) if height < width else (int(height / width * window), window)


def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resize `image` (H, W, 3) to `size`, bilinearly with half-pixel centers and without antialiasing.

    Bit-exact with OpenCV's `INTER_LINEAR` for 8 bits, with which published models were trained and scored: weights
    are multiples of 1/2048, and four bits are dropped between the two passes.
    """
    if image.shape[:2] == size:
        return image
    (H, W), out = image.shape[:2], np.empty((*size, 3), dtype=np.uint8)
    top, bottom, upper, lower = (entry[..., None] for entry in _taps(H, size[0]))
    left, right, near, far = _taps(W, size[1], clamped=True)
    for channel in range(3):  # one at a time, since the integers take four times the memory of the image
        plane = image[..., channel].astype(np.int32)
        wide = (plane[:, left] * near + plane[:, right] * far) >> 4
        parts = (upper * wide[top[:, 0]] >> 16) + (lower * wide[bottom[:, 0]] >> 16)
        out[..., channel] = (parts + 2) >> 2
    return out


def _taps(n: int, m: int, *, clamped: bool = False) -> tuple[Integers, Integers, Integers, Integers]:
    """For each of m positions over n pixels: the pixels before and after it, and their weights in 1/2048.

    With `clamped`, only the nearest pixel counts beyond the outermost centers, as in OpenCV along rows; along columns
    OpenCV weighs that pixel twice, which rounds differently.
    """
    place = ((np.arange(m) + 0.5) * (n / m) - 0.5).astype(np.float32)
    before = np.floor(place).astype(np.int64)
    after_weight = (place - before).astype(np.float32)
    if clamped:
        after_weight[(before < 0) | (before >= n - 1)] = 0
        before = before.clip(0, n - 1)
    weights = (np.rint(share * np.float32(2048)).astype(np.int32) for share in (1 - after_weight, after_weight))
    return before.clip(0, n - 1), (before + 1).clip(0, n - 1), *weights


def check_scales(scales: Sequence[float], short_side: int | None) -> None:
    """Check factors on the image size; raises InputError."""
    if not scales:
        raise InputError("scales: none given; use (1.0,) for a single scale")
    for scale in scales:
        if not 0 < scale <= 16:
            raise InputError(f"scales: {scale}; a scale must be above 0 and at most 16")
    smallest = min(scales)
    if short_side is not None and int(short_side * smallest) < 1:
        raise InputError(f"scales: {smallest} leaves no pixel of short_side {short_side}; use a larger scale")


def check_requested(confidence: Sequence[str], probabilities: Sequence[str], label_space: LabelSpace) -> None:
    """Check the names of requested maps; raises InputError."""
    for name in confidence:
        if name not in get_args(Confidence):
            raise InputError(f"confidence: {name!r}; use one of {', '.join(get_args(Confidence))}")
    for name in probabilities:
        if name not in label_space.names:
            hint = did_you_mean(name, label_space.names, f"its classes are {', '.join(label_space.names[:10])}, …")
            raise InputError(f"probabilities: the model has no class {name!r}; {hint}")
    for name, times in Counter((*confidence, *probabilities)).items():
        if times > 1:
            raise InputError(f"{name!r}: given {times} times in confidence and probabilities; give it once")


def move(model: PatchModel, device: str | torch.device) -> None:
    """Move the model in place; raises InputError if it cannot run there."""
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        reason = summarize_error(error).rstrip(".")
        raise InputError(f"device: {device} cannot be used ({reason}); use 'cpu'") from error
