"""What cameras and files do to pictures: blur, noise and JPEG artifacts, of a crop (h, w, 3) uint8."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

Pixels = npt.NDArray[np.uint8]


def blurred(pixels: Pixels, sigma: float) -> Pixels:
    """Gaussian blur of standard deviation `sigma` in pixels, by Pillow's three box filters."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def noisy(pixels: Pixels, std: float, rng: np.random.Generator) -> Pixels:
    """Add Gaussian noise of standard deviation `std` in levels of 255, independent per pixel and channel."""
    values = rng.standard_normal(pixels.shape, np.float32)
    values *= np.float32(std)
    values += pixels
    return np.rint(np.clip(values, 0, 255, out=values), out=values).astype(np.uint8)


def compressed(pixels: Pixels, quality: int) -> Pixels:
    """Encode and decode as a JPEG of a quality from 1 to 100, with the chroma at half resolution, as files have it."""
    file = BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
