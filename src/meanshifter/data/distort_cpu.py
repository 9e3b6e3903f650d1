"""Distortion and normalisation of a crop in one pass over its rows, equal to `distortion.distort` and what follows."""

from __future__ import annotations

from typing import Any, no_type_check

import numpy as np

from meanshifter.kernels import kernel

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
    """From crop (h, w, 3) uint8 to the top left of `out` (3, H, W): distorted, mirrored, times factor, less offset."""
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
