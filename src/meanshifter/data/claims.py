"""What a file may be and claim before it is decoded as an image: its format, and the size in its header."""

from __future__ import annotations

import ctypes
import logging
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

from PIL import Image

from meanshifter.errors import InputError

FORMATS: Final = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""By content, whatever the name. Pillow knows dozens more; one of them hands the file to Ghostscript."""
MAX_SAMPLE_PIXELS: Final = 250_000_000
"""Of images and masks to learn from and score on, which several processes hold whole at a time."""
DEFLATED: Final = 8256
"""Pixels that one byte of a PNG can stand for: deflate makes 1032 of a byte, of 8 pixels of one bit each."""


@cache
def formats() -> tuple[str, ...]:
    """`FORMATS`, as far as this Pillow knows them."""
    Image.init()
    _quiet()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def image_suffixes() -> tuple[str, ...]:
    """What names of images end in, in lower case: all endings that Pillow gives `FORMATS`, photographs' own first."""
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in formats()}
    usual = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
    return *usual, *sorted(known.difference(usual))


def _quiet() -> None:
    """Have Pillow and its libtiff print nothing: of a broken file they say much, and not which."""
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # without any, errors go to standard error
    with suppress(ImportError, OSError, AttributeError):  # AttributeError: linked in without names
        from PIL import _imaging

        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)


def check_claim(path: str | Path, kind: str, sides: tuple[int, int], max_pixels: int, stored: int) -> None:
    """Refuse the sides (W, H) that a header claims if they are nothing, more than wanted, or more than `stored` bytes
    of a file of this kind, Pillow's name, can hold."""
    size = f"{sides[0]}×{sides[1]}"
    pixels = sides[0] * sides[1]
    if pixels == 0:
        raise InputError(f"{path}: {size} holds no pixels; export the file again")
    if pixels > max_pixels:
        remedy = (
            "cut it and its mask or image into tiles"
            if max_pixels == MAX_SAMPLE_PIXELS
            else "raise max_pixels if the file is to be trusted"
        )
        raise InputError(f"{path}: {size} is {pixels:,} pixels, above max_pixels {max_pixels:,}; {remedy}")
    if kind == "PNG" and pixels > DEFLATED * stored:
        raise InputError(f"{path}: claims {size} pixels, which {stored:,} bytes cannot hold; copy the file again")
