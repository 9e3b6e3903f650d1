"""Photometric distortion: random brightness, contrast, saturation and hue.

Source: MMSegmentation's PhotoMetricDistortion. Glossary: h w pixels of a crop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, no_type_check

import numpy as np
import numpy.typing as npt

from meanshifter.utils.environment import kernel

Floats = npt.NDArray[np.float32]
ROWS: Final = 64


@dataclass(frozen=True)
class Distortion:
    """Parameters of a photometric distortion; the defaults change nothing."""

    brightness: float = 0.0
    """Added to values in 0..255."""
    contrast_first: bool = False
    """Change contrast before saturation and hue instead of after them."""
    contrast: float = 1.0
    saturation: float = 1.0
    hue: float = 0.0
    """Rotation as a fraction of the circle."""


def draw_distortion(rng: np.random.Generator) -> Distortion:
    """Draw brightness ±32, contrast 0.5-1.5, saturation 0.5-1.5 and hue ±18/180, each with probability 0.5."""
    return Distortion(
        brightness=float(rng.uniform(-32, 32)) if rng.random() < 0.5 else 0.0,
        contrast_first=bool(rng.random() < 0.5),
        contrast=float(rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else 1.0,
        saturation=float(rng.uniform(0.5, 1.5)) if rng.random() < 0.5 else 1.0,
        hue=int(rng.integers(-18, 18)) / 180 if rng.random() < 0.5 else 0.0,
    )


def distort(planes: Floats, changes: Distortion) -> None:
    """Photometric distortion of (3, h, w) RGB in 0..255, in place; the result stays in 0..255.

    The order is brightness, contrast (if first), saturation and hue, contrast (if last), as in MMSegmentation's
    PhotoMetricDistortion, but without its rounding to integers between the steps.
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
    """Rotate the hue by a fraction of the circle (at most 1/6) and scale the saturation, as in HSV, in place.

    The value V, the largest channel, is kept. With the chroma C (largest minus smallest channel), a channel is
    V - C·(1 - w), where w is a trapezoid over the hue h in sixths of the circle: clip(|h-3|-1) for red,
    clip(2-|h-2|) for green and clip(2-|h-4|) for blue.
    """
    if hue == 0 and saturation == 1:
        return
    # blocks of rows that stay in the cache take a third of the time
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


_FAST = {"contract", "nsz", "nnan", "ninf", "arcp"}
_ZERO, _ONE, _TOP = np.float32(0), np.float32(1), np.float32(255)


@no_type_check
@kernel(fast=_FAST, inline="always")
def _clip(v: Any, top: Any) -> Any:
    v = v if v > _ZERO else _ZERO
    return v if v < top else top


@no_type_check
@kernel(fast=_FAST, inner=True)
def _shift(red: Any, green: Any, blue: Any, hue: Any, saturation: Any) -> None:
    """`distortion.shift_colors` on one row."""
    for x in range(len(red)):
        r, g, b = red[x], green[x], blue[x]
        value = max(max(r, g), b)
        chroma = value - min(min(r, g), b)
        inverse = _ONE / max(chroma, np.float32(1e-6))
        target = min(chroma * saturation, value)
        sixths = np.float32(2) + (b - r) * inverse if value == g else np.float32(4) + (r - g) * inverse
        sixths = (g - b) * inverse if value == r else sixths
        sixths += np.float32(6) * hue
        sixths = sixths + np.float32(6) if sixths < _ZERO else sixths
        low = value - target
        red[x] = low + target * _clip(abs(sixths - np.float32(3)) - _ONE, _ONE)
        green[x] = low + target * _clip(np.float32(2) - abs(sixths - np.float32(2)), _ONE)
        blue[x] = low + target * _clip(np.float32(2) - abs(sixths - np.float32(4)), _ONE)


@no_type_check
@kernel(fast=_FAST, inner=True)
def _affine(row: Any, gain: Any, shift: Any) -> None:
    for x in range(len(row)):
        row[x] = _clip(row[x] * gain + shift, _TOP)


@no_type_check
@kernel(fast=_FAST, inner=True)
def _write(row: Any, factor: Any, offset: Any, mirrored: Any, out: Any) -> None:
    last = len(row) - 1
    if mirrored:
        for x in range(len(row)):
            out[x] = row[last - x] * factor - offset
    else:
        for x in range(len(row)):
            out[x] = row[x] * factor - offset


@no_type_check
@kernel()
def distort_and_normalize(
    crop: Any,
    mirrored: Any,
    brightness: Any,
    contrast_first: Any,
    contrast: Any,
    saturation: Any,
    hue: Any,
    factor: Any,
    offset: Any,
    out: Any,
) -> None:
    """Distort and mirror a crop (h, w, 3) uint8, and write v · factor - offset to the top left of `out` (3, H, W)."""
    h, w = crop.shape[:2]
    rows = np.empty((3, w), np.float32)
    for y in range(h):
        for x in range(w):
            for channel in range(3):
                rows[channel, x] = crop[y, x, channel]
        if brightness != 0:
            _affine(rows.reshape(-1), _ONE, brightness)
        if contrast_first and contrast != 1:
            _affine(rows.reshape(-1), contrast, _ZERO)
        if hue != 0 or saturation != 1:
            _shift(rows[0], rows[1], rows[2], hue, saturation)
        if not contrast_first and contrast != 1:
            _affine(rows.reshape(-1), contrast, _ZERO)
        for channel in range(3):
            _write(rows[channel], factor[channel], offset[channel], mirrored, out[channel, y, :w])
