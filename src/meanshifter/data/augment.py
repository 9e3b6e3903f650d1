"""The field's training augmentation: resize, crop, flip, photometric distortion, normalise, pad.

Source: the ADE20K pipeline of MMSegmentation. The crop is chosen first and only the crop is resampled.
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

from meanshifter.data.distortion import Distortion, distort, draw_distortion
from meanshifter.data.labels import Labels
from meanshifter.kernels import has_numba

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
BILINEAR: Final = Image.Resampling.BILINEAR


@dataclass
class AugmentConfig:
    """Augmentation of training samples."""

    crop: tuple[int, int] = (512, 512)
    """(height, width) of a training crop in pixels."""
    base: tuple[int, int] | None = (2048, 512)
    """Images are first thought of as fitted into (long side, short side); null keeps their own size."""
    scale: tuple[float, float] = (0.5, 2.0)
    """Range of the random factor on that size."""
    max_class_share: float = 0.75
    """A crop with more than this share of one class is drawn again, up to 10 times; 1 accepts every crop."""
    flip: float = 0.5
    """Probability of mirroring."""
    distortion: bool = True
    """Random brightness, contrast, saturation and hue, each with probability one half."""

    def violations(self) -> list[str]:
        """What means nothing: a line's part for every field outside its range."""
        rules = [
            ("crop", self.crop, min(self.crop) >= 1, "at least 1 pixel"),
            ("base", self.base, self.base is None or min(self.base) >= 1, "at least 1 pixel, or null"),
            ("scale", self.scale, 0 < self.scale[0] <= self.scale[1], "two factors above 0, the smaller first"),
            ("max_class_share", self.max_class_share, 0 < self.max_class_share <= 1, "above 0, up to 1"),
            ("flip", self.flip, 0 <= self.flip <= 1, "a probability"),
        ]
        return [f"augment.{name}: {value} is not {rule}" for name, value, right, rule in rules if not right]


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
    """One training crop: float32 (3, h, w), normalised, and labels (h, w).

    All draws come from `rng`; `scale` is the first of them, where it has been drawn already. What the image does not
    fill is 0 after normalisation, its labels `ignore`. The image may be smaller than its labels, if both show the same.
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
    """Everything that chance decides about one training crop."""

    size: tuple[int, int]
    """Height and width that the image is resized to."""
    box: Box
    """What is cut from it then."""
    mirrored: bool
    distortion: Distortion


def draw(
    labels: Labels, config: AugmentConfig, rng: np.random.Generator, *, ignore: int, scale: float | None = None
) -> Plan:
    """All draws of `augment`, in its order."""
    size = resized(labels.shape, config, draw_scale(config, rng) if scale is None else scale)
    box = _choose_crop(labels, size, config, rng, ignore)
    mirrored = bool(rng.random() < config.flip)
    return Plan(size, box, mirrored, draw_distortion(rng) if config.distortion else Distortion())


def normalization(mean: Sequence[float], std: Sequence[float]) -> tuple[Floats, Floats]:
    """Factor and offset (3) with which 0..255 becomes v · factor - offset."""
    factor = np.array([1 / (255 * value) for value in std], np.float32)
    return factor, np.array([shift / value for shift, value in zip(mean, std, strict=True)], np.float32)


def _finish(crop: Pixels, changes: Distortion, mirrored: bool, factor: Floats, offset: Floats, out: Floats) -> None:
    """Distort, mirror and normalise a crop (h, w, 3) into the top left of `out` (3, H, W)."""
    if has_numba():
        from meanshifter.data.distort_cpu import distort_and_normalize

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


Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in the resized image."""


def draw_scale(config: AugmentConfig, rng: np.random.Generator) -> float:
    """The random factor on the size of an image."""
    return float(rng.uniform(*config.scale))


def resize_factor(H: int, W: int, config: AugmentConfig, scale: float) -> float:
    """What an image of H × W is resized by, so that it fits into `base` times the scale."""
    if config.base is None:
        return scale
    long, short = max(config.base) * scale, min(config.base) * scale
    return min(long / max(H, W), short / min(H, W))


def resized(shape: tuple[int, ...], config: AugmentConfig, scale: float) -> tuple[int, int]:
    """Height and width of the resized image, rounded half up as mmcv's imrescale does."""
    H, W = shape[:2]
    factor = resize_factor(H, W, config, scale)
    return max(1, int(H * factor + 0.5)), max(1, int(W * factor + 0.5))


def _choose_crop(
    labels: Labels, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator, ignore: int
) -> Box:
    """A crop in which no class has more than its share of the labelled pixels; the 10th try is taken as it is."""
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
    """The box of `labels` resized to `size` by nearest neighbour (half-pixel centres), without resizing the rest."""
    top, left, bottom, right = box
    rows = nearest_indices(labels.shape[0], size[0], top, bottom)
    cols = nearest_indices(labels.shape[1], size[1], left, right)
    return labels.take(rows, axis=0).take(cols, axis=1)


def nearest_indices(whole: int, target: int, start: int, stop: int) -> npt.NDArray[np.int64]:
    """floor((i + 1/2) · whole / target) for i in start … stop-1, exactly."""
    indices: npt.NDArray[np.int64] = (2 * np.arange(start, stop) + 1) * whole // (2 * target)
    return indices


def _resample(image: Pixels, size: tuple[int, int], box: Box) -> Pixels:
    """The box of `image` resized bilinearly, without resizing the rest.

    Pillow widens its triangle filter when it shrinks (antialiasing); OpenCV, behind MMSegmentation, does not.
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
    """What one axis of a crop is made from: whole source pixels, extra target pixels, and the exact source range.

    Two target pixels more on each side, and the source pixels that the filter reaches from there, make the crop
    the same as one cut from the whole resized image.
    """
    extra = min(2, start), min(2, target - stop)
    step = whole / target
    first, last = (start - extra[0]) * step, (stop + extra[1]) * step
    low, high = max(0, math.floor(first) - 1), min(whole, math.ceil(last) + 1)
    return low, high, extra, max(0.0, first - low), min(float(high - low), last - low)
