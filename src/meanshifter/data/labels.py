"""What the numbers and colours of a mask mean: names, palette, the map from raw values to classes."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from meanshifter.errors import InputError

Color = tuple[int, int, int]
Labels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


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
        if not self.names:
            raise InputError("labels: 0 classes; a label space needs at least one class name")
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise InputError(f"labels: class name {twice[0]!r} occurs twice; names must differ")
        if self.ignore == -1:
            object.__setattr__(self, "ignore", 255 if len(self.names) <= 255 else 65535)
        if not self.palette:
            object.__setattr__(self, "palette", distinct_colors(len(self.names)))
        if len(self.palette) != len(self.names):
            raise InputError(
                f"labels: {len(self.palette)} colours for {len(self.names)} classes; give one colour per class"
            )
        self._check_targets("raw", self.raw)
        self._check_targets("colors", self.colors)

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
        return cls(
            names=tuple(data["names"]),
            palette=tuple(_color(color) for color in data["palette"]),
            raw=None if raw is None else {int(k): int(v) for k, v in raw},
            colors=None if colors is None else {_color(k): int(v) for k, v in colors},
            ignore=int(data["ignore"]),
        )

    @classmethod
    def unnamed(cls, num_classes: int) -> LabelSpace:
        """`num_classes` classes called class 0, class 1, …"""
        return cls(tuple(f"class {k}" for k in range(num_classes)))


def _color(value: Sequence[int]) -> Color:
    red, green, blue = (int(channel) for channel in value)
    return red, green, blue


def distinct_colors(count: int) -> tuple[Color, ...]:
    """`count` colours, well apart for the first dozens: hues in golden-ratio steps, three bands of brightness."""
    golden = 0.618033988749895
    colors = []
    for k in range(count):
        rgb = colorsys.hsv_to_rgb((k * golden) % 1.0, (0.85, 0.55, 0.95)[k % 3], (0.95, 0.85, 0.60)[k // 3 % 3])
        colors.append(_color([round(255 * channel) for channel in rgb]))
    return tuple(colors)
