"""Samples of more than 8 bits → 8 bits, over the range that the file says they have.

Glossary: H W pixels, n bands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meanshifter.data.headers import Header
from meanshifter.errors import InputError

DARK: Final = 16
"""Of 256 levels, those below this one are as good as black: 4 of 8 bits are lost, as of 12-bit data in 16-bit files.

Of samples with a sign, whose range is half as large, it is twice as many."""
BRIGHT: Final = 0.01
"""Share of the samples of an image that has to reach `DARK`, unless all are at the lower end of the range."""
_ROWS: Final = 256


def to_8_bits(samples: npt.NDArray[Any], header: Header, path: str | Path) -> npt.NDArray[np.uint8]:
    """Samples (n, H, W) of more than 8 bits as uint8: the least of the range becomes 0, the greatest 255.

    The range is what the tags of a TIFF declare, if all samples lie in it, else that of the bits (of 32-bit integers:
    16 bits). Of 16 bits, that keeps the upper 8.

    Raises:
        InputError: floating-point samples without a declared range, samples outside of it, or an image that would be
            all but black.
    """
    found = samples.min().item(), samples.max().item()
    low, high = _range(found, header, path)
    out = np.empty(samples.shape, np.uint8)
    for top in range(0, samples.shape[1], _ROWS):  # the whole in 64 bits would be eight times as large
        band = samples[:, top : top + _ROWS]
        if header.sample == "float":
            scaled = np.minimum((band.astype(np.float64) - low) / (high - low) * 256, 255)
        else:
            scaled = (band.astype(np.int64) - int(low)) * 256 // (int(high) - int(low) + 1)
        out[:, top : top + _ROWS] = scaled
    if header.declared is None or not _within(found, header.declared):
        refuse_black(out, header, path, f"values {_text(found[0])} to {_text(found[1])}", blank=found[1] == low)
    return ~out if header.white_is_zero else out


def refuse_black(shown: npt.NDArray[np.uint8], header: Header, path: str | Path, values: str, *, blank: bool) -> None:
    """Raise `InputError` where hardly a sample of an image, read over the range of its bits, is more than black."""
    dark = DARK * (2 if header.sample == "signed" else 1)
    if blank or np.count_nonzero(shown >= dark) >= BRIGHT * shown.size:
        return
    raise InputError(
        f"{path}: {values} in samples of {header.bits} bits, so that the image would be read as all but black; scale "
        "it to 8 bits, or have a TIFF declare its range (tags SMinSampleValue and SMaxSampleValue)"
    )


def _range(found: tuple[float, float], header: Header, path: str | Path) -> tuple[float, float]:
    if header.declared is not None and _within(found, header.declared):
        return header.declared
    if header.sample == "float":
        raise InputError(
            f"{path}: floating-point values {_text(found[0])} to {_text(found[1])}; export the image with 8 or 16 bits "
            "per channel, or declare their range (tags SMinSampleValue and SMaxSampleValue)"
        )
    bits = 16 if header.bits > 16 else header.bits
    limits = 0, 2 ** (bits - (header.sample == "signed" and header.bits <= 16)) - 1
    if not _within(found, limits):
        raise InputError(
            f"{path}: {header.bits}-bit values {_text(found[0])} to {_text(found[1])}, beyond {limits[0]} to "
            f"{limits[1]}; export the image with 8 or 16 bits per channel"
        )
    return limits


def _within(found: tuple[float, float], limits: tuple[float, float]) -> bool:
    return limits[0] <= found[0] and found[1] <= limits[1]


def _text(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
