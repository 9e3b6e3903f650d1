"""What the numbers and colours of a mask mean: names, palette, the map from raw values to classes."""

from __future__ import annotations

import colorsys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import Any, Final
from unicodedata import category

import numpy as np
import numpy.typing as npt

from meanshifter.errors import InputError

Color = tuple[int, int, int]
Labels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
MOST_CLASSES: Final = 65_535
"""Train ids of 16 bits, less the ignored one."""
BACKGROUNDS: Final = frozenset(
    ("background", "bg", "void", "other", "others", "unlabeled", "unlabelled", "unknown", "none", "nothing", "clutter")
)
"""Names of a class of which a picture shows what is left, in lower case."""
APART: Final = 24
"""Levels of 255 by which two colours differ in one channel at least, to be told apart."""
_FIRST = """
4b87c3 ffa53c 5ad269 b40078 b41e1e 00fff0 696900 c387ff ff96a5 e1e187 00784b 873c4b 1e4bb4 f0c3ff b4784b 00a5b4
875a96 96d2a5 007800 e13c69 ff78d2 b4a50f a5d2ff ff784b ffc3a5 872d96 a5d24b 7896ff a54b00 69784b 1effb4 005a78
"""
FIRST_COLORS: Final = tuple((int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in _FIRST.split())
"""Colours of moderate chroma (70 at most), as far apart as they go in CIELAB, from black, grey and white too: each is
the farthest from those before it."""


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set and how its masks spell them.

    Train ids are 0..K-1; `ignore` (255, or 65535 above 255 classes) marks pixels that neither teach nor count.
    """

    names: tuple[str, ...]
    """One name per class, in the order of the train ids."""
    palette: tuple[Color, ...] = ()
    """One RGB colour per class, for label maps and overlays; by default those of `colors`, else `default_palette`."""
    raw: Mapping[int, int] | None = None
    """Mask value → train id (or `ignore`); None: masks already hold train ids and the ignore value."""
    colors: Mapping[Color, int] | None = None
    """RGB colour → train id (or `ignore`), for masks stored as colours; None: RGB masks are refused."""
    ignore: int = field(default=-1)
    """The ignored train id; by default 255, or 65535 above 255 classes."""

    def __post_init__(self) -> None:
        given: object = self.names
        if isinstance(given, str):
            raise InputError(f"labels: names is the text {given!r}; give a list of names")
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "palette", tuple(tuple(color) for color in self.palette))
        if not self.names:
            raise InputError("labels: 0 classes; a label space needs at least one class name")
        if len(self.names) > MOST_CLASSES:
            raise InputError(
                f"labels: {len(self.names):,} classes; label maps of 16 bits hold {MOST_CLASSES:,} at most"
            )
        self._check_names()
        if self.ignore == -1:
            object.__setattr__(self, "ignore", 255 if len(self.names) <= 255 else 65535)
        if not self.palette:
            drawn = _palette_of_map(self.names, self.colors) if self.colors else default_palette(self.names)
            object.__setattr__(self, "palette", drawn)
        if len(self.palette) != len(self.names):
            raise InputError(
                f"labels: {len(self.palette)} colours for {len(self.names)} classes; give one colour per class"
            )
        self._check_ranges()
        self._check_targets("raw", self.raw)
        self._check_targets("colors", self.colors)

    def _check_names(self) -> None:
        for name in self.names:
            if not isinstance(name, str) or any(category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in name):
                raise InputError(f"labels: class name {name!r}; names are text of one line")
        if len(set(self.names)) != len(self.names):
            twice, _ = Counter(self.names).most_common(1)[0]
            raise InputError(f"labels: class name {twice!r} occurs twice; names must differ")

    def _check_ranges(self) -> None:
        top = np.iinfo(self.dtype).max
        if not 0 <= self.ignore <= top:
            raise InputError(f"labels: ignore is {self.ignore}; with {len(self.names)} classes it lies in 0 to {top}")
        if self.ignore < len(self.names):
            raise InputError(
                f"labels: ignore is {self.ignore}, which is also the class {self.names[self.ignore]!r}; give a value "
                f"from {len(self.names)} on, such as {255 if len(self.names) <= 255 else 65535}"
            )
        for color in (*self.palette, *(self.colors or {})):
            if not all(0 <= channel <= 255 for channel in color):
                raise InputError(f"labels: colour {color}; red, green and blue lie in 0 to 255")
        for value in self.raw or {}:
            if not -(2**31) <= value < 2**31:
                raise InputError(f"labels: raw maps the value {value}, which no mask can hold")

    def _check_targets(self, name: str, mapping: Mapping[Any, int] | None) -> None:
        for source, target in (mapping or {}).items():
            if target != self.ignore and not 0 <= target < len(self.names):
                raise InputError(
                    f"labels: {name} maps {source} to {target}; train ids are 0 to {len(self.names) - 1}, "
                    f"or {self.ignore} for ignored"
                )

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.names)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The unsigned integer type of label maps: uint8, or uint16 above 255 classes."""
        return np.dtype(np.uint8 if self.num_classes <= 255 else np.uint16)

    def raw_values(self) -> tuple[int, ...]:
        """The mask value of every class, the first of several; a class's number where `raw` gives it none."""
        values: dict[int, int] = {}
        for value, target in (self.raw or {}).items():
            values.setdefault(target, value)
        return tuple(values.get(k, k) for k in range(self.num_classes))

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON; `from_dict` is the inverse."""
        return {
            "names": list(self.names),
            "palette": [list(color) for color in self.palette],
            "raw": None if self.raw is None else [[int(k), int(v)] for k, v in self.raw.items()],
            "colors": None if self.colors is None else [[list(k), int(v)] for k, v in self.colors.items()],
            "ignore": self.ignore,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LabelSpace:
        """The label space that `to_dict` wrote."""
        raw, colors = data.get("raw"), data.get("colors")
        if not isinstance(data["names"], list | tuple):
            raise InputError(f"labels: names is {type(data['names']).__name__}; give a list of names")
        return cls(
            names=tuple(data["names"]),
            palette=tuple(_color(color) for color in data["palette"]),
            raw=None if raw is None else {_whole(k): _whole(v) for k, v in raw},
            colors=None if colors is None else {_color(k): _whole(v) for k, v in colors},
            ignore=_whole(data["ignore"]),
        )

    @classmethod
    def unnamed(cls, num_classes: int) -> LabelSpace:
        """`num_classes` classes called class 0, class 1, …"""
        return cls(tuple(f"class {k}" for k in range(num_classes)))


def _color(value: Sequence[int]) -> Color:
    red, green, blue = (_whole(channel) for channel in value)
    return red, green, blue


def _whole(value: Any) -> int:
    """A whole number, or the text of one as keys of JSON objects are."""
    return int(value) if isinstance(value, str) else index(value)


def default_palette(names: Sequence[str]) -> tuple[Color, ...]:
    """The colours of classes that bring none: `distinct_colors`, and black for the background.

    That is the first class with a name of `BACKGROUNDS`, or the first of all where it is called after its number: in
    overlays it darkens the image, and the classes of interest stand out.
    """
    plain = [name.casefold().strip(" _-") for name in names]
    background = next((k for k, name in enumerate(plain) if name in BACKGROUNDS or (k == 0 and name == "class 0")), -1)
    others = iter(distinct_colors(len(names)))
    return tuple((0, 0, 0) if k == background else next(others) for k in range(len(names)))


def distinct_colors(count: int) -> tuple[Color, ...]:
    """`count` colours of which no two are equal: those of `FIRST_COLORS`, then hues in golden-ratio steps."""
    golden = 0.618033988749895
    colors = dict.fromkeys(FIRST_COLORS[:count])
    for k in range(4 * count):
        if len(colors) == count:
            return tuple(colors)
        rgb = colorsys.hsv_to_rgb((k * golden) % 1.0, (0.85, 0.55, 0.95)[k % 3], (0.95, 0.85, 0.60)[k // 3 % 3])
        colors[_color([round(255 * channel) for channel in rgb])] = None
    for k in range(1, 2 * count):  # thousands of classes: hues run out; an odd factor repeats no number below 2 ** 24
        number = k * 0x9E3779 % 2**24
        colors[number >> 16, number >> 8 & 255, number & 255] = None
    return tuple(colors)[:count]


def are_distinct(colors: Sequence[Color | None]) -> bool:
    """Whether all are there and any two differ by `APART` levels in one channel at least."""
    known = np.array([color for color in colors if color is not None], np.int64).reshape(-1, 3)
    if len(known) < len(colors):
        return False
    return all(int(abs(known[k + 1 :] - known[k]).max(1).min(initial=APART)) >= APART for k in range(len(known)))


def _palette_of_map(names: Sequence[str], colors: Mapping[Color, int]) -> tuple[Color, ...]:
    """The colour that masks give each class, the first of several; a class without one gets a default colour."""
    own: dict[int, Color] = {}
    for color, target in colors.items():
        own.setdefault(target, color)
    taken = set(own.values())
    free = iter(color for color in distinct_colors(len(names) + len(taken)) if color not in taken)
    return tuple(own[k] if k in own else next(free) for k in range(len(names)))
