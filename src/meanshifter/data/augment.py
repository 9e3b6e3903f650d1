"""Training augmentation of segmentation: resize, crop, flip, photometric distortion, normalize, pad, and what is added.

Source: the ADE20K pipeline of MMSegmentation. The crop is chosen first, and only the crop is resampled, once. The order
is: resize, crop and rotate; flips and quarter turns; mixing with other crops (`mixing`); transforms of torchvision;
blur, noise and JPEG (`degradation`); photometric distortion; erasing.

What MMSegmentation's pipeline lacks draws from a generator of its own for each field (`own_generator`), so that
switching one on changes no other draw.

Glossary: H W pixels of the source, h w of the crop.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt

from meanshifter.data.degradation import blurred, compressed, noisy
from meanshifter.data.distortion import Distortion, distort, distort_and_normalize, draw_distortion
from meanshifter.data.labels import Labels
from meanshifter.data.resampling import Box, Pixels, nearest, resample, rotate
from meanshifter.data.transforms import apply_transforms, check_transforms
from meanshifter.utils.environment import has_numba

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Array = TypeVar("Array", bound=npt.NDArray[np.generic])
Numbers = tuple[float, float] | tuple[int, int]


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
    rare_crops: float = 0.0
    """Probability that image and crop are drawn to contain a pixel of a class, rare ones more often."""
    aspect: tuple[float, float] = (1.0, 1.0)
    """Range of the random factor by which the ratio of width to height changes, at equal area, such as 0.75 1.33."""
    rotation: float = 0.0
    """Rotate by a random angle of at most this many degrees; corners outside of the image are ignored."""
    vertical_flip: float = 0.0
    """Probability of a vertical flip."""
    quarter_turns: float = 0.0
    """Probability of a turn by 90, 180 or 270 degrees; 0.75 makes all four orientations equally likely."""
    copy_paste: float = 0.0
    """Probability that all pixels of a class in a crop of another image are pasted, rare classes more often."""
    cutmix: float = 0.0
    """Probability that a rectangle is replaced by that of a crop of another image, with its labels."""
    classmix: float = 0.0
    """Probability that half of the classes in a crop of another image are pasted; cutmix + classmix is at most 1."""
    transforms: list[dict[str, Any]] = field(default_factory=list)
    """Transforms of torchvision.transforms.v2, each a name with arguments: [{name: RandomSolarize, threshold: 128}]."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the standard deviation of the blur in pixels of the crop."""
    noise: float = 0.0
    """Probability of Gaussian noise."""
    noise_std: tuple[float, float] = (2.0, 12.0)
    """Range of the standard deviation of the noise, in levels of 255."""
    jpeg: float = 0.0
    """Probability of JPEG artifacts."""
    jpeg_quality: tuple[int, int] = (30, 90)
    """Range of the JPEG quality."""
    erasing: float = 0.0
    """Probability that a rectangle is erased: mean color, labels ignored."""
    erasing_area: tuple[float, float] = (0.02, 0.2)
    """Range of the share of the crop that is erased."""

    def violations(self) -> list[str]:
        """A message for every field outside its range."""
        base, probability = self.resize_base, "a probability from 0 to 1"
        rules: list[tuple[str, Any, bool, str]] = [
            ("crop", self.crop, min(self.crop) >= 1, "at least 1 pixel"),
            ("resize_base", base, base is None or min(base) >= 1, "at least 1 pixel, or null"),
            ("scale", self.scale, _is_range(self.scale), "two factors above 0, the smaller one first"),
            ("max_class_share", self.max_class_share, 0 < self.max_class_share <= 1, "above 0 and at most 1"),
            *((name, value, 0 <= value <= 1, probability) for name, value in self._probabilities().items()),
            ("aspect", self.aspect, _is_range(self.aspect), "two factors above 0, the smaller one first"),
            ("rotation", self.rotation, 0 <= self.rotation <= 180, "an angle from 0 to 180 degrees"),
            ("blur_sigma", self.blur_sigma, _is_range(self.blur_sigma), "two numbers above 0, the smaller one first"),
            ("noise_std", self.noise_std, _is_range(self.noise_std), "two numbers above 0, the smaller one first"),
            (
                *("jpeg_quality", self.jpeg_quality),
                *(_is_range(self.jpeg_quality, 100), "two numbers from 1 to 100, the smaller one first"),
            ),
            (
                *("erasing_area", self.erasing_area),
                *(_is_range(self.erasing_area, 1), "two shares above 0 and at most 1, the smaller one first"),
            ),
        ]
        bad = {name: f"augment.{name}: {value} is not {rule}" for name, value, valid, rule in rules if not valid}
        wrong = list(bad.values())
        for name, owner in RANGES.items():
            value, usual = tuple(getattr(self, name)), getattr(AugmentConfig, name)
            if value != usual and getattr(self, owner) == 0 and name not in bad:
                wrong.append(f"augment.{name}: {value} has no effect; set {owner} above 0, or {name} to {list(usual)}")
        if self.cutmix <= 1 and self.classmix <= 1 < self.cutmix + self.classmix:
            wrong.append(
                f"augment.cutmix: {self.cutmix} and augment.classmix {self.classmix} sum to more than 1; lower one"
            )
        return [*wrong, *(f"augment.transforms{error}" for error in check_transforms(self.transforms, self.crop))]

    def _probabilities(self) -> dict[str, float]:
        names = ("flip", "rare_crops", "vertical_flip", "quarter_turns", "copy_paste", "cutmix", "classmix")
        return {name: getattr(self, name) for name in (*names, "blur", "noise", "jpeg", "erasing")}

    @property
    def needs_class_pixels(self) -> bool:
        """Whether samples depend on the pixels of each class in each training image."""
        return self.rare_crops > 0 or self.copy_paste > 0

    @property
    def mixes(self) -> bool:
        """Whether samples are made of several images."""
        return self.copy_paste > 0 or self.cutmix > 0 or self.classmix > 0

    @property
    def host_only(self) -> list[str]:
        """Fields that are on and have no implementation for devices (`data.gpu_cache`)."""
        names = ("rotation", "copy_paste", "cutmix", "classmix", "transforms", "blur", "noise", "jpeg")
        return [name for name in names if getattr(self, name)]

    @property
    def extended(self) -> bool:
        """Whether crops go through more than MMSegmentation's pipeline."""
        return bool(self.host_only or self.vertical_flip or self.quarter_turns or self.erasing)


RANGES: Final = {"blur_sigma": "blur", "noise_std": "noise", "jpeg_quality": "jpeg", "erasing_area": "erasing"}
"""Fields that matter only where another one is on, and that one."""


def _is_range(limits: Numbers, most: float = math.inf) -> bool:
    low, high = limits
    return 0 < low <= high <= most and math.isfinite(high)


DRAWS: Final = (
    *("rare_crops", "rare_pixel", "aspect", "rotation", "vertical_flip", "quarter_turns", "copy_paste", "pasted"),
    *("mix", "mixed", "transforms", "blur", "noise", "jpeg", "erasing"),
)
"""What has a generator of its own. The order is part of the samples: add new ones at the end."""


def own_generator(rng: np.random.Generator, name: str) -> np.random.Generator:
    """The generator of one of `DRAWS`: a function of the seed of `rng`, independent of what was drawn from it."""
    seed: Any = rng.bit_generator.seed_seq
    return np.random.default_rng(np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, DRAWS.index(name))))


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
