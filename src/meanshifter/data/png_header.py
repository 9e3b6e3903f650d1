"""What the chunks of a PNG say, without decoding it.

Source: PNG specification, third edition (W3C, 2025), sections 5 and 11.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
OTHER_PIXELS = (b"tRNS", b"eXIf", b"acTL")
"""Transparency, what may turn the picture, and animation."""
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PROFILE = b"Raw profile type"
"""Begins the keyword of texts in which older programs keep EXIF."""


def plain_png_shape(path: Path) -> tuple[int, int, int] | None:
    """(H, W, 3) of a complete PNG of upright RGB of 8 bits, stored from top to bottom; None for any other file."""
    with path.open("rb") as file:
        if file.read(len(SIGNATURE)) != SIGNATURE:
            return None
        shape = last = None
        for name, start in _chunks(file):
            if name == b"IHDR":
                width, height, *kind = struct.unpack(">IIBBBBB", start[:13])
                if kind != [8, 2, 0, 0, 0]:  # bits, RGB, and neither unknown methods nor interlacing
                    return None
                shape = (height, width, 3)
            elif name in OTHER_PIXELS or (name in TEXTS and start.startswith(PROFILE)):
                return None
            last = name
        return shape if last == b"IEND" else None


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Name and first bytes of the chunks that lie in the file as a whole, up to IEND."""
    end = file.seek(0, 2)
    place = len(SIGNATURE)
    while place + 12 <= end:
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        if place + 12 + length > end:
            return
        yield name, file.read(min(length, 32))
        if name == b"IEND":
            return
        place += 12 + length
