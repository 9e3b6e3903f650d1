"""Photometric distortion: random brightness, contrast, saturation and hue.

Source: MMSegmentation's PhotoMetricDistortion. Glossary: h w pixels of a crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
ROWS: Final = 64


@dataclass(frozen=True)
class Distortion:
    """What photometric distortion changes; as it stands, nothing."""

    brightness: float = 0.0
    """Added, of 255."""
    contrast_first: bool = False
    """Contrast before the colours, or after."""
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """Fraction of the circle."""


def draw_distortion(rng: np.random.Generator) -> Distortion:
    """Brightness ±32, contrast 0.5-1.5, saturation 0.5-1.5 and hue ±18/180, each with probability one half."""
    return Distortion(
        brightness=float(rng.uniform(-32, 32)) if rng.random() < 0.5 else 0.0,
        contrast_first=bool(rng.random() < 0.5),
        contrast=float(rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else 1.0,
        saturation=float(rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else 1.0,
        hue=int(rng.integers(-18, 18)) / 180 if rng.random() < 0.5 else 0.0,
    )


def distort(planes: Floats, changes: Distortion) -> None:
    """Photometric distortion of (3, h, w) RGB in 0..255, in place; the result stays in 0..255.

    Brightness, contrast, saturation and hue, contrast again: MMSegmentation's PhotoMetricDistortion, without its
    rounding to integers between the steps.
    """
    if changes.brightness != 0:
        planes += np.float32(changes.brightness)
        np.clip(planes, 0, 255, out=planes)
    if changes.contrast_first:
        _contrast(planes, changes.contrast)
    shift_colors(planes, hue=changes.hue, saturation=changes.saturation)
    if not changes.contrast_first:
        _contrast(planes, changes.contrast)


def _contrast(planes: Floats, gain: float) -> None:
    if gain != 1:
        planes *= np.float32(gain)
        np.minimum(planes, 255, out=planes)


def shift_colors(planes: Floats, *, hue: float, saturation: float) -> None:
    """Turn the hue by a fraction of the circle (at most 1/6) and scale the saturation, as in HSV, in place.

    Value is kept. With V the largest channel and C the chroma (largest minus smallest), a channel is
    V - C·(1 - w), and w is a trapezium over the hue h in sixths of the circle: clip(|h-3|-1) for red,
    clip(2-|h-2|) for green and clip(2-|h-4|) for blue.
    """
    if hue == 0 and saturation == 1:
        return
    # in blocks of rows that stay in the cache: a third of the time
    for start in range(0, planes.shape[1], ROWS):
        _shift_block(planes[:, start : start + ROWS], hue, saturation)


def _shift_block(planes: Floats, hue: float, saturation: float) -> None:
    red, green, blue = planes
    value = np.maximum(np.maximum(red, green), blue)
    chroma = value - np.minimum(np.minimum(red, green), blue)
    divisor = np.maximum(chroma, np.float32(1e-6))
    target = np.minimum(chroma * np.float32(saturation), value)
    if hue == 0:
        np.subtract(value, planes, out=planes)
        planes *= target / divisor
        np.subtract(value, planes, out=planes)
        return
    sixths = np.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    sixths = np.where(value == red, (green - blue) / divisor, sixths)
    sixths += np.float32(6 * hue)
    sixths += np.multiply(sixths < 0, np.float32(6))
    low = value - target
    for plane, weight in (
        (red, np.abs(sixths - 3) - 1),
        (green, 2 - np.abs(sixths - 2)),
        (blue, 2 - np.abs(sixths - 4)),
    ):
        np.clip(weight, 0, 1, out=weight)
        weight *= target
        np.add(low, weight, out=plane)
