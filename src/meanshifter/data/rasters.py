"""Read TIFFs that Pillow cannot decode, or decodes to wrong values, with GDAL through rasterio (the extra `large`).

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
from meanshifter.errors import InputError, summarize_error
from meanshifter.utils.environment import require_installed

Bands = npt.NDArray[Any]
_FILTERS: Final = Lock()
_PLAIN: Final = (0, 1, RGB)  # photometric interpretations whose bands are gray, or red, green and blue


def open_raster(path: Path, driver: str) -> Any:
    """`rasterio.open` without its warning that an image has no georeference."""
    import rasterio

    # rasterio would look for a relative s3:a.tif on the network
    return _quietly(lambda: rasterio.open(path.absolute(), driver=driver))


def _quietly(open_it: Callable[[], Any]) -> Any:
    from rasterio.errors import NotGeoreferencedWarning

    with _FILTERS, warnings.catch_warnings():  # warning filters are global to the process
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return open_it()


@contextmanager
def refusing(path: str | Path) -> Iterator[None]:
    """Turn GDAL's errors into InputErrors about `path`."""
    try:
        yield
    except OSError as error:  # rasterio's errors are OSErrors; their cause has GDAL's message
        reason = summarize_error(error.__cause__ or error).rstrip(".")
        raise InputError(f"{path}: cannot be decoded ({reason}); copy or export the file again") from error


def image_bands(path: str | Path, header: Header, data: bytes | None) -> tuple[Bands, str]:
    """The stored bands (n, H, W) that make an image, 1 of gray or 3 of colors, and a note if they had to be guessed.

    The photometric interpretation or the color interpretation of the bands tells which are red, green and blue;
    otherwise the first three bands are used in this order. Raises InputError if the file cannot be decoded, or rasterio
    is not installed.
    """
    if header.photometric not in _PLAIN:
        raise _refused(path, header, "an image")
    with _opened(path, header, data) as file:
        chosen, note = _colors(header, file)
        return np.asarray(file.read(chosen)), note


def mask_bands(path: str | Path, header: Header, data: bytes | None) -> Bands:
    """The stored numbers (1, H, W) of a mask, or its 8-bit colors (3, H, W); raises as `image_bands`."""
    gray = header.bands == 1 or (header.bands == 2 and header.alpha and header.photometric in (0, 1))
    colored = header.bits == 8 and (header.bands == 3 or (header.bands > 3 and header.photometric == RGB))
    if header.photometric not in (*_PLAIN, PALETTE) or not (gray or colored):
        raise _refused(path, header, "a mask")
    with _opened(path, header, data) as file:
        return np.asarray(file.read([1] if gray else [1, 2, 3]))


def _refused(path: str | Path, header: Header, what: str) -> InputError:
    return InputError(
        f"{path}: a TIFF of {header.described()} (photometric interpretation {header.photometric}) cannot be read as "
        f"{what}; export {'8-bit RGB' if what == 'an image' else 'class numbers in one band of 8 or 16 bits'}"
    )


@contextmanager
def _opened(path: str | Path, header: Header, data: bytes | None) -> Iterator[Any]:
    require_installed(f"{path}: a TIFF of {header.described()}", "large", "rasterio")
    if not header.whole:
        raise InputError(f"{path}: cannot be decoded (truncated: blocks lie beyond its end); copy it again")
    with refusing(path):
        if data is None:
            with open_raster(Path(path), "GTiff") as file:
                yield file
            return
        from rasterio.io import MemoryFile

        with MemoryFile(data) as memory, _quietly(lambda: memory.open(driver="GTiff")) as file:
            yield file


def _colors(header: Header, file: Any) -> tuple[list[int], str]:
    """The bands to read, numbered from 1, and a note if they had to be guessed."""
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
        return [1], "" if header.alpha else "2 bands of unknown meaning; the first is read as gray"
    return [1, 2, 3], (
        f"the file does not say which of its {header.bands} bands are red, green and blue, so bands 1, 2 and 3 are "
        "used; if this is wrong, export three bands"
    )
