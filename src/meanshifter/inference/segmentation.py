"""The result of a prediction: a label map, and what people do with it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.data.rows import LargeFile
from meanshifter.errors import InputError
from meanshifter.inference.files import save_png


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map (H, W) of train ids, the image (H, W, 3) that it describes, and its classes."""

    labels: Labels
    """(H, W) train ids, uint8, or uint16 above 255 classes."""
    source: npt.NDArray[np.uint8] | LargeFile
    """(H, W, 3), the input at its original size, or the file that holds it."""
    space: LabelSpace
    """Names and colours of the classes."""
    scores: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """(H, W) maps that the predictor was asked for: probability of the winner, margin, entropy in nats."""
    probabilities: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """(H, W) for each class that the predictor was asked for, by its name."""

    @cached_property
    def image(self) -> npt.NDArray[np.uint8]:
        """(H, W, 3), the input at its original size; that of a large TIFF is read again when first asked for.

        Raises:
            InputError: the file is gone, or no longer what it was.
        """
        return self.source.pixels() if isinstance(self.source, LargeFile) else self.source

    def to_image(self) -> Image.Image:
        """The train ids as an image: mode P with the palette, or 16-bit gray above 256 classes."""
        if self.space.num_classes > 256:
            return Image.fromarray(self.labels.astype(np.uint16))
        index = Image.fromarray(self.labels.astype(np.uint8))
        # All 256 entries: with fewer, the PNG would be packed into 1, 2 or 4 bits, which some readers refuse.
        flat = [channel for color in self.space.palette for channel in color]
        index.putpalette(flat + [0] * (768 - len(flat)))
        return index

    def save(self, path: str | Path) -> None:
        """Write the label map as a PNG of train ids (see `to_image`), beside and renamed into place.

        Raises:
            InputError: a name that does not end in .png, or a place that cannot be written.
        """
        if Path(path).suffix.lower() != ".png":
            raise InputError(f"{path}: label maps are written as PNG, which keeps every id; end the name in .png")
        save_png(path, self.to_image())

    def overlay(self, alpha: float = 0.5, legend: bool = False) -> Image.Image:
        """The image under its class colours; `alpha` 0 shows the image alone, 1 the colours alone.

        With `legend`, a panel to the right names the classes present with colour and share, largest first;
        the image keeps its scale and its place at the top left. Ignored pixels stay uncoloured.

        Raises:
            InputError: `alpha` outside 0..1.
        """
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha: {alpha}; it must lie between 0 (image alone) and 1 (colours alone)")
        known = self.labels < self.space.num_classes
        palette = np.asarray(self.space.palette, dtype=np.float32)
        blended = self.image.astype(np.float32)
        blended[known] = (1 - alpha) * blended[known] + alpha * palette[self.labels[known]]
        picture = Image.fromarray(np.round(blended).astype(np.uint8))
        return _with_legend(picture, self.class_areas(), self.space) if legend else picture

    def map_image(self, name: str) -> Image.Image:
        """A score or a class's probability as 16-bit grey: 65535 is 1, for the entropy its largest value, log K.

        Raises:
            InputError: a map that the predictor was not asked for.
        """
        known = {**self.probabilities, **self.scores}
        if name not in known:
            asked = ", ".join(known) if known else "none"
            raise InputError(f"{name}: no such map; the predictor was asked for {asked}")
        whole = math.log(max(self.space.num_classes, 2)) if name == "entropy" and name in self.scores else 1.0
        return Image.fromarray(np.round(known[name].clip(0, whole) * (65535 / whole)).astype(np.uint16))

    def class_areas(self) -> dict[str, float]:
        """Fraction of all pixels for each class present, largest first; ignored pixels belong to no class."""
        counts = np.bincount(self.labels.ravel(), minlength=self.space.num_classes)[: self.space.num_classes]
        order = np.argsort(-counts, kind="stable")
        return {self.space.names[k]: float(counts[k] / self.labels.size) for k in order if counts[k]}


def _with_legend(picture: Image.Image, areas: dict[str, float], space: LabelSpace) -> Image.Image:
    """`picture` with a panel to its right; text has 12 pixels or more, and the panel grows in columns."""
    size = max(12, round(min(picture.size) / 32))
    font = ImageFont.load_default(size)
    row, pad = round(1.6 * size), size
    entries = [(space.palette[space.names.index(name)], f"{name}  {share:.1%}") for name, share in areas.items()]
    text_width = math.ceil(max((font.getlength(text) for _, text in entries), default=0))
    column = 2 * size + text_width + pad
    rows = max((picture.height - 2 * pad) // row, min(len(entries), 12), 1)
    columns = math.ceil(len(entries) / rows)
    height = max(picture.height, min(rows, len(entries)) * row + 2 * pad)
    canvas = Image.new("RGB", (picture.width + columns * column + pad, height), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (color, text) in enumerate(entries):
        x = picture.width + pad + i // rows * column
        y = pad + i % rows * row
        draw.rectangle((x, y, x + size, y + size), fill=color, outline="black")
        draw.text((x + 2 * size, y + size / 2), text, fill="black", font=font, anchor="lm")
    return canvas
