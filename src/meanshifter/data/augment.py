"""Training augmentation of segmentation: resize, crop, flip, photometric distortion, normalize, pad, and what is added.

Source: the ADE20K pipeline of MMSegmentation. The crop is chosen first, and only the crop is resampled, once. The order
is: resize, crop and rotate; flips and quarter turns; mixing with other crops (`mixing`); transforms of torchvision;
blur, noise and JPEG; photometric distortion; erasing. `crop_plan` makes the random choices.

Glossary: H W pixels of the source, h w of the crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.crop_plan import Plan, draw, occurs, own_generator
from meanshifter.data.distortion import Distortion, distort, distort_and_normalize
from meanshifter.data.labels import Labels
from meanshifter.data.resampling import Box, Mask, Pixels, nearest, resample, rotate
from meanshifter.data.transforms import apply_transforms
from meanshifter.utils.environment import has_numba

Floats = npt.NDArray[np.float32]


class Crop(NamedTuple):
    """A crop before its colors are distorted and normalized."""

    pixels: Pixels
    """(h, w, 3), in the mean color where `outside`."""
    labels: Labels
    """(h, w), ignored where `outside`."""
    outside: Mask
    """(h, w): padding, and what a rotation shows from outside of the image."""


def augment(
    image: Pixels,
    labels: Labels,
    config: AugmentConfig,
    rng: np.random.Generator,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    ignore: int,
    scale: float | None = None,
    rare_class: int | None = None,
    mix: Callable[[Crop], Crop] | None = None,
) -> tuple[Floats, Labels]:
    """Make one training crop: normalized float32 (3, h, w), and labels (h, w).

    All random draws come from `rng`, or from its seed (`own_generator`). Padding is 0 after normalization, and its
    labels are `ignore`. The image may be smaller than its labels if both show the same scene.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W).
        config: the settings.
        rng: it must come from a seed, as those of `np.random.default_rng` do.
        mean: mean of RGB in 0..1.
        std: standard deviation of RGB in 0..1.
        ignore: label that is ignored.
        scale: the first draw from `rng`, if it has been made already.
        rare_class: a class of which the crop shows a pixel; None: any crop.
        mix: changes the crop, for example by pasting parts of another one, before its colors are distorted.
    """
    plan = draw(labels, config, rng, ignore=ignore, scale=scale, rare_class=rare_class)
    factor, offset = normalization(mean, std)
    out = np.zeros((3, *config.crop), np.float32)
    if config.extended:
        crop = cut(image, labels, plan, config.crop, mean=mean, ignore=ignore)
        crop = crop if mix is None else mix(crop)
        crop = _changed(crop, config, rng, mean=mean, ignore=ignore)
        _finish(crop.pixels, plan.distortion, False, factor, offset, out)
        out[:, crop.outside] = 0
        return _erased(out, crop.labels, plan.erased, ignore)
    content, target = resample(image, plan.size, plan.box), nearest(labels, plan.size, plan.box)
    _finish(content, plan.distortion, plan.mirrored, factor, offset, out)
    padded = np.full(config.crop, ignore, labels.dtype)
    h, w = target.shape
    padded[:h, :w] = target[:, ::-1] if plan.mirrored else target
    return out, padded


def cut(
    image: Pixels, labels: Labels, plan: Plan, shape: tuple[int, int], *, mean: Sequence[float], ignore: int
) -> Crop:
    """The crop of `shape` (h, w) that a plan describes, before its colors change."""
    fill = fill_color(mean)
    if plan.angle:
        before = shape[::-1] if plan.turns % 2 else shape
        parts = rotate(image, labels, plan.size, plan.box, plan.angle, before, fill=fill, ignore=ignore)
        pixels, rotated, outside = (plan.oriented(part).copy() for part in parts)  # those of Pillow are read-only
        return Crop(cast(Pixels, pixels), cast(Labels, rotated), cast(Mask, outside))
    content = plan.oriented(resample(image, plan.size, plan.box))
    target = plan.oriented(nearest(labels, plan.size, plan.box))
    crop = Crop(np.empty((*shape, 3), np.uint8), np.full(shape, ignore, labels.dtype), np.ones(shape, np.bool_))
    h, w = target.shape
    if (h, w) != shape:
        crop.pixels[:] = fill
    crop.pixels[:h, :w], crop.labels[:h, :w], crop.outside[:h, :w] = content, target, False
    return crop


def fill_color(mean: Sequence[float]) -> tuple[int, int, int]:
    """The mean color in 0..255, rounded."""
    red, green, blue = (round(255 * value) for value in mean)
    return red, green, blue


def _changed(
    crop: Crop, config: AugmentConfig, rng: np.random.Generator, *, mean: Sequence[float], ignore: int
) -> Crop:
    """The crop after torchvision's transforms, blur, noise and JPEG."""
    if config.transforms:
        seed = int(own_generator(rng, "transforms").integers(2**63))
        crop = Crop(*apply_transforms(config.transforms, *crop, seed=seed, fill=fill_color(mean), ignore=ignore))
    pixels = crop.pixels
    if occurs(config.blur, rng, "blur"):
        pixels = blurred(pixels, _second(rng, "blur").uniform(*config.blur_sigma))
    if occurs(config.noise, rng, "noise"):
        own = _second(rng, "noise")
        pixels = noisy(pixels, own.uniform(*config.noise_std), own)
    if occurs(config.jpeg, rng, "jpeg"):
        low, high = config.jpeg_quality
        pixels = compressed(pixels, int(_second(rng, "jpeg").integers(low, high + 1)))
    return crop._replace(pixels=pixels)


def _second(rng: np.random.Generator, name: str) -> np.random.Generator:
    """The generator of `name` after the draw of `occurs`."""
    own = own_generator(rng, name)
    own.random()
    return own


def _erased(out: Floats, labels: Labels, box: Box | None, ignore: int) -> tuple[Floats, Labels]:
    """Erase a box in place; the erased pixels show nothing of their classes, which are ignored."""
    if box is not None:
        top, left, bottom, right = box
        out[:, top:bottom, left:right] = 0
        labels[top:bottom, left:right] = ignore
    return out, labels


def normalization(mean: Sequence[float], std: Sequence[float]) -> tuple[Floats, Floats]:
    """Factor (3) and offset (3) that normalize values v in 0..255 as v · factor - offset."""
    factor = np.array([1 / (255 * value) for value in std], np.float32)
    return factor, np.array([shift / value for shift, value in zip(mean, std, strict=True)], np.float32)


def _finish(crop: Pixels, changes: Distortion, mirrored: bool, factor: Floats, offset: Floats, out: Floats) -> None:
    """Distort, mirror and normalize a crop (h, w, 3) into the top left of `out` (3, H, W)."""
    if has_numba():
        numbers = (np.float32(changes.contrast), np.float32(changes.saturation), np.float32(changes.hue))
        brightness = np.float32(changes.brightness)
        distort_and_normalize(
            np.ascontiguousarray(crop), mirrored, brightness, changes.contrast_first, *numbers, factor, offset, out
        )
        return
    planes = (crop[:, ::-1] if mirrored else crop).transpose(2, 0, 1).astype(np.float32, order="C")
    distort(planes, changes)
    h, w = planes.shape[1:]
    out[:, :h, :w] = planes * factor[:, None, None] - offset[:, None, None]


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
