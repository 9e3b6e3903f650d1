"""The usual training augmentation of segmentation: resize, crop, flip, photometric distortion, normalize, pad.

Source: the ADE20K pipeline of MMSegmentation. The crop is chosen first, and only the crop is resampled.
Glossary: H W pixels of the source, h w of the crop.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.distortion import Distortion, distort, distort_and_normalize, draw_distortion
from meanshifter.data.labels import Labels
from meanshifter.utils.environment import has_numba

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in the resized image."""
BILINEAR: Final = Image.Resampling.BILINEAR


@dataclass
class AugmentConfig:
    """Augmentation of training samples."""

    crop: tuple[int, int] = (512, 512)
    """(height, width) of a training crop in pixels."""
    resize_base: tuple[int, int] | None = (2048, 512)
    """(long side, short side) that images are fitted into before random scaling; null keeps their own size."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random scale factor."""
    max_class_share: float = 0.75
    """A crop with more than this share of one class is drawn again, up to 10 times; 1 accepts every crop."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    photometric_distortion: bool = True
    """Random brightness, contrast, saturation and hue, each with probability 0.5."""

    def violations(self) -> list[str]:
        """A message for every field outside its range."""
        base = self.resize_base
        rules = [
            ("crop", self.crop, min(self.crop) >= 1, "at least 1 pixel"),
            ("resize_base", base, base is None or min(base) >= 1, "at least 1 pixel, or null"),
            ("scale", self.scale, 0 < self.scale[0] <= self.scale[1], "two factors above 0, the smaller one first"),
            ("max_class_share", self.max_class_share, 0 < self.max_class_share <= 1, "above 0 and at most 1"),
            ("flip", self.flip, 0 <= self.flip <= 1, "a probability from 0 to 1"),
        ]
        return [f"augment.{name}: {value} is not {rule}" for name, value, valid, rule in rules if not valid]


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
) -> tuple[Floats, Labels]:
    """Make one training crop: normalized float32 (3, h, w), and labels (h, w).

    All random draws come from `rng`; `scale` is the first of them, if it has been drawn already. Padding is 0 after
    normalization, and its labels are `ignore`. The image may be smaller than its labels if both show the same scene.
    """
    plan = draw(labels, config, rng, ignore=ignore, scale=scale)
    crop, target = _resample(image, plan.size, plan.box), nearest(labels, plan.size, plan.box)
    out = np.zeros((3, *config.crop), np.float32)
    factor, offset = normalization(mean, std)
    _finish(crop, plan.distortion, plan.mirrored, factor, offset, out)
    padded = np.full(config.crop, ignore, labels.dtype)
    h, w = target.shape
    padded[:h, :w] = target[:, ::-1] if plan.mirrored else target
    return out, padded


@dataclass(frozen=True)
class Plan:
    """All random choices of one training crop."""

    size: tuple[int, int]
    """(height, width) of the resized image."""
    box: Box
    """The crop in the resized image."""
    mirrored: bool
    distortion: Distortion


def draw(
    labels: Labels, config: AugmentConfig, rng: np.random.Generator, *, ignore: int, scale: float | None = None
) -> Plan:
    """Make all random draws of `augment`, in its order."""
    size = resized(labels.shape, config, draw_scale(config, rng) if scale is None else scale)
    box = _choose_crop(labels, size, config, rng, ignore)
    mirrored = bool(rng.random() < config.flip)
    return Plan(size, box, mirrored, draw_distortion(rng) if config.photometric_distortion else Distortion())


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


def draw_scale(config: AugmentConfig, rng: np.random.Generator) -> float:
    """Draw the random scale factor of an image."""
    return float(rng.uniform(*config.scale))


def resize_factor(H: int, W: int, config: AugmentConfig, scale: float) -> float:
    """The factor by which an H × W image is resized to fit into `resize_base` times the scale."""
    if config.resize_base is None:
        return scale
    long, short = max(config.resize_base) * scale, min(config.resize_base) * scale
    return min(long / max(H, W), short / min(H, W))


def resized(shape: tuple[int, ...], config: AugmentConfig, scale: float) -> tuple[int, int]:
    """(height, width) of the resized image, rounded half up as in mmcv's imrescale."""
    H, W = shape[:2]
    factor = resize_factor(H, W, config, scale)
    return max(1, int(H * factor + 0.5)), max(1, int(W * factor + 0.5))


def _choose_crop(
    labels: Labels, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator, ignore: int
) -> Box:
    """Draw a crop in which no class exceeds its share of the labeled pixels; the 10th draw is always accepted."""
    for _ in range(10):
        top = int(rng.integers(0, max(size[0] - config.crop[0], 0) + 1))
        left = int(rng.integers(0, max(size[1] - config.crop[1], 0) + 1))
        box = (top, left, min(top + config.crop[0], size[0]), min(left + config.crop[1], size[1]))
        if config.max_class_share >= 1:
            return box
        target = nearest(labels, size, box)
        counts = np.bincount(target.ravel(), minlength=ignore + 1)
        counts[ignore] = 0
        if np.count_nonzero(counts) > 1 and counts.max() < config.max_class_share * counts.sum():
            return box
    return box


def nearest(labels: Labels, size: tuple[int, int], box: Box) -> Labels:
    """A box of `labels` resized to `size` by nearest neighbor (half-pixel centers), without resizing the rest."""
    top, left, bottom, right = box
    rows = nearest_indices(labels.shape[0], size[0], top, bottom)
    cols = nearest_indices(labels.shape[1], size[1], left, right)
    return labels.take(rows, axis=0).take(cols, axis=1)


def nearest_indices(whole: int, target: int, start: int, stop: int) -> npt.NDArray[np.int64]:
    """The exact floor((i + 1/2) · whole / target) for i in start … stop-1."""
    indices: npt.NDArray[np.int64] = (2 * np.arange(start, stop) + 1) * whole // (2 * target)
    return indices


def _resample(image: Pixels, size: tuple[int, int], box: Box) -> Pixels:
    """A box of `image` resized bilinearly to `size`, without resizing the rest.

    Pillow widens its triangle filter when it downsamples (antialiasing); OpenCV, which MMSegmentation uses, does not.
    """
    if size == image.shape[:2]:
        return image[box[0] : box[2], box[1] : box[3]]
    y0, y1, above, top, bottom = _span(image.shape[0], size[0], box[0], box[2])
    x0, x1, before, left, right = _span(image.shape[1], size[1], box[1], box[3])
    source = Image.fromarray(np.ascontiguousarray(image[y0:y1, x0:x1]))
    h, w = box[2] - box[0], box[3] - box[1]
    padded = source.resize((w + before[0] + before[1], h + above[0] + above[1]), BILINEAR, (left, top, right, bottom))
    return np.asarray(padded)[above[0] : above[0] + h, before[0] : before[0] + w]


def _span(whole: int, target: int, start: int, stop: int) -> tuple[int, int, tuple[int, int], float, float]:
    """The source of one axis of a crop: full source pixels, extra target pixels, and the exact source range.

    With two more target pixels on each side, and the source pixels that the filter reaches from there, the crop equals
    one that is cut from the completely resized image.
    """
    extra = min(2, start), min(2, target - stop)
    step = whole / target
    first, last = (start - extra[0]) * step, (stop + extra[1]) * step
    low, high = max(0, math.floor(first) - 1), min(whole, math.ceil(last) + 1)
    return low, high, extra, max(0.0, first - low), min(float(high - low), last - low)
