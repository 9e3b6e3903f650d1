"""Self-contained HTML pages with text, tables and label maps; no network, no scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image

from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.errors import printable
from meanshifter.utils.files import write_text

Pixels = npt.NDArray[np.uint8]
IGNORED = (128, 128, 128)
"""Color of ignored pixels in pictures of label maps, unless a class has a similar one."""
OTHER_GRAYS = ((80, 80, 80), (176, 176, 176), (48, 48, 48), (208, 208, 208))
APART = 48
"""Minimum difference from every class color, in at least one channel and in levels of 255."""
FINE = 256
"""Width from which pictures are smoothed when the browser downsamples them; smaller ones keep their pixels."""

QUALITY = 87
"""Of JPEGs, from 1 to 95."""


@dataclass(frozen=True, eq=False)
class Photo:
    """Pixels (H, W, 3) uint8 that a page stores as JPEG, in about a tenth of the bytes of a PNG."""

    pixels: Pixels


@dataclass(frozen=True)
class Bar:
    """A share between 0 and 1, drawn as a bar."""

    share: float
    color: Color


class Page:
    """A page that is filled from top to bottom and then saved as one HTML file.

    It is responsive from a width of 400 pixels, has a dark mode, and needs no other file.
    """

    def __init__(self, title: str, *, width: int = 1120) -> None:
        """`width` is the maximum width of the page in pixels."""
        self.title, self.width = title, width
        self._parts: list[dict[str, Any]] = []

    def heading(self, text: str) -> None:
        """Add a section title."""
        self._add("heading", text=text, id=f"part-{len(self._headings) + 1}")

    def contents(self) -> None:
        """Add links to all section titles of the page."""
        self._add("contents")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._add("text", text=text)

    def code(self, text: str, *, folded: str = "") -> None:
        """Add preformatted lines, such as commands or a protocol; `folded`: shown on a click on this title."""
        self._add("code", text=text, folded=folded)

    def facts(self, facts: Mapping[str, str]) -> None:
        """Add names with short values, such as scores, as large tiles."""
        self._add("facts", facts=dict(facts))

    def table(
        self, header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", folded: str = ""
    ) -> None:
        """Add a table; the first column names the row, the others are right-aligned numbers.

        Cells may be `Markup`. With `folded`, the table is shown on a click on this title.

        Raises:
            ValueError: a row with another number of cells than the header.
        """
        if any(len(row) != len(header) for row in rows):
            raise ValueError(f"table {caption!r}: every row needs {len(header)} cells")
        self._add("table", header=header, rows=rows, caption=caption, folded=folded)

    def bars(self, header: Sequence[str], rows: Sequence[Sequence[Bar | str]]) -> None:
        """Add a table whose cells are text, or a share with a bar of its length."""
        self._add("bars", header=header, rows=rows)

    def legend(self, label_space: LabelSpace | Mapping[str, Color], *, ignored: bool = True) -> None:
        """Add the color and name of every class, and of ignored pixels; or exactly the given names and colors."""
        if isinstance(label_space, LabelSpace):
            entries = list(zip(label_space.names, label_space.palette, strict=True))
            entries += [("ignored", ignored_color(label_space))] if ignored else []
        else:
            entries = list(label_space.items())
        self._add("legend", entries=entries)

    def pictures(self, rows: Sequence[Mapping[str, Pixels | Photo]], *, columns: int | None = None) -> None:
        """Add rows of (H, W, 3) uint8 pictures with captions; on a narrow screen, two per row.

        Rows have as many columns as pictures, or `columns`; with more than four, a screen of medium width has two per
        row, too.
        """
        for row in rows:
            self._add("pictures", pictures=_encoded(row), columns=len(row) if columns is None else columns)

    def charts(self, charts: Mapping[str, Markup]) -> None:
        """Add a row of charts (`analysis.charts`) with captions; on a narrow screen, one below the other."""
        self._add("charts", charts=dict(charts))

    def plots(self, plots: Mapping[str, Pixels]) -> None:
        """Add a row of (H, W, 3) uint8 plots with captions; on a narrow screen, one below the other."""
        self._add("plots", pictures=_encoded(plots))

    @property
    def _headings(self) -> list[dict[str, Any]]:
        return [part for part in self._parts if part["kind"] == "heading"]

    def _add(self, kind: str, **content: Any) -> None:
        self._parts.append({"kind": kind, **content})

    def html(self) -> str:
        """The complete document, from the template page.html."""
        text = (resources.files("meanshifter.analysis") / "page.html").read_text("utf-8")
        pages = Environment(autoescape=True, undefined=StrictUndefined, finalize=_visible)
        return (
            pages.from_string(text).render(
                title=self.title, width=self.width, parts=self._parts, headings=self._headings
            )
            + "\n"
        )

    def save(self, path: str | Path) -> None:
        """Write the document as UTF-8, atomically.

        Raises:
            InputError: the file cannot be written.
        """
        write_text(path, self.html())


def _visible(value: Any) -> Any:
    """Spell out characters of texts that do not print, such as those that change its direction."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(printable(line) for line in value.split("\n"))


def colorize(labels: Labels, label_space: LabelSpace) -> Pixels:
    """Turn (H, W) train ids into (H, W, 3) uint8 palette colors, with ignored pixels in gray (`ignored_color`)."""
    pixels = np.empty((*labels.shape, 3), np.uint8)
    pixels[:] = ignored_color(label_space)
    known = labels < label_space.num_classes
    pixels[known] = np.asarray(label_space.palette, np.uint8)[labels[known]]
    return pixels


def ignored_color(label_space: LabelSpace) -> Color:
    """A gray that differs from all class colors: the first of `IGNORED` and `OTHER_GRAYS` that does.

    If all are close to some class, it is the gray that is farthest from the classes.
    """
    palette = np.asarray(label_space.palette, np.int64)
    grays = (IGNORED, *OTHER_GRAYS)
    distance = {gray: int(abs(palette - gray).max(1).min()) for gray in grays}
    return next((gray for gray in grays if distance[gray] >= APART), max(grays, key=distance.__getitem__))


def _encoded(pictures: Mapping[str, Pixels | Photo]) -> list[dict[str, Any]]:
    """Captions, sizes and data URIs."""
    found = []
    for caption, picture in pictures.items():
        pixels, buffer = picture.pixels if isinstance(picture, Photo) else picture, io.BytesIO()
        if isinstance(picture, Photo):
            Image.fromarray(pixels).save(buffer, format="JPEG", quality=QUALITY)
        else:
            Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
        kind = "jpeg" if isinstance(picture, Photo) else "png"
        uri = Markup(f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}")  # nothing to escape
        height, width = pixels.shape[:2]
        found.append({"caption": caption, "uri": uri, "width": width, "height": height, "fine": width > FINE})
    return found
