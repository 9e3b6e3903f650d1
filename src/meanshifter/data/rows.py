"""Read large TIFF and PNG files row by row through rasterio.

Pillow decodes complete files only. Files that it would convert or turn, or might decode differently, are left to it.

Glossary: H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin

from meanshifter.data.headers import RGB, plain_png_shape, read_header
from meanshifter.data.images import WITHOUT_PILLOWS_LIMIT, orientation
from meanshifter.data.rasters import open_raster, refusing
from meanshifter.data.reading import read_image
from meanshifter.errors import InputError
from meanshifter.utils.files import require_file

Pixels = npt.NDArray[np.uint8]
LARGE: Final = 16_000_000
"""Files with at least so many pixels are read by rows; decoded completely, smaller ones take about as much memory as
`CACHE`."""
CACHE: Final = 64 * 1024**2
"""Decoded blocks that GDAL may keep, in bytes."""
STRIP: Final = 512
"""Rows that strips of windows share at most, unless windows are larger than usual."""
LOSSLESS: Final = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate")
"""Pillow's names of the compressions that every decoder supports and decodes to the same pixels."""


class FileRows:
    """An open file that is indexed like an (H, W, 3) array, ``rows[y0:y1, x0:x1]``; the last y0:y1 is kept."""

    def __init__(self, path: Path, file: Any) -> None:
        self.shape = (file.height, file.width, 3)
        self._path, self._file = path, file
        self._held = slice(0, 0)
        self._strip = np.empty((0, file.width, 3), np.uint8)

    def __getitem__(self, place: tuple[slice, slice]) -> Pixels:
        rows, cols = place
        if rows != self._held:
            self._strip, self._held = self._read(rows), rows
        return self._strip[:, cols]

    def _read(self, rows: slice) -> Pixels:
        strip = np.empty((rows.stop - rows.start, *self.shape[1:]), np.uint8)
        with refusing(self._path):
            self._file.read(
                (1, 2, 3), out=strip.transpose(2, 0, 1), window=((rows.start, rows.stop), (0, self.shape[1]))
            )
        return strip


@dataclass(frozen=True)
class LargeFile:
    """A file that can be read row by row."""

    path: Path
    shape: tuple[int, int, int]
    """(H, W, 3)."""
    driver: str
    """GDAL's name for the format."""

    def pixels(self) -> Pixels:
        """Read the complete image.

        Raises:
            InputError: the file has changed its size, or cannot be read.
        """
        pixels = read_image(self.path, max_pixels=self.shape[0] * self.shape[1])
        if pixels.shape != self.shape:
            found, first = (f"{shape[1]}×{shape[0]}" for shape in (pixels.shape, self.shape))
            raise InputError(f"{self.path}: its size is now {found} instead of {first}; predict it again")
        return pixels

    @contextmanager
    def rows(self) -> Iterator[FileRows]:
        """The rows of the file, which is open within the context.

        Raises:
            InputError: the file cannot be read, now or when rows are requested.
        """
        import rasterio

        with rasterio.Env(GDAL_CACHEMAX=CACHE):
            with refusing(self.path):
                file = open_raster(self.path, self.driver)
            with file:
                yield FileRows(self.path, file)


def large_file(path: Path, max_pixels: int) -> LargeFile | None:
    """The file, if it is large, has at most `max_pixels`, and rasterio reads the same pixels as `read_image`.

    None leaves the file to `read_image`, which also reports what is wrong with it.
    """
    try:
        require_file(path)
        shape, driver = plain_png_shape(path), "PNG"
        if shape is None:
            shape, driver = _plain_tiff_shape(path), "GTiff"
        if shape is None or not LARGE <= shape[0] * shape[1] <= max_pixels:
            return None
        with open_raster(path, driver) as file:
            # rows that two strips of windows share would be decoded twice, in a PNG together with all rows above
            shared = STRIP if driver == "PNG" else 2 * file.block_shapes[0][0]
            fits = shared * file.width * file.count <= CACHE
            return LargeFile(path, shape, driver) if fits and (file.height, file.width, 3) == shape else None
    except Exception:  # rasterio is not installed, or the file is broken: decoders raise almost anything on it
        return None


def _plain_tiff_shape(path: Path) -> tuple[int, int, int] | None:
    """(H, W, 3) of a complete TIFF that stores upright 8-bit RGB, according to its header; else None."""
    with WITHOUT_PILLOWS_LIMIT, path.open("rb") as file, Image.open(file, formats=("TIFF",)) as picture:
        if not isinstance(picture, TiffImagePlugin.TiffImageFile) or picture.mode != "RGB":
            return None
        header, tags = read_header(file, picture), picture.tag_v2
        plain = (
            picture.info["compression"] in LOSSLESS
            and header.bits == 8
            and header.photometric == RGB  # not YCbCr
            and tags.get(TiffImagePlugin.FILLORDER, 1) == 1
            and header.turn == orientation(picture) == 1
            and header.whole
            and not header.frames
        )
        return (picture.height, picture.width, 3) if plain else None
