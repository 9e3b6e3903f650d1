"""The values of a mask, counted, and what a label map makes of the counts.

The doctor decodes a mask once, before it may know the classes; `reading.read_mask` maps pixels instead of counts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.labels import Color, LabelSpace
from meanshifter.errors import InputError

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
"""Pillow's modes in words; those of 16 bits begin with "I;16"."""


@dataclass(frozen=True, eq=False)
class Values:
    """How often which value or colour stands in a mask."""

    keys: Counts
    """(n,) indices, ascending; colours as red + 256 green + 65536 blue."""
    counts: Counts
    """(n,) pixels."""
    colored: bool
    """Keys are colours."""
    paints: tuple[Color, ...] = ()
    """(n,) the colours that a viewer shows for indices."""


def count_values(picture: Image.Image) -> Values:
    """The values of a decoded mask.

    Raises:
        InputError: a mode that holds neither integers nor colours.
    """
    mode = picture.mode
    if mode in ("RGB", "RGBA"):
        return Values(*_count(packed_colors(picture)), colored=True)
    if mode in ("LA", "PA"):
        keys, counts = _dense(np.bincount(np.asarray(picture)[..., 0].ravel(), minlength=256).tolist())
    elif mode in ("L", "P", "1"):
        keys, counts = _dense(picture.histogram())
    elif mode.startswith("I"):
        keys, counts = _count(np.asarray(picture))
    else:
        raise InputError(f"a mask of mode {mode}; store class numbers as an 8- or 16-bit PNG")
    paints = _paints(picture, keys)
    return Values(keys.clip(max=1) if mode == "1" else keys, counts, False, paints)


def packed_colors(picture: Image.Image) -> npt.NDArray[np.uint32]:
    """(H, W) of an RGB or RGBA picture: red + 256 green + 65536 blue."""
    pixels = np.asarray(picture if picture.mode == "RGBA" else picture.convert("RGBX"))
    packed: npt.NDArray[np.uint32] = np.ascontiguousarray(pixels).view("<u4")[..., 0] & np.uint32(0xFFFFFF)
    return packed


def _dense(histogram: list[int]) -> tuple[Counts, Counts]:
    counts = np.array(histogram, np.int64)
    keys = np.flatnonzero(counts)
    return keys.astype(np.int64), counts[keys]


def _count(values: npt.NDArray[Any]) -> tuple[Counts, Counts]:
    """Distinct values and their numbers, by runs of equal ones: masks have few edges."""
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    keys, place = np.unique(flat[starts].astype(np.int64), return_inverse=True)
    lengths = np.diff(starts, append=flat.size)
    return keys, np.bincount(place.ravel(), lengths, len(keys)).astype(np.int64)


def _paints(picture: Image.Image, keys: Counts) -> tuple[Color, ...]:
    if picture.mode in ("P", "PA"):
        flat = picture.getpalette("RGB") or []
        flat += [0] * (768 - len(flat))
        return tuple((flat[3 * key], flat[3 * key + 1], flat[3 * key + 2]) for key in keys.tolist())
    return tuple((grey, grey, grey) for grey in keys.clip(0, 255).tolist())


def unpack(key: int) -> Color:
    """The colour of a packed key."""
    return key & 255, key >> 8 & 255, key >> 16


def pack(color: Color) -> int:
    """The packed key of a colour."""
    return color[0] | color[1] << 8 | color[2] << 16


@dataclass(frozen=True, eq=False)
class Mapped:
    """What a label map makes of a mask's counts."""

    classes: Counts
    """(K,) pixels of each class."""
    ignored: int
    pixels: dict[str, int]
    """Value or colour as text → pixels."""
    targets: dict[str, int | None]
    """Value or colour → train id, or the ignored one; None has no place in the map."""

    @property
    def outside(self) -> dict[str, int]:
        """Value or colour without a place in the map → pixels."""
        return {key: count for key, count in self.pixels.items() if self.targets[key] is None}


def by_color(values: Values, space: LabelSpace) -> bool:
    """Whether the label map reads such a mask by its colours."""
    return values.colored or (space.colors is not None and space.raw is None)


def map_values(values: Values | None, space: LabelSpace) -> Mapped | None:
    """The counts by class, as `read_mask` would map the pixels; None where it refuses the mask as a whole."""
    if values is None or (by_color(values, space) and not space.colors):
        return None
    mapping: dict[int, int]
    if by_color(values, space):
        keys = values.keys.tolist() if values.colored else [pack(color) for color in values.paints]
        mapping = {pack(color): target for color, target in (space.colors or {}).items()}
        texts = [str(unpack(key)) for key in keys]
    else:
        keys, mapping, texts = values.keys.tolist(), index_map(space), told(values)
    classes, ignored = np.zeros(space.num_classes, np.int64), 0
    pixels: Counter[str] = Counter()
    targets: dict[str, int | None] = {}
    for key, text, count in zip(keys, texts, values.counts.tolist(), strict=True):
        targets[text] = target = mapping.get(key)
        pixels[text] += count
        if target == space.ignore:
            ignored += count
        elif target is not None:
            classes[target] += count
    return Mapped(classes, ignored, dict(pixels), targets)


def told(values: Values) -> list[str]:
    """The keys as text."""
    return [str(unpack(key)) if values.colored else str(key) for key in values.keys.tolist()]


def index_map(space: LabelSpace) -> dict[int, int]:
    """Mask value → train id of index masks."""
    if space.raw is not None:
        return dict(space.raw)
    return {**{k: k for k in range(space.num_classes)}, space.ignore: space.ignore}


def colors_tell(values: Values, space: LabelSpace) -> dict[Color, int] | None:
    """Colour → train id where a colour mask without a map can be read in one way only, else None.

    Either every colour is one class's own in the palette, or all are grey and the grey levels are the class numbers.
    """
    colors = [unpack(key) for key in values.keys.tolist()]
    own = {color: k for k, color in enumerate(space.palette) if space.palette.count(color) == 1}
    readings = []
    if all(color in own for color in colors):
        readings.append({color: own[color] for color in colors})
    numbers = index_map(space)
    if all(r == g == b and r in numbers for r, g, b in colors):
        readings.append({color: numbers[color[0]] for color in colors})
    return readings[0] if len(readings) == 1 or (readings and readings[0] == readings[1]) else None
