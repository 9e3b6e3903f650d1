"""Label spaces: the names and colors of the classes, and the map from mask values or colors to classes."""

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
"""16-bit train ids, except the ignored one."""
BACKGROUNDS: Final = frozenset(
    ("background", "bg", "void", "other", "others", "unlabeled", "unlabelled", "unknown", "none", "nothing", "clutter")
)
"""Lower-case names of a class that stands for everything else."""
APART: Final = 24
"""Two colors are distinct if they differ by at least so many levels of 255 in one channel."""


def hex_colors(text: str) -> tuple[Color, ...]:
    """Colors written as rrggbb, separated by white space."""
    return tuple((int(c[:2], 16), int(c[2:4], 16), int(c[4:], 16)) for c in text.split())


FIRST_COLORS: Final = hex_colors("""
4b87c3 ffa53c 5ad269 b40078 b41e1e 00fff0 696900 c387ff ff96a5 e1e187 00784b 873c4b 1e4bb4 f0c3ff b4784b 00a5b4
875a96 96d2a5 007800 e13c69 ff78d2 b4a50f a5d2ff ff784b ffc3a5 872d96 a5d24b 7896ff a54b00 69784b 1effb4 005a78
""")
"""Colors of moderate chroma (at most 70), each as far as possible in CIELAB from those before it and from black, gray
and white."""


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a dataset and how its masks encode them.

    Train ids are 0..K-1; pixels of the value `ignore` (255, or 65535 above 255 classes) are neither trained nor scored.
    """

    names: tuple[str, ...]
    """One name per class, in the order of the train ids."""
    palette: tuple[Color, ...] = ()
    """One RGB color per class, for label maps and overlays; by default those of `colors`, else `default_palette`."""
    raw: Mapping[int, int] | None = None
    """Mask value → train id (or `ignore`); None: masks hold train ids and the ignore value."""
    colors: Mapping[Color, int] | None = None
    """RGB color → train id (or `ignore`), for masks stored as colors; None: RGB masks are rejected."""
    ignore: int = field(default=-1)
    """The ignored train id; by default 255, or 65535 above 255 classes."""

    def __post_init__(self) -> None:
        given: object = self.names
        if isinstance(given, str):
            raise InputError(f"labels: names is the string {given!r}; give a list of names")
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "palette", tuple(tuple(color) for color in self.palette))
        if not self.names:
            raise InputError("labels: 0 classes; a label space needs at least one class name")
        if len(self.names) > MOST_CLASSES:
            raise InputError(f"labels: {len(self.names):,} classes; a 16-bit label map holds at most {MOST_CLASSES:,}")
        self._check_names()
        if self.ignore == -1:
            object.__setattr__(self, "ignore", 255 if len(self.names) <= 255 else 65535)
        if not self.palette:
            palette = _palette_of_map(self.names, self.colors) if self.colors else default_palette(self.names)
            object.__setattr__(self, "palette", palette)
        if len(self.palette) != len(self.names):
            raise InputError(
                f"labels: {len(self.palette)} colors for {len(self.names)} classes; give one color per class"
            )
        self._check_ranges()
        self._check_targets("raw", self.raw)
        self._check_targets("colors", self.colors)

    def _check_names(self) -> None:
        for name in self.names:
            if not isinstance(name, str) or any(category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in name):
                raise InputError(f"labels: class name {name!r}; expected one line of text")
        if len(set(self.names)) != len(self.names):
            twice, _ = Counter(self.names).most_common(1)[0]
            raise InputError(f"labels: class name {twice!r} occurs twice; names must be unique")

    def _check_ranges(self) -> None:
        top = np.iinfo(self.dtype).max
        if not 0 <= self.ignore <= top:
            raise InputError(f"labels: ignore is {self.ignore}; expected 0 to {top} for {len(self.names)} classes")
        if self.ignore < len(self.names):
            raise InputError(
                f"labels: ignore is {self.ignore}, which is also the class {self.names[self.ignore]!r}; expected at "
                f"least {len(self.names)}, such as {255 if len(self.names) <= 255 else 65535}"
            )
        for color in (*self.palette, *(self.colors or {})):
            if not all(0 <= channel <= 255 for channel in color):
                raise InputError(f"labels: color {color}; expected red, green and blue from 0 to 255")
        for value in self.raw or {}:
            if not -(2**31) <= value < 2**31:
                raise InputError(f"labels: raw maps the value {value}; expected a value of 32 bits")

    def _check_targets(self, name: str, mapping: Mapping[Any, int] | None) -> None:
        for source, target in (mapping or {}).items():
            if target != self.ignore and not 0 <= target < len(self.names):
                raise InputError(
                    f"labels: {name} maps {source} to {target}; expected a train id from 0 to {len(self.names) - 1} or "
                    f"{self.ignore} (ignored)"
                )

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.names)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of label maps: uint8, or uint16 above 255 classes."""
        return np.dtype(np.uint8 if self.num_classes <= 255 else np.uint16)

    def raw_values(self) -> tuple[int, ...]:
        """The (first) mask value of every class; its train id if `raw` has no value for it."""
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
        """The label space that `to_dict` returned."""
        raw, colors = data.get("raw"), data.get("colors")
        if not isinstance(data["names"], list | tuple):
            raise InputError(f"labels: names is {type(data['names']).__name__}; give a list of names")
        return cls(
            names=tuple(data["names"]),
            palette=tuple(_color(color) for color in data["palette"]),
            raw=None if raw is None else {_integer(k): _integer(v) for k, v in raw},
            colors=None if colors is None else {_color(k): _integer(v) for k, v in colors},
            ignore=_integer(data["ignore"]),
        )

    @classmethod
    def unnamed(cls, num_classes: int) -> LabelSpace:
        """A label space with the names class 0, class 1, …"""
        return cls(tuple(f"class {k}" for k in range(num_classes)))


def _color(value: Sequence[int]) -> Color:
    red, green, blue = (_integer(channel) for channel in value)
    return red, green, blue


def _integer(value: Any) -> int:
    """An integer, or the text of one, as keys of JSON objects are."""
    return int(value) if isinstance(value, str) else index(value)


def default_palette(names: Sequence[str]) -> tuple[Color, ...]:
    """Default colors of classes: `distinct_colors`, and black for the background.

    The background is the first class with a name of `BACKGROUNDS`, or the first of all if it is called class 0. Black
    darkens the image in overlays, so that the other classes stand out.
    """
    plain = [name.casefold().strip(" _-") for name in names]
    background = next((k for k, name in enumerate(plain) if name in BACKGROUNDS or (k == 0 and name == "class 0")), -1)
    others = iter(distinct_colors(len(names)))
    return tuple((0, 0, 0) if k == background else next(others) for k in range(len(names)))


def distinct_colors(count: int) -> tuple[Color, ...]:
    """`count` different colors: those of `FIRST_COLORS`, then hues in golden-ratio steps."""
    golden = 0.618033988749895
    colors = dict.fromkeys(FIRST_COLORS[:count])
    for k in range(4 * count):
        if len(colors) == count:
            return tuple(colors)
        rgb = colorsys.hsv_to_rgb((k * golden) % 1.0, (0.85, 0.55, 0.95)[k % 3], (0.95, 0.85, 0.60)[k // 3 % 3])
        colors[_color([round(255 * channel) for channel in rgb])] = None
    for k in range(1, 2 * count):  # hues run out at thousands of classes; an odd factor repeats no number below 2 ** 24
        number = k * 0x9E3779 % 2**24
        colors[number >> 16, number >> 8 & 255, number & 255] = None
    return tuple(colors)[:count]


def are_distinct(colors: Sequence[Color | None]) -> bool:
    """Whether no color is missing and any two differ by at least `APART` levels in one channel."""
    known = np.array([color for color in colors if color is not None], np.int64).reshape(-1, 3)
    if len(known) < len(colors):
        return False
    return all(int(abs(known[k + 1 :] - known[k]).max(1).min(initial=APART)) >= APART for k in range(len(known)))


def _palette_of_map(names: Sequence[str], colors: Mapping[Color, int]) -> tuple[Color, ...]:
    """The (first) color that encodes each class in masks; a default color for classes without one."""
    own: dict[int, Color] = {}
    for color, target in colors.items():
        own.setdefault(target, color)
    taken = set(own.values())
    free = iter(color for color in distinct_colors(len(names) + len(taken)) if color not in taken)
    return tuple(own[k] if k in own else next(free) for k in range(len(names)))
