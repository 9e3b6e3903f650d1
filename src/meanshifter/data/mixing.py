"""Crops of two images in one: copy-paste of a class, CutMix and ClassMix, with labels that stay one class per pixel.

MixUp, which averages two images, is not here: a pixel would need two labels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from meanshifter.data.augment import Crop
from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.class_pixels import RareClasses
from meanshifter.data.crop_plan import occurs, own_generator
from meanshifter.data.resampling import Mask


@dataclass(frozen=True, eq=False)
class Partner:
    """The other image of a mixed sample."""

    how: Literal["copy_paste", "cutmix", "classmix"]
    place: int
    """Its index in the dataset."""
    rare_class: int | None
    """The class that its crop shows, and that copy-paste pastes."""
    rng: np.random.Generator
    """The generator of its crop."""
    mask_rng: np.random.Generator
    """The generator of the part that is pasted."""


def draw_partners(
    config: AugmentConfig,
    rng: np.random.Generator,
    length: int,
    rare: RareClasses | None,
    choose: Callable[[int, np.random.Generator], tuple[int, int | None]],
) -> list[Partner]:
    """The images that a sample is mixed with, in order.

    Args:
        config: the probabilities.
        rng: the sample's generator, of which only the seed is used.
        length: images of the dataset.
        rare: draws the classes of copy-paste.
        choose: turns an index into that of the image that is used, and the class that its crop shows, by `rare_crops`.
    """
    partners = []
    if rare is not None and occurs(config.copy_paste, rng, "copy_paste"):
        own = own_generator(rng, "pasted")
        partners.append(Partner("copy_paste", *rare.draw(own), own, own))
    draw = own_generator(rng, "mix").random() if config.cutmix or config.classmix else 1.0
    if draw < config.cutmix + config.classmix:
        own = own_generator(rng, "mixed")
        place, rare_class = choose(int(own_generator(own, "mix").integers(length)), own)
        how: Literal["cutmix", "classmix"] = "cutmix" if draw < config.cutmix else "classmix"
        partners.append(Partner(how, place, rare_class, own, own_generator(own, "mixed")))
    return partners


def mixed(crop: Crop, other: Crop, partner: Partner, ignore: int) -> Crop:
    """A crop with the part of another one that the partner's way of mixing pastes."""
    if partner.how == "copy_paste":
        part = (other.labels == partner.rare_class) & ~crop.outside
    elif partner.how == "cutmix":
        part = rectangle(crop.labels.shape, partner.mask_rng) & ~other.outside
    else:
        part = half_of_classes(other, partner.mask_rng, ignore)
    return Crop(
        np.where(part[..., None], other.pixels, crop.pixels),
        np.where(part, other.labels, crop.labels),
        crop.outside & ~part,
    )


def rectangle(shape: tuple[int, ...], rng: np.random.Generator) -> Mask:
    """A mask (h, w) of a rectangle of the crop's aspect ratio, of uniform area, cut where it exceeds the crop.

    Source: Yun et al., CutMix, ICCV 2019, section 3.1, with lambda from Beta(1, 1).
    """
    side = math.sqrt(rng.uniform())
    slices = []
    for length in shape:
        middle, half = rng.integers(length), side * length / 2
        slices.append(slice(max(round(middle - half), 0), min(round(middle + half), length)))
    mask = np.zeros(shape, np.bool_)
    mask[tuple(slices)] = True
    return mask


def half_of_classes(other: Crop, rng: np.random.Generator, ignore: int) -> Mask:
    """A mask (h, w) of the pixels of half of the classes in a crop, rounded up.

    Source: Olsson et al., ClassMix, WACV 2021, algorithm 1.
    """
    classes = np.unique(other.labels)
    classes = classes[classes != ignore]
    chosen = rng.choice(classes, (len(classes) + 1) // 2, replace=False) if len(classes) else classes
    return np.isin(other.labels, chosen)
