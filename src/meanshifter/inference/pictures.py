"""What a predictor is given → pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from meanshifter.data.reading import MAX_PIXELS, read_image
from meanshifter.errors import InputError

Pixels = npt.NDArray[np.uint8]
Picture = str | Path | Image.Image | Pixels


def as_pixels(image: Picture, max_pixels: int = MAX_PIXELS) -> Pixels:
    """The (H, W, 3) uint8 RGB array of a file, a PIL image or such an array itself.

    Raises:
        InputError: a file that cannot be read, or anything that is no such array, with the way to one.
    """
    if isinstance(image, str | Path):
        return read_image(image, max_pixels=max_pixels)
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
    try:
        return np.array((upright.convert("RGBA") if "transparency" in upright.info else upright).convert("RGB"))
    except ValueError as error:
        raise InputError(f"image: a PIL image of mode {picture.mode} ({error}); convert it to RGB") from error


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
