"""The random choices of a training crop: where it is cut, how it is turned, which part is erased.

What MMSegmentation's pipeline lacks draws from a generator of its own for each field (`own_generator`), so that
switching one on changes no other draw.

Glossary: H W pixels of the source, h w of the crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import numpy as np
import numpy.typing as npt

from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.distortion import Distortion, draw_distortion
from meanshifter.data.labels import Labels
from meanshifter.data.resampling import Box, Mask, nearest

Array = TypeVar("Array", bound=npt.NDArray[np.generic])
DRAWS: Final = (
    *("rare_crops", "rare_pixel", "aspect", "rotation", "vertical_flip", "quarter_turns", "copy_paste", "pasted"),
    *("mix", "mixed", "transforms", "blur", "noise", "jpeg", "erasing"),
)
"""What has a generator of its own. The order is part of the samples: add new ones at the end."""


def own_generator(rng: np.random.Generator, name: str) -> np.random.Generator:
    """The generator of one of `DRAWS`: a function of the seed of `rng`, independent of what was drawn from it."""
    seed: Any = rng.bit_generator.seed_seq
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, DRAWS.index(name))))


@dataclass(frozen=True)
class Plan:
    """All random choices of one training crop about its place, and about what follows on a device."""

    size: tuple[int, int]
    """(height, width) of the resized image."""
    box: Box
    """The crop in the resized image, before flips and turns."""
    mirrored: bool
    distortion: Distortion
    angle: float = 0.0
    """Degrees by which the picture turns counterclockwise about the center of the box."""
    upside_down: bool = False
    """Flipped vertically."""
    turns: int = 0
    """Quarter turns counterclockwise, after the flips."""
    erased: Box | None = None
    """The part of the finished crop that is erased."""

    def oriented(self, crop: Array) -> Array:
        """A crop (h, w, …) flipped and turned, as a view."""
        rows, cols = (slice(None, None, -1 if flipped else 1) for flipped in (self.upside_down, self.mirrored))
        return cast(Array, np.rot90(crop[rows, cols], self.turns))


def draw(
    labels: Labels,
    config: AugmentConfig,
    rng: np.random.Generator,
    *,
    ignore: int,
    scale: float | None = None,
    rare_class: int | None = None,
) -> Plan:
    """Make all random draws of `augment` about the place of the crop, and those of its colors and erased parts."""
    turns = _draw_turns(config, rng)
    crop = config.crop[::-1] if turns % 2 else config.crop
    scale = draw_scale(config, rng) if scale is None else scale
    size = resized(labels.shape, config, scale, draw_aspect(config, rng))
    box = _choose_crop(labels, size, crop, config.max_class_share, rng, ignore)
    mirrored = bool(rng.random() < config.flip)
    distortion = draw_distortion(rng) if config.photometric_distortion else Distortion()
    if rare_class is not None:  # after the other draws, which stay as they are
        box = _crop_around(labels == rare_class, size, crop, own_generator(rng, "rare_pixel"), box)
    return Plan(
        size,
        box,
        mirrored,
        distortion,
        float(own_generator(rng, "rotation").uniform(-config.rotation, config.rotation)) if config.rotation else 0.0,
        occurs(config.vertical_flip, rng, "vertical_flip"),
        turns,
        _draw_erased(config, own_generator(rng, "erasing")) if config.erasing else None,
    )


def occurs(probability: float, rng: np.random.Generator, name: str) -> bool:
    """Whether something happens in this sample: the first draw of its own generator."""
    return probability > 0 and bool(own_generator(rng, name).random() < probability)


def _draw_turns(config: AugmentConfig, rng: np.random.Generator) -> int:
    if not config.quarter_turns:
        return 0
    own = own_generator(rng, "quarter_turns")
    return int(own.integers(1, 4)) if own.random() < config.quarter_turns else 0


def _draw_erased(config: AugmentConfig, own: np.random.Generator) -> Box | None:
    """A rectangle of random area and of an aspect ratio from 0.3 to 3.3.

    Source: Zhong et al., Random Erasing Data Augmentation, AAAI 2020, algorithm 1; there, a rectangle that exceeds the
    image is drawn again, and here its side is cut.
    """
    if own.random() >= config.erasing:
        return None
    h, w = config.crop
    area, ratio = own.uniform(*config.erasing_area) * h * w, math.exp(own.uniform(math.log(0.3), -math.log(0.3)))
    height = min(max(round(math.sqrt(area * ratio)), 1), h)
    width = min(max(round(area / height), 1), w)
    top, left = int(own.integers(0, h - height + 1)), int(own.integers(0, w - width + 1))
    return top, left, top + height, left + width


def draw_scale(config: AugmentConfig, rng: np.random.Generator) -> float:
    """Draw the random scale factor of an image."""
    return float(rng.uniform(*config.scale))


def resize_factor(H: int, W: int, config: AugmentConfig, scale: float) -> float:
    """The factor by which an H × W image is resized to fit into `resize_base` times the scale."""
    if config.resize_base is None:
        return scale
    long, short = max(config.resize_base) * scale, min(config.resize_base) * scale
    return min(long / max(H, W), short / min(H, W))


def draw_aspect(config: AugmentConfig, rng: np.random.Generator) -> float:
    """Draw the factor by which the ratio of width to height changes; its logarithm is uniform."""
    low, high = config.aspect
    if low == high == 1:
        return 1.0
    return math.exp(own_generator(rng, "aspect").uniform(math.log(low), math.log(high)))


def resized(shape: tuple[int, ...], config: AugmentConfig, scale: float, aspect: float = 1.0) -> tuple[int, int]:
    """(height, width) of the resized image, rounded half up as in mmcv's imrescale."""
    H, W = shape[:2]
    factor, root = resize_factor(H, W, config, scale), math.sqrt(aspect)
    return max(1, int(H * factor / root + 0.5)), max(1, int(W * factor * root + 0.5))


def _choose_crop(
    labels: Labels,
    size: tuple[int, int],
    crop: tuple[int, int],
    max_share: float,
    rng: np.random.Generator,
    ignore: int,
) -> Box:
    """Draw a crop in which no class exceeds its share of the labeled pixels; the 10th draw is always accepted."""
    for _ in range(10):
        top = int(rng.integers(0, max(size[0] - crop[0], 0) + 1))
        left = int(rng.integers(0, max(size[1] - crop[1], 0) + 1))
        box = (top, left, min(top + crop[0], size[0]), min(left + crop[1], size[1]))
        if max_share >= 1:
            return box
        target = nearest(labels, size, box)
        counts = np.bincount(target.ravel(), minlength=ignore + 1)
        counts[ignore] = 0
        if np.count_nonzero(counts) > 1 and counts.max() < max_share * counts.sum():
            return box
    return box


def _crop_around(
    wanted: Mask, size: tuple[int, int], crop: tuple[int, int], rng: np.random.Generator, otherwise: Box
) -> Box:
    """A crop that shows one of the wanted pixels (H, W), at a random place in its middle half if the image allows it.

    In the very center, every such crop would show its class at the same position embedding.
    """
    found = np.flatnonzero(wanted)
    if not len(found):
        return otherwise
    H, W = wanted.shape
    pixel = divmod(int(found[rng.integers(len(found))]), W)
    corner = []
    for at, whole, target, side in zip(pixel, (H, W), size, crop, strict=True):
        start = (at + 0.5) * target / whole - side * rng.uniform(0.25, 0.75)
        corner.append(min(max(round(start), 0), max(target - side, 0)))
    top, left = corner
    return top, left, min(top + crop[0], size[0]), min(left + crop[1], size[1])
