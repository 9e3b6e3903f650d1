"""The settings of training augmentation. Imports no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final

from meanshifter.data.transforms import check_transforms

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
