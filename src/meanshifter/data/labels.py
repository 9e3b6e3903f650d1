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


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set and how its masks spell them.

    Train ids are 0..K-1; `ignore` (255, or 65535 above 255 classes) marks pixels that neither teach nor count.
    """

    names: tuple[str, ...]
    """One name per class, in the order of the train ids."""
    palette: tuple[Color, ...] = ()
    """One RGB colour per class, for label maps and overlays; generated where it is not given."""
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
            object.__setattr__(self, "palette", distinct_colors(len(self.names)))
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


def distinct_colors(count: int) -> tuple[Color, ...]:
    """`count` colours, well apart for the first dozens: hues in golden-ratio steps, three bands of brightness."""
    golden = 0.618033988749895
    colors = []
    for k in range(count):
        rgb = colorsys.hsv_to_rgb((k * golden) % 1.0, (0.85, 0.55, 0.95)[k % 3], (0.95, 0.85, 0.60)[k // 3 % 3])
        colors.append(_color([round(255 * channel) for channel in rgb]))
    return tuple(colors)
