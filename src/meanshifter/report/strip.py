"""Figures for papers: pictures of one size in rows, with titles, notes and a legend in the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.report.page import Pixels, colorize, ignored_color

SIDE = 480
"""Longer side of a tile in pixels, at most."""
FAINT = 0.2
"""Share of its colour that a right pixel keeps in an error map; the rest is white."""
LETTERS = 75
"""The width of a figure in heights of its text: on a page 18 cm wide, text of about 7 points."""
SMALLEST_TEXT = 16
"""Height of text in pixels that is legible on a screen."""


Picture = TypeVar("Picture", Pixels, Labels)


@dataclass(frozen=True, eq=False)
class Tile:
    """A picture, the title over it and the note under it."""

    pixels: Pixels
    """(H, W, 3) uint8."""
    title: str
    note: str = ""


def error_map(truth: Labels, prediction: Labels, space: LabelSpace) -> Pixels:
    """(H, W, 3) uint8: wrong pixels in the colour of the predicted class, right ones faint, ignored ones grey."""
    colors = colorize(prediction, space)
    right = truth == prediction
    colors[right] = 255 - np.round(FAINT * (255 - colors[right].astype(np.float32))).astype(np.uint8)
    colors[truth == space.ignore] = ignored_color(space)
    return colors


def fitted(pixels: Picture, *, side: int = SIDE, photo: bool = False) -> Picture:
    """Pixels (H, W, 3), or a label map (H, W), with a longer side of `side` at most.

    Small ones are enlarged by the largest whole factor that fits. Photographs are shrunk smoothly, label maps keep
    their colours.
    """
    H, W = pixels.shape[:2]
    longer = max(H, W)
    if longer <= side:
        factor = side // longer
        return pixels.repeat(factor, 0).repeat(factor, 1)
    size = max(round(W * side / longer), 1), max(round(H * side / longer), 1)
    how = Image.Resampling.LANCZOS if photo else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize(size, how))


def draw_strip(heading: str, rows: Sequence[Sequence[Tile]], legend: Mapping[str, Color]) -> Image.Image:
    """Rows of tiles of one size under a heading, and below them colour and name of every entry of `legend`.

    The text grows with the width, so that it is legible however the figure is scaled to a page.
    """
    layout = _Layout.of(rows)
    blocks = [_text_block(heading, layout.inner, layout)]
    blocks += [_row_block(row, layout) for row in rows]
    blocks += [_legend_block(legend, layout)] if legend else []
    height = sum(block.height + layout.gap for block in blocks) + layout.gap
    canvas = Image.new("RGB", (layout.width, height), "white")
    y = layout.gap
    for block in blocks:
        canvas.paste(block, (layout.gap, y))
        y += block.height + layout.gap
    return canvas


@dataclass(frozen=True)
class _Layout:
    """Sizes in pixels that all parts of a figure share."""

    tile: int
    """Width of a tile."""
    columns: int
    gap: int
    """Between tiles, and around everything."""
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont = field(repr=False)
    text: int
    """Height of the letters."""

    @classmethod
    def of(cls, rows: Sequence[Sequence[Tile]]) -> _Layout:
        tile, columns = rows[0][0].pixels.shape[1], max(map(len, rows))
        text = max(SMALLEST_TEXT, round(tile * columns / LETTERS))
        return cls(tile, columns, max(text // 3, 4), ImageFont.load_default(text), text)

    @property
    def inner(self) -> int:
        """Width without the margin."""
        return self.columns * self.tile + (self.columns - 1) * self.gap

    @property
    def width(self) -> int:
        return self.inner + 2 * self.gap

    @property
    def line(self) -> int:
        """From one line of text to the next."""
        return round(1.25 * self.text)


def _row_block(row: Sequence[Tile], layout: _Layout) -> Image.Image:
    """Titles, tiles and notes of one row; titles stand on the tiles, notes hang below them."""
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
    """Lines of text, left-aligned; nothing for no text."""
    lines = _lines(text, width, layout)
    block = Image.new("RGB", (width, len(lines) * layout.line), "white")
    draw = ImageDraw.Draw(block)
    for number, line in enumerate(lines):
        draw.text((0, (number + 0.5) * layout.line), line, fill="black", font=layout.font, anchor="lm")
    return block


def _lines(text: str, width: int, layout: _Layout) -> list[str]:
    """`text` broken between words to fit into `width` pixels; a word that does not fit is cut with an ellipsis."""
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
    """Boxes of colour with names beside them, as many on a line as fit."""
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
