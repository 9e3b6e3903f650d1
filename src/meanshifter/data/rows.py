"""Large TIFFs and PNGs, of which only the rows that are asked for are decoded; this needs rasterio.

Pillow decodes a file as a whole. Whatever it would convert or turn, or might decode to other pixels, is left to it.

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

from meanshifter.data.decoding import WITHOUT_PILLOWS_LIMIT, orientation
from meanshifter.data.headers import RGB, read_header
from meanshifter.data.png_header import plain_png_shape
from meanshifter.data.rasters import open_raster, refusing
from meanshifter.data.reading import read_image
from meanshifter.errors import InputError
from meanshifter.files import require_file

Pixels = npt.NDArray[np.uint8]
LARGE: Final = 16_000_000
"""Pixels from which on a file is read in rows; decoded as a whole, a smaller one needs about as much as `CACHE`."""
CACHE: Final = 64 * 1024**2
"""Bytes of decoded blocks that GDAL may keep."""
STRIP: Final = 512
"""Rows that strips of windows share, at most, unless windows are larger than usual."""
LOSSLESS: Final = ("raw", "packbits", "tiff_lzw", "tiff_deflate", "tiff_adobe_deflate")
"""Pillow's names of the compressions that every decoder knows and takes back to the same pixels."""


class FileRows:
    """An open file in the place of an (H, W, 3) array: ``rows[y0:y1, x0:x1]``, with the last y0:y1 kept."""

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
    """A file that can be read in rows."""

    path: Path
    shape: tuple[int, int, int]
    """(H, W, 3)."""
    driver: str
    """GDAL's name of the format."""

    def pixels(self) -> Pixels:
        """All of the image, in memory.

        Raises:
            InputError: the file is no longer what it was, or cannot be read.
        """
        pixels = read_image(self.path, max_pixels=self.shape[0] * self.shape[1])
        if pixels.shape != self.shape:
            raise InputError(f"{self.path}: is of another size than when it was first read; predict it again")
        return pixels


@contextmanager
def opened(image: Pixels | LargeFile) -> Iterator[Pixels | FileRows]:
    """Pixels to cut windows from: an array is its own; a file is open while inside.

    Raises:
        InputError: a file that cannot be read, here or when rows are asked for.
    """
    if not isinstance(image, LargeFile):
        yield image
        return
    import rasterio

    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        with refusing(image.path):
            file = open_raster(image.path, image.driver)
        with file:
            yield FileRows(image.path, file)


def large_file(path: Path, max_pixels: int) -> LargeFile | None:
    """The file, if it is large, of at most `max_pixels`, and rasterio reads its rows as `read_image` would.

    None leaves it to `read_image`, which also says what is wrong with a file.
    """
    try:
        require_file(path)
        shape, driver = plain_png_shape(path), "PNG"
        if shape is None:
            shape, driver = _plain_tiff_shape(path), "GTiff"
        if shape is None or not LARGE <= shape[0] * shape[1] <= max_pixels:
            return None
        with open_raster(path, driver) as file:
            # what two strips of windows share would be decoded again for each, in a PNG with all above it
            shared = STRIP if driver == "PNG" else 2 * file.block_shapes[0][0]
            fits = shared * file.width * file.count <= CACHE
            return LargeFile(path, shape, driver) if fits and (file.height, file.width, 3) == shape else None
    except Exception:  # rasterio is absent, or the file broken, on which decoders raise nearly anything
        return None


def _plain_tiff_shape(path: Path) -> tuple[int, int, int] | None:
    """(H, W, 3) of a complete TIFF whose pixels are stored as upright RGB of 8 bits, by its header."""
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
