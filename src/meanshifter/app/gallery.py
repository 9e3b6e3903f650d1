"""The images of the explorer: those of a folder or dataset, and those that were dropped on the page."""

from __future__ import annotations

import tempfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from meanshifter.data.datasets import Dataset
from meanshifter.data.labels import Labels
from meanshifter.data.reading import IMAGE_SUFFIXES, PassedOver, files_below, read_image
from meanshifter.errors import InputError, printable

MAX_UPLOAD: Final = 64 * 2**20
"""Bytes of a dropped file."""
KEPT_UPLOADS: Final = 16
"""Older ones are deleted."""
MAX_UPLOAD_PIXELS: Final = 100_000_000

Pixels = npt.NDArray[np.uint8]
Images = Dataset | str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Entry:
    """An image that the page offers."""

    name: str
    place: Path | int
    """Its file, or its place in the dataset."""


class Gallery:
    """Images by identifier. Nothing that a browser sends becomes part of a path.

    Args:
        images: a `Dataset`, whose labels are the ground truth; an image file, a list of them, or a folder of images.

    Raises:
        InputError: no such file, or a folder without images.
    """

    def __init__(self, images: Images | None = None) -> None:
        self.dataset = images if isinstance(images, Dataset) else None
        if isinstance(images, Dataset):
            listed = [Entry(name, place) for place, name in enumerate(images.names)]
        else:
            listed = [Entry(name, path) for name, path in _files(images)]
        self._listed = {str(place): entry for place, entry in enumerate(listed)}
        self._folder = tempfile.TemporaryDirectory(prefix="meanshifter-explore-")
        self._uploads: OrderedDict[str, Entry] = OrderedDict()
        self._count = 0
        self._lock = threading.Lock()

    def close(self) -> None:
        """Delete the dropped images."""
        self._folder.cleanup()

    def entries(self) -> dict[str, Entry]:
        """Identifier → image, the dropped ones first."""
        with self._lock:
            return {**dict(reversed(self._uploads.items())), **self._listed}

    def find(self, key: str) -> Entry | None:
        """The image of an identifier."""
        with self._lock:
            return self._uploads.get(key) or self._listed.get(key)

    def source(self, entry: Entry) -> Path | Pixels:
        """The file of an image, or the pixels of one that a dataset generates."""
        if isinstance(entry.place, Path):
            return entry.place
        assert self.dataset is not None
        pair = self.dataset.pair(entry.place)
        return self.dataset[entry.place].image if pair is None else pair.image

    def has_labels(self, entry: Entry) -> bool:
        """Whether there is ground truth of an image."""
        return isinstance(entry.place, int) and self.dataset is not None and self.dataset.labeled

    def labels(self, entry: Entry) -> Labels:
        """The ground truth (H, W) of an image.

        Raises:
            InputError: its mask cannot be read.
        """
        assert isinstance(entry.place, int)
        assert self.dataset is not None
        return self.dataset.read_labels(entry.place)

    def add(self, name: str, data: bytes) -> tuple[str, Entry]:
        """Keep a dropped image in the temporary folder, under a name of our own.

        Raises:
            InputError: the bytes are not an image, or one of more than `MAX_UPLOAD_PIXELS`.
        """
        shown = printable(Path(name.replace("\\", "/")).name)[:100] or "image"
        suffix = Path(shown).suffix.lower()
        if suffix not in IMAGE_SUFFIXES:
            raise InputError(f"{shown}: not an image by its extension; drop one of {' '.join(IMAGE_SUFFIXES)}")
        read_image(shown, max_pixels=MAX_UPLOAD_PIXELS, data=data)
        with self._lock:
            self._count += 1
            key = f"u{self._count}"
            path = Path(self._folder.name) / f"{key}{suffix}"
            path.write_bytes(data)
            self._uploads[key] = Entry(shown, path)
            while len(self._uploads) > KEPT_UPLOADS:
                _, old = self._uploads.popitem(last=False)
                Path(str(old.place)).unlink(missing_ok=True)
            return key, self._uploads[key]


def _files(images: str | Path | Sequence[str | Path] | None) -> list[tuple[str, Path]]:
    """Names and paths of image files."""
    if images is None:
        return []
    if not isinstance(images, str | Path):
        return [pair for path in images for pair in _files(path)]
    path = Path(images)
    if path.is_dir():
        found = sorted(files_below(path, IMAGE_SUFFIXES, PassedOver()))
        if not found:
            raise InputError(f"{path}: no images; expected files of type {' '.join(IMAGE_SUFFIXES)}")
        return [(file.relative_to(path).as_posix(), file) for file in found]
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder of images; check the path")
    return [(path.name, path)]
