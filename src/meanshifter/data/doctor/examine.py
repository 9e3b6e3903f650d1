"""One pair of files, each decoded once: what they are, whether they fit each other, and what their pixels say."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.decoding import SWAPS_SIDES, decode_image, decode_mask, upright
from meanshifter.data.doctor.values import Values, count_values
from meanshifter.data.listing import Pair
from meanshifter.data.reading import rgb
from meanshifter.errors import InputError

HASH: Final = 16
"""Cells of the perceptual hash along each side."""
BLANK: Final = 4
"""Grey levels that a blank image spans at most: JPEG leaves some."""
PLAIN: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """An image that could be decoded."""

    size: tuple[int, int]
    """(W, H) as stored."""
    turn: int
    """EXIF orientation, 1: upright."""
    digest: bytes
    """Of the file."""
    hash: npt.NDArray[np.bool_]
    """(2·16·16) signs of the differences between neighbours in a 17×17 thumbnail, across and down."""
    blank: bool

    @property
    def upright(self) -> tuple[int, int]:
        """(W, H) after the turn."""
        return self.size[::-1] if self.turn in SWAPS_SIDES else self.size


@dataclass(frozen=True, eq=False)
class MaskFacts:
    """A mask that could be decoded."""

    size: tuple[int, int]
    """(W, H) after its own turn."""
    turn: int
    mode: str
    """Pillow's, or the bits of greys that it would stretch."""
    format: str
    lossy: str
    """The compression that changes values; empty where none does."""
    values: Values | None
    """None where its mode holds neither integers nor colours, or its compression is lossy."""
    has_palette: bool


@dataclass(frozen=True, eq=False)
class Facts:
    """What is known of a pair; an absent or unreadable part is None."""

    pair: Pair
    split: str
    image: ImageFacts | None = None
    image_error: str = ""
    mask: MaskFacts | None = None
    mask_error: str = ""


def examine(pair: Pair, split: str) -> Facts:
    """Decode both files of a pair; nothing is raised on what they hold.

    A JPEG image is decoded to its end at an eighth, a quarter or half of its size, which is cheaper and finds the
    same breaks: its code has to be read whatever is made of it.
    """
    facts = Facts(pair, split)
    try:
        facts = replace(facts, image=examine_image(pair.image))
    except InputError as error:
        facts = replace(facts, image_error=str(error))
    try:
        return replace(facts, mask=examine_mask(pair.mask))
    except InputError as error:
        return replace(facts, mask_error=str(error))


def examine_image(path: Path) -> ImageFacts:
    """Facts of an image file.

    Raises:
        InputError: as `read_image`.
    """
    image = decode_image(path, factor=_thumbnail_factor)
    picture = image.picture
    if picture.mode not in PLAIN:
        picture = Image.fromarray(rgb(picture, path))
    grey = upright(picture.convert("L"), image.turn)
    low, high = grey.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    return ImageFacts(image.size, image.turn, _digest(path), difference_hash(grey), high - low <= BLANK)


def _thumbnail_factor(height: int, width: int) -> float:
    return (HASH + 1) / max(min(height, width), 1)


def difference_hash(grey: Image.Image) -> npt.NDArray[np.bool_]:
    """The hash of `ImageFacts` from a picture of mode L."""
    small = np.asarray(grey.resize((HASH + 1, HASH + 1), Image.Resampling.BOX))
    across, down = small[:HASH, 1:] > small[:HASH, :HASH], small[1:, :HASH] > small[:HASH, :HASH]
    return np.concatenate([across.ravel(), down.ravel()])


def _digest(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha1").digest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); copy it again") from error


def examine_mask(path: Path) -> MaskFacts:
    """Facts of a mask file.

    Raises:
        InputError: a file that cannot be decoded, or is no mask (see `decode_mask`).
    """
    mask = decode_mask(path, lossy=True)
    turned, header = mask.upright, mask.header
    try:
        values = None if header.lossy else count_values(turned)
    except InputError:
        values = None
    mode = f"{header.bits}-bit index" if header.bands == 1 and header.bits in (2, 4) else turned.mode
    return MaskFacts(turned.size, mask.turn, mode, header.format, header.lossy, values, turned.mode in ("P", "PA"))
