"""Self-contained HTML pages with text, tables and label maps; no network, no scripts."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape as escape_html
from pathlib import Path
from string import Template

import numpy as np
import numpy.typing as npt
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
        self._parts = [f"<h1>{escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        """Add a section title."""
        self._parts.append(f"<h2>{escape(text)}</h2>")

    def text(self, text: str) -> None:
        """Add a paragraph."""
        self._parts.append(f"<p>{escape(text)}</p>")

    def code(self, text: str) -> None:
        """Add preformatted lines, such as commands or a protocol."""
        self._parts.append(f"<pre>{escape(text)}</pre>")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> None:
        """Add a table; the first column names the row, the others are right-aligned numbers.

        Raises:
            ValueError: a row with another number of cells than the header.
        """
        if any(len(row) != len(header) for row in rows):
            raise ValueError(f"table {caption!r}: every row needs {len(header)} cells")
        body = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
            for row in rows
        )
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        self._add_table(f"<table>{title}", header, body)

    def bars(self, header: Sequence[str], rows: Sequence[Sequence[Bar | str]]) -> None:
        """Add a table whose cells are text, or a share with a bar of its length."""
        body = "".join(f"<tr>{''.join(map(_bar_cell, row))}</tr>" for row in rows)
        self._add_table('<table class="bars">', header, body)

    def _add_table(self, start: str, header: Sequence[str], body: str) -> None:
        head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in header)
        self._parts.append(
            f'<div class="wide">{start}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def legend(self, label_space: LabelSpace, *, ignored: bool = True) -> None:
        """Add the color and name of every class, and of ignored pixels."""
        entries = dict(zip(label_space.names, label_space.palette, strict=True))
        if ignored:
            entries["ignored"] = ignored_color(label_space)
        items = "".join(
            f'<li><span style="background:rgb({r},{g},{b})"></span>{escape(name)}</li>'
            for name, (r, g, b) in entries.items()
        )
        self._parts.append(f'<ul class="legend">{items}</ul>')

    def pictures(self, rows: Sequence[Mapping[str, Pixels]], *, columns: int | None = None) -> None:
        """Add rows of (H, W, 3) uint8 pictures with captions; on a narrow screen, two per row.

        Rows have as many columns as pictures, or `columns`; with more than four, a screen of medium width has two per
        row, too.
        """
        for row in rows:
            figures = "".join(_figure(caption, pixels) for caption, pixels in row.items())
            count = len(row) if columns is None else columns
            kind = "row many" if count > 4 else "row"
            self._parts.append(f'<div class="{kind}" style="--n:{count}">{figures}</div>')

    def plots(self, plots: Mapping[str, Pixels]) -> None:
        """Add a row of (H, W, 3) uint8 plots with captions; on a narrow screen, one below the other."""
        figures = "".join(_figure(caption, pixels) for caption, pixels in plots.items())
        self._parts.append(f'<div class="plots">{figures}</div>')

    def html(self) -> str:
        """The complete document."""
        style = f"{_STYLE}main {{ max-width: {self.width}px; }}\n"
        return _DOCUMENT.substitute(title=escape(self.title), style=style, body="\n".join(self._parts))

    def save(self, path: str | Path) -> None:
        """Write the document as UTF-8, atomically.

        Raises:
            InputError: the file cannot be written.
        """
        write_text(path, self.html())


def escape(text: str) -> str:
    """Escape `text` for HTML, and spell out characters that do not print, such as those that change its direction."""
    return "\n".join(escape_html(printable(line)) for line in text.split("\n"))


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


def _figure(caption: str, pixels: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", optimize=True)
    uri = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    fine = ' class="fine"' if pixels.shape[1] > FINE else ""
    return (
        f'<figure><img alt="{escape(caption)}"{fine} src="{uri}" '
        f'width="{pixels.shape[1]}" height="{pixels.shape[0]}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def _bar_cell(cell: Bar | str) -> str:
    if isinstance(cell, str):
        return f"<td>{escape(cell)}</td>"
    red, green, blue = cell.color
    style = f"width:{8 * cell.share:.3f}rem;background:rgb({red},{green},{blue})"
    return f'<td><span class="bar" style="{style}"></span>{100 * cell.share:.2f} %</td>'


_DOCUMENT = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>$style</style>
</head>
<body>
<main>
$body
</main>
</body>
</html>
""")

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2129; --soft: #5b6472; --line: #d8dce3; --paper: #fff; --tint: #f3f5f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --soft: #a0a9b6; --line: #3a414c; --paper: #16191e; --tint: #21262d; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif;
  overflow-wrap: anywhere; }
main { margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { max-width: 46rem; margin: .6rem 0; }
pre { background: var(--tint); padding: .7rem .9rem; border-radius: 6px; font-size: .85rem; white-space: pre-wrap; }
.wide { overflow-x: auto; margin: .6rem 0 1.2rem;
  background: linear-gradient(to left, var(--paper) 1rem, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--line), transparent) right / 1rem 100% no-repeat; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  overflow-wrap: normal; hyphens: none; }
thead th { color: var(--soft); font-weight: 600; white-space: normal; vertical-align: bottom; line-height: 1.3; }
tbody th { font-weight: 500; }
th:first-child { text-align: left; padding-left: 0; }
.bars th, .bars td { text-align: left; padding: .1rem .6rem; }
.bars td { border: 0; }
.bars tr > :first-child { padding-left: 0; }
.bar { display: inline-block; height: .8em; min-width: 1px; margin-right: .5em; border-radius: 2px;
  outline: 1px solid var(--line); }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; padding: 0; margin: .8rem 0; }
.legend span { display: inline-block; width: .95em; height: .95em; border-radius: 3px; margin-right: .45em;
  vertical-align: -.1em; border: 1px solid var(--line); }
.row { display: grid; grid-template-columns: repeat(var(--n), minmax(0, 1fr)); gap: .5rem; margin: 0 0 1rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
img { display: block; width: 100%; height: auto; border-radius: 4px; image-rendering: pixelated; }
img.fine { image-rendering: auto; }
.plots img { image-rendering: auto; }
figcaption { color: var(--soft); font-size: .85rem; padding-top: .2rem; }
@media (max-width: 900px) {
  .row.many { grid-template-columns: repeat(2, minmax(0, 1fr)); }
}
@media (max-width: 600px) {
  .row { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  th, td { padding: .3rem .4rem; font-size: .9rem; }
}
"""
