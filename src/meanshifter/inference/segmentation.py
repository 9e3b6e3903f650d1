"""`Segmentation`, the result of a prediction, and helpers to load inputs and save results."""

from __future__ import annotations

import io
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.data.rows import LargeFile
from meanshifter.errors import InputError
from meanshifter.utils.files import write_atomically


@dataclass(frozen=True, eq=False)
class Segmentation:
    """A label map with its image and classes."""

    labels: Labels
    """(H, W) train ids, uint8, or uint16 above 255 classes."""
    source: npt.NDArray[np.uint8] | LargeFile
    """The input (H, W, 3) at its original size, or the file that holds it."""
    label_space: LabelSpace
    """Names and colors of the classes."""
    confidence: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Requested (H, W) maps by name: probability of the winner, margin, entropy in nats."""
    probabilities: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """Requested (H, W) class probabilities, by class name."""

    @cached_property
    def image(self) -> npt.NDArray[np.uint8]:
        """The input (H, W, 3) at its original size; a large TIFF is read again on first access.

        Raises:
            InputError: the file was removed or has changed.
        """
        return self.source.pixels() if isinstance(self.source, LargeFile) else self.source

    def __repr__(self) -> str:
        height, width = self.labels.shape
        return f"Segmentation({height}×{width} pixels, {self.label_space.num_classes} classes)"

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Return the label map, for `np.asarray(segmentation)`."""
        return np.array(self.labels, dtype=dtype, copy=bool(copy) or None) if dtype or copy else self.labels

    def _repr_png_(self) -> bytes:
        """Render the overlay with its legend, for notebooks."""
        buffer = io.BytesIO()
        self.overlay(legend=True).save(buffer, "PNG")
        return buffer.getvalue()

    def to_image(self) -> Image.Image:
        """Return the train ids as an image: mode P with the palette, or 16-bit gray above 255 classes."""
        if self.label_space.num_classes > 255:
            return Image.fromarray(self.labels.astype(np.uint16))
        index = Image.fromarray(self.labels.astype(np.uint8))
        # all 256 entries: with fewer, Pillow packs pixels into 1, 2 or 4 bits, which some readers do not support
        flat = [channel for color in self.label_space.palette for channel in color]
        index.putpalette(flat + [0] * (768 - len(flat)))
        return index

    def save(self, path: str | Path) -> None:
        """Write the label map atomically as a PNG of train ids (see `to_image`).

        Raises:
            InputError: a name that does not end in .png, or a file that cannot be written.
        """
        if Path(path).suffix.lower() != ".png":
            raise InputError(f"{path}: label maps must be PNG, which is lossless; use a name that ends in .png")
        save_png(path, self.to_image())

    def overlay(self, alpha: float = 0.5, legend: bool = False) -> Image.Image:
        """Blend the image with its class colors; `alpha` 0 shows only the image, 1 only the colors.

        With `legend`, a panel to the right lists the classes present with color and area, largest first; the image
        keeps its scale, at the top left. Ignored pixels are not colored.

        Raises:
            InputError: `alpha` outside 0..1.
        """
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha: {alpha}; it must be between 0 (image only) and 1 (colors only)")
        picture = Image.fromarray(_blend(self.image, self.labels, self.label_space, alpha))
        return _with_legend(picture, self.class_areas(), self.label_space) if legend else picture

    def map_image(self, name: str) -> Image.Image:
        """Return a confidence map or class probability as 16-bit gray, where 65535 is 1, or log K for the entropy.

        Raises:
            InputError: a map that was not requested from the predictor.
        """
        known = {**self.probabilities, **self.confidence}
        if name not in known:
            raise InputError(f"{name}: no such map; the predictor computed {', '.join(known) or 'none'}")
        top = math.log(max(self.label_space.num_classes, 2)) if name == "entropy" and name in self.confidence else 1.0
        return Image.fromarray(np.round(known[name].clip(0, top) * (65535 / top)).astype(np.uint16))

    def class_areas(self) -> dict[str, float]:
        """Return the fraction of all pixels for each class present, largest first; ignored pixels have no class."""
        K, names = self.label_space.num_classes, self.label_space.names
        counts = np.bincount(self.labels.ravel(), minlength=K)[:K]
        order = np.argsort(-counts, kind="stable")
        return {names[k]: float(counts[k] / self.labels.size) for k in order if counts[k]}


def _blend(
    image: npt.NDArray[np.uint8], labels: Labels, label_space: LabelSpace, alpha: float
) -> npt.NDArray[np.uint8]:
    """Blend pixels with class colors, by a table (K + 1, 3, 256) of all results; its last row is for ignored pixels."""
    K, values = label_space.num_classes, np.arange(256, dtype=np.float32)
    table = np.tile(values, (K + 1, 3, 1))
    table[:K] = (1 - alpha) * values + alpha * np.asarray(label_space.palette, dtype=np.float32)[:, :, None]
    results = np.round(table).astype(np.uint8)
    rows, out = np.minimum(labels, K).astype(np.intp) * 256, np.empty_like(image)
    for channel in range(3):
        out[..., channel] = results[:, channel].ravel().take(rows + image[..., channel])
    return out


def _with_legend(picture: Image.Image, areas: dict[str, float], label_space: LabelSpace) -> Image.Image:
    """Add a panel to the right of `picture`; text is at least 12 pixels high, and the panel grows in columns."""
    size = max(12, round(min(picture.size) / 32))
    font = ImageFont.load_default(size)
    row, pad = round(1.6 * size), size
    entries = [
        (label_space.palette[label_space.names.index(name)], f"{name}  {share:.1%}") for name, share in areas.items()
    ]
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


Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def save_png(path: str | Path, picture: Image.Image) -> None:
    """Write `picture` as PNG atomically; raises InputError if the file cannot be written."""
    write_atomically(path, lambda file: picture.save(file, format="PNG"))


def read_ahead(
    load: Callable[[Item], Loaded], items: Iterable[Item], *, workers: int = 2, ahead: int = 4
) -> Iterator[tuple[Item, Future[Loaded]]]:
    """Yield each item with the future of ``load(item)``, in order; at most `ahead` items are loaded or loading.

    An error in `load` is raised by that item's `Future.result`, so one bad item does not stop the others. Closing the
    iterator early does not wait for items that are loading.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="meanshifter-read")
    waiting: deque[tuple[Item, Future[Loaded]]] = deque()
    try:
        for item in islice(source, ahead):
            waiting.append((item, pool.submit(load, item)))
        while waiting:
            yield waiting.popleft()
            for item in islice(source, 1):
                waiting.append((item, pool.submit(load, item)))
        pool.shutdown()
    finally:
        # no waiting: the garbage collector may close the iterator in a thread that is just starting, which holds the
        # lock that joining another thread needs
        pool.shutdown(wait=False, cancel_futures=True)
