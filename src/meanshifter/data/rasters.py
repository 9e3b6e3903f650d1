"""TIFFs that Pillow does not decode, or decodes to other values, read by GDAL through rasterio: the extra `large`.

Glossary: H W pixels, n bands.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meanshifter.data.headers import PALETTE, RGB, Header
from meanshifter.errors import InputError
from meanshifter.packages import require_installed

Bands = npt.NDArray[Any]
_FILTERS: Final = Lock()
_PLAIN: Final = (0, 1, RGB)
"""Photometric interpretations whose bands are grey, or red, green and blue."""


def open_raster(path: Path, driver: str) -> Any:
    """As rasterio's `open`, without its warning that a picture is no map."""
    import rasterio

    # a relative s3:a.tif would be looked for on the network
    return _quietly(lambda: rasterio.open(path.absolute(), driver=driver))


def _quietly(open_it: Callable[[], Any]) -> Any:
    from rasterio.errors import NotGeoreferencedWarning

    with _FILTERS, warnings.catch_warnings():  # the filters are those of the process
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return open_it()


@contextmanager
def refusing(path: str | Path) -> Iterator[None]:
    """GDAL's errors as refusals of `path`."""
    try:
        yield
    except OSError as error:  # as rasterio's are; the cause is GDAL's own words
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise InputError(f"{path}: cannot be decoded ({reason}); copy or export the file again") from error


def image_bands(path: str | Path, header: Header, data: bytes | None) -> tuple[Bands, str]:
    """(n, H, W) of the bands that make a picture, 1 of grey or 3 of colours, as stored; and what to say of the choice.

    Which are red, green and blue the file says, by its photometric interpretation or the colours of its bands; of
    three bands without colours they are in this order. Of more, the first three are taken.

    Raises:
        InputError: a file that cannot be decoded, or rasterio is absent.
    """
    if header.photometric not in _PLAIN:
        raise _refused(path, header, "an image")
    with _opened(path, header, data) as file:
        chosen, note = _colors(header, file)
        return np.asarray(file.read(chosen)), note


def mask_bands(path: str | Path, header: Header, data: bytes | None) -> Bands:
    """(1, H, W) of the numbers of a mask, or (3, H, W) of its colours of 8 bits, as stored.

    Raises:
        InputError: several bands that are neither, a file that cannot be decoded, or rasterio is absent.
    """
    grey = header.bands == 1 or (header.bands == 2 and header.alpha and header.photometric in (0, 1))
    colored = header.bits == 8 and (header.bands == 3 or (header.bands > 3 and header.photometric == RGB))
    if header.photometric not in (*_PLAIN, PALETTE) or not (grey or colored):
        raise _refused(path, header, "a mask")
    with _opened(path, header, data) as file:
        return np.asarray(file.read([1] if grey else [1, 2, 3]))


def _refused(path: str | Path, header: Header, what: str) -> InputError:
    return InputError(
        f"{path}: {what} in a TIFF of {header.described()} (photometric interpretation {header.photometric}), which is "
        f"not read; export {'an 8-bit RGB TIFF' if what == 'an image' else 'class numbers in one band of 8 or 16 bits'}"
    )


@contextmanager
def _opened(path: str | Path, header: Header, data: bytes | None) -> Iterator[Any]:
    require_installed(f"{path}: a TIFF of {header.described()}", "large", "rasterio")
    if not header.whole:
        raise InputError(f"{path}: cannot be decoded (truncated: blocks lie outside the file); copy it again")
    with refusing(path):
        if data is None:
            with open_raster(Path(path), "GTiff") as file:
                yield file
            return
        from rasterio.io import MemoryFile

        with MemoryFile(data) as memory, _quietly(lambda: memory.open(driver="GTiff")) as file:
            yield file


def _colors(header: Header, file: Any) -> tuple[list[int], str]:
    """Numbers of the bands to read, from 1, and a note where they had to be guessed."""
    if header.bands == 1:
        return [1], ""
    if header.photometric == RGB:
        return [1, 2, 3], ""
    colors = [color.name for color in file.colorinterp]
    if {"red", "green", "blue"} <= set(colors):
        return [1 + colors.index(name) for name in ("red", "green", "blue")], ""
    if header.bands == 3:
        return [1, 2, 3], ""
    if header.bands == 2:
        return [1], "" if header.alpha else "of 2 bands without a meaning the first is read, as gray"
    return [1, 2, 3], (
        f"the file does not say which of its {header.bands} bands are red, green and blue, so bands 1, 2 and 3 are "
        "read as these; if they are others, export three"
    )
