"""Facts about each pair of files: sizes, hashes and the counted values of the mask, mapped by a label map.

The doctor decodes a mask once, possibly before the classes are known, and therefore maps counts where
`reading.read_mask` maps pixels.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.images import SWAPS_SIDES, decode_image, decode_mask, upright
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.data.layout import Pair
from meanshifter.data.masks import count_indices, index_map, indices, pack, packed_colors, palette_of, unpack
from meanshifter.data.reading import rgb
from meanshifter.errors import InputError, summarize_error

Counts = npt.NDArray[np.int64]
MODES: Final = {
    "1": "1 bit",
    "L": "8-bit index",
    "LA": "8-bit index with alpha",
    "P": "palette",
    "PA": "palette with alpha",
    "RGB": "RGB",
    "RGBA": "RGB with alpha",
    "I": "32-bit index",
}
"""Pillow's modes in words; 16-bit modes start with "I;16"."""
HASH: Final = 16
"""Cells of the perceptual hash along each side."""
_BLANK: Final = 4  # gray levels that a blank image spans at most; JPEG leaves some
_PLAIN: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


@dataclass(frozen=True, eq=False)
class Values:
    """How often each value or color occurs in a mask."""

    keys: Counts
    """(n,) indices in ascending order, or colors as `masks.pack` makes them."""
    counts: Counts
    """(n,) pixels."""
    colored: bool
    """Whether the keys are colors."""
    paints: tuple[Color, ...] = ()
    """(n,) colors that an image viewer displays for the indices."""


def count_values(picture: Image.Image) -> Values:
    """Count the values of a decoded mask; raises InputError for modes that hold neither integers nor colors."""
    if picture.mode in ("RGB", "RGBA"):
        return Values(*count_indices(packed_colors(picture)), colored=True)
    if picture.mode in ("L", "P", "1"):  # faster than count_indices
        histogram = np.array(picture.histogram(), np.int64)
        keys = np.flatnonzero(histogram).astype(np.int64)
        counts = histogram[keys]
    else:
        keys, counts = count_indices(indices(picture, "mask"))
    if picture.mode in ("P", "PA"):
        palette = palette_of(picture)
        paints = tuple(palette[key] if key < len(palette) else (0, 0, 0) for key in keys.tolist())
    else:
        paints = tuple((gray, gray, gray) for gray in keys.clip(0, 255).tolist())
    return Values(keys.clip(max=1) if picture.mode == "1" else keys, counts, False, paints)


@dataclass(frozen=True, eq=False)
class Mapped:
    """The counts of a mask after a label map was applied."""

    classes: Counts
    """(K,) pixels of each class."""
    ignored: int
    pixels: dict[str, int]
    """Value or color as text → pixels."""
    targets: dict[str, int | None]
    """Value or color as text → train id or the ignored value; None if the label map does not contain it."""

    @property
    def outside(self) -> dict[str, int]:
        """Value or color outside the label map → pixels."""
        return {key: count for key, count in self.pixels.items() if self.targets[key] is None}


def by_color(values: Values, label_space: LabelSpace) -> bool:
    """Whether the label map reads this mask by its colors."""
    return values.colored or (label_space.colors is not None and label_space.raw is None)


def map_values(values: Values | None, label_space: LabelSpace) -> Mapped | None:
    """Count pixels per class, as `read_mask` would map them; None if it would reject the mask for its mode."""
    if values is None or (by_color(values, label_space) and not label_space.colors):
        return None
    mapping: dict[int, int]
    if by_color(values, label_space):
        keys = values.keys.tolist() if values.colored else [pack(color) for color in values.paints]
        mapping = {pack(color): target for color, target in (label_space.colors or {}).items()}
        texts = [str(unpack(key)) for key in keys]
    else:
        keys, mapping, texts = values.keys.tolist(), index_map(label_space), describe_values(values)
    classes, ignored = np.zeros(label_space.num_classes, np.int64), 0
    pixels: Counter[str] = Counter()
    targets: dict[str, int | None] = {}
    for key, text, count in zip(keys, texts, values.counts.tolist(), strict=True):
        targets[text] = target = mapping.get(key)
        pixels[text] += count
        if target == label_space.ignore:
            ignored += count
        elif target is not None:
            classes[target] += count
    return Mapped(classes, ignored, dict(pixels), targets)


def describe_values(values: Values) -> list[str]:
    """The keys as text."""
    return [str(unpack(key)) if values.colored else str(key) for key in values.keys.tolist()]


def colors_tell(values: Values, label_space: LabelSpace) -> dict[Color, int] | None:
    """Color → train id if a color mask without a color map can be read in only one way, else None.

    Either every color belongs to exactly one class of the palette, or all are gray levels equal to class numbers.
    """
    colors = [unpack(key) for key in values.keys.tolist()]
    own = {color: k for k, color in enumerate(label_space.palette) if label_space.palette.count(color) == 1}
    readings = []
    if all(color in own for color in colors):
        readings.append({color: own[color] for color in colors})
    numbers = index_map(label_space)
    if all(r == g == b and r in numbers for r, g, b in colors):
        readings.append({color: numbers[color[0]] for color in colors})
    return readings[0] if len(readings) == 1 or (readings and readings[0] == readings[1]) else None


@dataclass(frozen=True, eq=False)
class ImageFacts:
    """Facts about an image that was decoded."""

    size: tuple[int, int]
    """(W, H) as stored."""
    turn: int
    """EXIF orientation; 1 is upright."""
    digest: bytes
    """SHA-1 of the file."""
    hash: npt.NDArray[np.bool_]
    """(2·16·16) signs of the differences between neighbors in a 17×17 thumbnail, horizontally and vertically."""
    blank: bool

    @property
    def upright(self) -> tuple[int, int]:
        """(W, H) after the turn."""
        return self.size[::-1] if self.turn in SWAPS_SIDES else self.size


@dataclass(frozen=True, eq=False)
class MaskFacts:
    """Facts about a mask that was decoded."""

    size: tuple[int, int]
    """(W, H) after its own turn."""
    turn: int
    mode: str
    """Pillow's mode, or the bit depth of grays that Pillow would stretch."""
    format: str
    lossy: str
    """The compression, if it changes values; otherwise empty."""
    values: Values | None
    """None if the mode holds neither integers nor colors, or the compression is lossy."""
    has_palette: bool


@dataclass(frozen=True, eq=False)
class Facts:
    """Facts about a pair; a missing or unreadable file is None."""

    pair: Pair
    split: str
    image: ImageFacts | None = None
    image_error: str = ""
    mask: MaskFacts | None = None
    mask_error: str = ""


def examine(pair: Pair, split: str) -> Facts:
    """Decode both files of a pair; unreadable files are reported in the result, not raised.

    A JPEG image is decoded completely, but at an eighth, a quarter or half of its size: this is cheaper and finds the
    same damage, since all of its code has to be read either way.
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
    """Decode and hash an image file; raises as `read_image`."""
    image = decode_image(path, factor=lambda height, width: (HASH + 1) / max(min(height, width), 1))
    picture = image.picture
    if picture.mode not in _PLAIN:
        picture = Image.fromarray(rgb(picture, path))
    gray = upright(picture.convert("L"), image.turn)
    low, high = gray.getextrema()
    assert isinstance(low, int | float)
    assert isinstance(high, int | float)
    small = np.asarray(gray.resize((HASH + 1, HASH + 1), Image.Resampling.BOX))
    across, down = small[:HASH, 1:] > small[:HASH, :HASH], small[1:, :HASH] > small[:HASH, :HASH]
    signs = np.concatenate([across.ravel(), down.ravel()])
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha1").digest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({summarize_error(error)}); copy it again") from error
    return ImageFacts(image.size, image.turn, digest, signs, high - low <= _BLANK)


def examine_mask(path: Path) -> MaskFacts:
    """Decode a mask file and count its values; raises as `decode_mask`."""
    mask = decode_mask(path, lossy=True)
    turned, header = mask.upright, mask.header
    try:
        values = None if header.lossy else count_values(turned)
    except InputError:
        values = None
    mode = f"{header.bits}-bit index" if header.bands == 1 and header.bits in (2, 4) else turned.mode
    return MaskFacts(turned.size, mask.turn, mode, header.format, header.lossy, values, turned.mode in ("P", "PA"))
