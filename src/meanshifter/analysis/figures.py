"""Figures for papers: rows of pictures of one size, with titles, notes and a legend.

A strip is one PNG for a screen. A sheet is a PNG at print resolution and a PDF with text as text; its lengths are in
pixels of 1/300 inch.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from meanshifter.analysis.html import Pixels, colorize, ignored_color
from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.errors import InputError, printable
from meanshifter.utils.files import write_all_or_none

if TYPE_CHECKING:
    from matplotlib.axes import Axes


STRIP_SIDE = 480
"""Maximum of the longer side of a tile, in pixels."""
FAINT = 0.2
"""Share of its color that a correct pixel keeps in an error map; the rest is white."""
LETTERS = 75
"""Width of a figure in text heights: on a page 18 cm wide, text of about 7 points."""
SMALLEST_TEXT = 16
"""Smallest text height in pixels that is legible on a screen."""
Picture = TypeVar("Picture", Pixels, Labels)


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture with a title above and a note below."""

    pixels: Pixels
    """(H, W, 3) uint8."""
    title: str
    note: str = ""


def error_map(truth: Labels, prediction: Labels, label_space: LabelSpace) -> Pixels:
    """(H, W, 3) uint8: wrong pixels in the color of the predicted class, correct ones faint, ignored ones gray."""
    colors = colorize(prediction, label_space)
    right = truth == prediction
    colors[right] = 255 - np.round(FAINT * (255 - colors[right].astype(np.float32))).astype(np.uint8)
    colors[truth == label_space.ignore] = ignored_color(label_space)
    return colors


def fitted(pixels: Picture, *, side: int = STRIP_SIDE, photo: bool = False) -> Picture:
    """Resize pixels (H, W, 3), or a label map (H, W), to a longer side of at most `side`.

    Small ones are enlarged by the largest integer factor that fits. Photos are downsampled smoothly, label maps keep
    their colors.
    """
    H, W = pixels.shape[:2]
    longer = max(H, W)
    if longer <= side:
        factor = side // longer
        return pixels.repeat(factor, 0).repeat(factor, 1)
    size = max(round(W * side / longer), 1), max(round(H * side / longer), 1)
    how = Image.Resampling.LANCZOS if photo else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def classes_in(maps: Iterable[Labels], label_space: LabelSpace) -> dict[str, Color]:
    """Name and color of the classes in label maps, in the order of the train ids, and of ignored pixels."""
    found = set().union(*(np.unique(labels).tolist() for labels in maps))
    entries = {name: label_space.palette[k] for k, name in enumerate(label_space.names) if k in found}
    return {**entries, "ignored": ignored_color(label_space)} if label_space.ignore in found else entries


def draw_strip(heading: str, rows: Sequence[Sequence[Tile]], legend: Mapping[str, Color]) -> Image.Image:
    """Draw rows of tiles of one size under a heading, with the colors and names of `legend` below them.

    The text grows with the width, so that it stays legible when the figure is scaled to a page.
    """
    layout = _Layout.of(rows)
    blocks = [_text_block(heading, layout.inner, layout)]
    blocks += [_row_block(row, layout) for row in rows]
    blocks += [_legend_block(legend, layout)] if legend else []
    height = sum(block.height + layout.gap for block in blocks) + layout.gap
    canvas = Image.new("RGB", (layout.inner + 2 * layout.gap, height), "white")
    y = layout.gap
    for block in blocks:
        canvas.paste(block, (layout.gap, y))
        y += block.height + layout.gap
    return canvas


class _Layout(NamedTuple):
    """Sizes in pixels that all parts of a strip share."""

    tile: int
    """Width of a tile."""
    gap: int
    """Between tiles, and the margin."""
    inner: int
    """Width without margins."""
    text: int
    """Height of the text."""
    line: int
    """Line spacing."""
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont

    @classmethod
    def of(cls, rows: Sequence[Sequence[Tile]]) -> _Layout:
        tile, columns = rows[0][0].pixels.shape[1], max(map(len, rows))
        text = max(SMALLEST_TEXT, round(tile * columns / LETTERS))
        gap = max(text // 3, 4)
        inner = columns * tile + (columns - 1) * gap
        return cls(tile, gap, inner, text, round(1.25 * text), ImageFont.load_default(text))


def _row_block(row: Sequence[Tile], layout: _Layout) -> Image.Image:
    """Titles, tiles and notes of one row; titles are bottom-aligned, notes top-aligned."""
    titles = [_text_block(tile.title, layout.tile, layout) for tile in row]
    notes = [_text_block(tile.note, layout.tile, layout) for tile in row]
    over, under = (max(block.height for block in blocks) for blocks in (titles, notes))
    H = row[0].pixels.shape[0]
    block = Image.new("RGB", (layout.inner, over + H + under), "white")
    for column, (title, tile, note) in enumerate(zip(titles, row, notes, strict=True)):
        x = column * (layout.tile + layout.gap)
        block.paste(title, (x, over - title.height))
        block.paste(Image.fromarray(tile.pixels), (x, over))
        block.paste(note, (x, over + H))
    return block


def _text_block(text: str, width: int, layout: _Layout) -> Image.Image:
    """Lines of text, left-aligned; of height 0 for no text."""
    lines = _lines(text, width, layout)
    block = Image.new("RGB", (width, len(lines) * layout.line), "white")
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((0, (number + 0.5) * layout.line), line, fill="black", font=layout.font, anchor="lm")
    return block


def _lines(text: str, width: int, layout: _Layout) -> list[str]:
    """`text` wrapped at `width` pixels; a word that is too long is cut with an ellipsis."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else ""
        if joined and layout.font.getlength(joined) <= width:
            lines[-1] = joined
        else:
            lines.append(_cut(word, width, layout))
    return lines


def _cut(word: str, width: int, layout: _Layout) -> str:
    if layout.font.getlength(word) <= width:
        return word
    while word and layout.font.getlength(f"{word}…") > width:
        word = word[:-1]
    return f"{word}…"


def _legend_block(legend: Mapping[str, Color], layout: _Layout) -> Image.Image:
    """Boxes of color with their names, as many in a line as fit."""
    box, places, x, y = layout.text, [], 0, 0
    for name in legend:
        wide = round(1.5 * box + layout.font.getlength(name))
        if x and x + wide > layout.inner:
            x, y = 0, y + round(1.2 * layout.line)
        places.append((x, y))
        x += wide + box
    block = Image.new("RGB", (layout.inner, y + layout.line), "white")
    draw = ImageDraw.Draw(block)
    for (x, y), (name, color) in zip(places, legend.items(), strict=True):
        top = y + (layout.line - box) // 2
        draw.rectangle((x, top, x + box - 1, top + box - 1), fill=color, outline="black", width=max(box // 16, 1))
        draw.text((x + 1.5 * box, y + layout.line / 2), name, fill="black", font=layout.font, anchor="lm")
    return block


DPI: Final = 300
WIDTH: Final = round(6.875 * DPI)
"""The width of a two-column conference paper."""
SIDE: Final = 1024
"""Maximum of the longer side of a stored picture: twice its print resolution in a sheet of four columns."""
FEWEST: Final = 3
"""Columns that fill the width; a sheet of fewer is narrower, so that no picture fills the page."""
TALLEST: Final = 4 / 3
"""Maximum height of a row, in column widths."""
MARGIN, GAP, BOX = 6, 12, 26
TITLE, LINE = 50, 36
"""Heights of the title row and of a line of the legend."""
TITLE_POINTS, LEGEND_POINTS = 8.0, 7.0
FORMATS: Final = ("png", "pdf")
NO_MATPLOTLIB: Final = 'matplotlib is not installed; pip install "meanshifter[plots]"'


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One image and its label maps, from left to right."""

    image: Pixels
    maps: tuple[Labels, ...]

    @classmethod
    def of(cls, image: Pixels, maps: Sequence[Labels]) -> SheetRow:
        """The row of an image (H, W, 3) and label maps (H, W), downsampled to what print can show."""
        photo = fitted(image, side=SIDE, photo=True) if max(image.shape[:2]) > SIDE else image
        return cls(photo, tuple(fitted(labels, side=SIDE) for labels in maps))


def has_matplotlib() -> bool:
    """Whether sheets can be drawn."""
    return find_spec("matplotlib") is not None


def require_matplotlib() -> None:
    """Make sure that sheets can be drawn.

    Raises:
        InputError: matplotlib is not installed.
    """
    if not has_matplotlib():
        raise InputError(f"sheets: {NO_MATPLOTLIB}")


def sheet_files(path: Path) -> list[Path]:
    """The files of the sheet `path`, which has no extension."""
    return [path.with_name(f"{path.name}.{form}") for form in FORMATS]


def steps_title(steps: int) -> str:
    """The column title for label maps after `steps` mean shift steps."""
    return rf"$L'_{{\mathrm{{ms}}}} = {steps}$"


def plain_title(name: str) -> str:
    """Escape a name for use as a column title."""
    return printable(name).replace("$", r"\$")


def save_sheet(
    path: Path, titles: Sequence[str], rows: Sequence[SheetRow], label_space: LabelSpace, facts: Sequence[str]
) -> list[Path]:
    """Write the sheet `path`.png and `path`.pdf; returns both.

    Args:
        path: a path without extension.
        titles: titles of the image and of each label map, from `plain_title` or `steps_title`.
        rows: one or more.
        label_space: names and colors of the classes; those that occur are in the legend.
        facts: protocols of the label maps, a line each, for the PNG's text chunk "Protocol" and the PDF's subject.

    Raises:
        InputError: matplotlib is missing, or the files cannot be written.
    """
    require_matplotlib()
    from matplotlib import rc_context

    writers = {file: partial(_draw, file.suffix[1:], titles, rows, label_space, facts) for file in sheet_files(path)}
    # The font is the user's choice (matplotlibrc), but not what would change sizes, or leave text out of the PDF.
    settings: Any = {"pdf.fonttype": 42, "text.usetex": False, "text.parse_math": True, "savefig.bbox": None}
    with rc_context(settings), _one_warning(path):
        write_all_or_none(writers)
    return list(writers)


@contextmanager
def _one_warning(path: Path) -> Iterator[None]:
    """Merge the warnings on characters that the font lacks into one, and silence those on the age of the font."""
    fonts = logging.getLogger("fontTools")
    level = fonts.level
    fonts.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
    finally:
        fonts.setLevel(level)
    lacking = {str(warning.message) for warning in caught if "missing from" in str(warning.message)}
    for warning in caught:
        if str(warning.message) not in lacking:
            warnings.warn(warning.message, warning.category, stacklevel=2)
    if lacking:
        warnings.warn(
            f"{path.name}: the font lacks {len(lacking)} characters of the names ({min(lacking)}); set font.family in "
            "a matplotlibrc to choose another one",
            stacklevel=2,
        )


def _draw(
    form: str,
    titles: Sequence[str],
    rows: Sequence[SheetRow],
    label_space: LabelSpace,
    facts: Sequence[str],
    file: IO[bytes],
) -> None:
    from matplotlib.figure import Figure

    count = len(titles)
    column = (WIDTH - 2 * MARGIN - (max(count, FEWEST) - 1) * GAP) // max(count, FEWEST)
    inner = count * column + (count - 1) * GAP
    heights = [min(_full(row, column), round(TALLEST * column)) for row in rows]
    legend = _Legend(classes_in((labels for row in rows for labels in row.maps), label_space), inner)
    size = inner + 2 * MARGIN, TITLE + sum(heights) + (len(rows) + 1) * GAP + legend.height
    figure = Figure(figsize=(size[0] / DPI, size[1] / DPI), dpi=DPI, facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1), frameon=False)
    axes.set_axis_off()
    axes.set(xlim=(0, size[0]), ylim=(size[1], 0))
    lefts = [MARGIN + number * (column + GAP) for number in range(count)]
    for left, title in zip(lefts, titles, strict=True):
        text = _shortened(title, column, TITLE_POINTS)
        style: dict[str, Any] = {"fontsize": TITLE_POINTS, "ha": "center", "color": "black"}
        axes.text(left + column / 2, TITLE - 15, text, **style)
    top = TITLE
    for row, height in zip(rows, heights, strict=True):
        wide = round(row.image.shape[1] / row.image.shape[0] * height) if height < _full(row, column) else column
        for left, pixels in zip(lefts, _pictures(row, label_space, (wide, height), form), strict=True):
            x = left + (column - wide) // 2
            extent = (x, x + wide, top + height, top)
            interpolation = "none" if form == "pdf" else "nearest"  # "none" embeds the pixels in a PDF unchanged
            axes.imshow(pixels, extent=extent, aspect="auto", origin="upper", interpolation=interpolation)
        top += height + GAP
    legend.draw(axes, top + GAP)
    text = "\n".join(map(printable, facts))
    metadata: dict[str, Any] = {"Subject": text, "CreationDate": None} if form == "pdf" else {"Protocol": text}
    figure.savefig(file, format=form, dpi=DPI, facecolor="white", transparent=False, metadata=metadata)


def _full(row: SheetRow, column: int) -> int:
    """The height of a row whose pictures fill the column width."""
    H, W = row.image.shape[:2]
    return max(int(column * H / W + 0.5), 1)


def _pictures(row: SheetRow, label_space: LabelSpace, size: tuple[int, int], form: str) -> list[Pixels]:
    """The pictures (H, W, 3) of a row, of (width, height) `size`; the label maps of a PDF keep their own."""
    photo = np.asarray(Image.fromarray(row.image).resize(size, Image.Resampling.LANCZOS))
    maps = [colorize(labels, label_space) for labels in row.maps]
    if form != "pdf":
        maps = [np.asarray(Image.fromarray(colors).resize(size, Image.Resampling.NEAREST)) for colors in maps]
    return [photo, *maps]


def _text_width(text: str, points: float) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width: float = text_to_path.get_text_width_height_descent(text, FontProperties(size=points), ismath=False)[0]
    return width * DPI / 72


def _shortened(title: str, width: float, points: float) -> str:
    """Cut the middle of a title that is too long, as names often differ only at the end."""
    if title.startswith("$"):
        return title
    name = title.replace(r"\$", "$")
    kept, text = len(name), name
    while kept > 1 and _text_width(text, points) > width:
        kept -= 1
        text = f"{name[: math.ceil(kept / 2)].rstrip()}…{name[len(name) - kept // 2 :].lstrip()}"
    return plain_title(text)


class _Legend:
    """Color and name of each class, in columns of equal width."""

    def __init__(self, entries: dict[str, Color], width: int) -> None:
        indent = BOX + 9
        names = [_shortened(plain_title(name), width / 2 - indent, LEGEND_POINTS) for name in entries]
        widest = max((_text_width(name, LEGEND_POINTS) for name in names), default=0)
        most = max(int(width // (indent + widest + 2 * GAP)), 1)
        lines = max(math.ceil(len(names) / most), 1)
        self._columns = max(math.ceil(len(names) / lines), 1)  # lines of similar length
        self._step = min(width / self._columns, indent + widest + 6 * GAP)
        self._entries, self._indent = list(zip(names, entries.values(), strict=True)), indent
        self.height = math.ceil(len(names) / self._columns) * LINE

    def draw(self, axes: Axes, top: float) -> None:
        """Draw the legend below `top`."""
        from matplotlib.patches import Rectangle

        for place, (name, color) in enumerate(self._entries):
            x, y = MARGIN + place % self._columns * self._step, top + place // self._columns * LINE
            fill = tuple(channel / 255 for channel in color)
            box = Rectangle((x + 1, y + 4), BOX, BOX, facecolor=fill, edgecolor="black", linewidth=0.3)
            axes.add_patch(box)
            axes.text(x + self._indent, y + 4 + 0.82 * BOX, name, fontsize=LEGEND_POINTS, color="black")
