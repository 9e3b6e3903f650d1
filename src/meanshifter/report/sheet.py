"""Sheets for papers: an image and its label maps in every row, titles over the columns, the classes below.

A sheet is written as PNG at print resolution and as PDF with text as text. Lengths are in pixels of 1/300 inch.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.errors import InputError, printable
from meanshifter.files import write_together
from meanshifter.report.page import Pixels, colorize, ignored_color
from meanshifter.report.strip import fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI: Final = 300
WIDTH: Final = round(6.875 * DPI)
"""Both columns of a conference paper."""
SIDE: Final = 1024
"""Longer side of a stored picture, at most: twice what a column of four has in print."""
FEWEST: Final = 3
"""Columns that fill the width; fewer make a narrower sheet, lest a picture fill the page."""
TALLEST: Final = 4 / 3
"""Height of a row in widths of its column, at most."""
MARGIN, GAP, BOX = 6, 12, 26
TITLE, LINE = 50, 36
"""Heights of the line of titles and of a line of the legend."""
TITLE_POINTS, LEGEND_POINTS = 8.0, 7.0
FORMATS: Final = ("png", "pdf")
NO_MATPLOTLIB: Final = 'matplotlib, which draws them, is not installed; pip install "meanshifter[plots]"'


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One image and its label maps, from left to right."""

    image: Pixels
    maps: tuple[Labels, ...]

    @classmethod
    def of(cls, image: Pixels, maps: Sequence[Labels]) -> SheetRow:
        """The row of an image (H, W, 3) and label maps (H, W), no larger than print can show."""
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
    """The files of the sheet `path`, a name without an ending."""
    return [path.with_name(f"{path.name}.{form}") for form in FORMATS]


def steps_title(steps: int) -> str:
    """The title of the label maps after so many mean shift steps."""
    return rf"$L'_{{\mathrm{{ms}}}} = {steps}$"


def plain_title(name: str) -> str:
    """A name as a title, whatever signs are in it."""
    return printable(name).replace("$", r"\$")


def save_sheet(
    path: Path, titles: Sequence[str], rows: Sequence[SheetRow], space: LabelSpace, facts: Sequence[str]
) -> list[Path]:
    """Write the sheet `path`.png and `path`.pdf; returns both.

    Args:
        path: a name without an ending.
        titles: of the image and of each label map; `plain_title` or `steps_title`.
        rows: one or more.
        space: names and colours of the classes, of which those that occur are in the legend.
        facts: what the label maps were made with, a line each: the PNG's text chunk "Protocol", the PDF's subject.

    Raises:
        InputError: matplotlib is missing, or the files cannot be written.
    """
    require_matplotlib()
    from matplotlib import rc_context

    writers = {file: partial(_draw, file.suffix[1:], titles, rows, space, facts) for file in sheet_files(path)}
    # Fonts are the user's own choice (matplotlibrc); what would change sizes, or leave text out of the PDF, is not.
    settings: Any = {"pdf.fonttype": 42, "text.usetex": False, "text.parse_math": True, "savefig.bbox": None}
    with rc_context(settings), _one_warning(path):
        write_together(writers)
    return list(writers)


@contextmanager
def _one_warning(path: Path) -> Iterator[None]:
    """One warning of all characters that the font lacks, and none of the age of the font."""
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
            f"{path.name}: names hold {len(lacking)} characters that the font lacks; font.family in a matplotlibrc "
            f"chooses another ({min(lacking)})",
            stacklevel=2,
        )


def _draw(
    form: str,
    titles: Sequence[str],
    rows: Sequence[SheetRow],
    space: LabelSpace,
    facts: Sequence[str],
    file: IO[bytes],
) -> None:
    from matplotlib.figure import Figure

    count = len(titles)
    column = (WIDTH - 2 * MARGIN - (max(count, FEWEST) - 1) * GAP) // max(count, FEWEST)
    inner = count * column + (count - 1) * GAP
    heights = [_height(row, column) for row in rows]
    legend = _Legend(_classes(rows, space), inner)
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
        for left, pixels in zip(lefts, _pictures(row, space, (wide, height), form), strict=True):
            x = left + (column - wide) // 2
            extent = (x, x + wide, top + height, top)
            interpolation = "none" if form == "pdf" else "nearest"  # "none" leaves the pixels of a PDF as they are
            axes.imshow(pixels, extent=extent, aspect="auto", origin="upper", interpolation=interpolation)
        top += height + GAP
    legend.draw(axes, top + GAP)
    text = "\n".join(map(printable, facts))
    metadata: dict[str, Any] = {"Subject": text, "CreationDate": None} if form == "pdf" else {"Protocol": text}
    figure.savefig(file, format=form, dpi=DPI, facecolor="white", transparent=False, metadata=metadata)


def _full(row: SheetRow, column: int) -> int:
    """The height of a row whose pictures fill the column."""
    H, W = row.image.shape[:2]
    return max(int(column * H / W + 0.5), 1)


def _height(row: SheetRow, column: int) -> int:
    return min(_full(row, column), round(TALLEST * column))


def _pictures(row: SheetRow, space: LabelSpace, size: tuple[int, int], form: str) -> list[Pixels]:
    """The pictures (H, W, 3) of a row: all of (width, height) `size`, but the label maps of a PDF in their own."""
    photo = np.asarray(Image.fromarray(row.image).resize(size, Image.Resampling.LANCZOS))
    maps = [colorize(labels, space) for labels in row.maps]
    if form != "pdf":
        maps = [np.asarray(Image.fromarray(colors).resize(size, Image.Resampling.NEAREST)) for colors in maps]
    return [photo, *maps]


def _classes(rows: Sequence[SheetRow], space: LabelSpace) -> dict[str, Color]:
    """The classes that occur, in the order of the train ids, and ignored pixels."""
    found = set().union(*(np.unique(labels).tolist() for row in rows for labels in row.maps))
    entries = {name: space.palette[k] for k, name in enumerate(space.names) if k in found}
    return {**entries, "ignored": ignored_color(space)} if space.ignore in found else entries


def _text_width(text: str, points: float) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width: float = text_to_path.get_text_width_height_descent(text, FontProperties(size=points), ismath=False)[0]
    return width * DPI / 72


def _shortened(title: str, width: float, points: float) -> str:
    """`title`, or its two ends with an ellipsis between: what tells two names apart often stands at the end."""
    if title.startswith("$"):
        return title
    name = title.replace(r"\$", "$")
    kept, text = len(name), name
    while kept > 1 and _text_width(text, points) > width:
        kept -= 1
        text = f"{name[: math.ceil(kept / 2)].rstrip()}…{name[len(name) - kept // 2 :].lstrip()}"
    return plain_title(text)


class _Legend:
    """Colour and name of each class, in columns of one width."""

    def __init__(self, entries: dict[str, Color], width: int) -> None:
        indent = BOX + 9
        names = [_shortened(plain_title(name), width / 2 - indent, LEGEND_POINTS) for name in entries]
        widest = max((_text_width(name, LEGEND_POINTS) for name in names), default=0)
        most = max(int(width // (indent + widest + 2 * GAP)), 1)
        lines = max(math.ceil(len(names) / most), 1)
        self._columns = max(math.ceil(len(names) / lines), 1)  # lines of like length
        self._step = min(width / self._columns, indent + widest + 6 * GAP)
        self._entries, self._indent = list(zip(names, entries.values(), strict=True)), indent
        self.height = math.ceil(len(names) / self._columns) * LINE

    def draw(self, axes: Axes, top: float) -> None:
        """The legend below `top`."""
        from matplotlib.patches import Rectangle

        for place, (name, color) in enumerate(self._entries):
            x, y = MARGIN + place % self._columns * self._step, top + place // self._columns * LINE
            fill = tuple(channel / 255 for channel in color)
            box = Rectangle((x + 1, y + 4), BOX, BOX, facecolor=fill, edgecolor="black", linewidth=0.3)
            axes.add_patch(box)
            axes.text(x + self._indent, y + 4 + 0.82 * BOX, name, fontsize=LEGEND_POINTS, color="black")
