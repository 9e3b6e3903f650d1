"""Files → pictures: images of 8 bits as they are shown, masks as the numbers that are stored.

Glossary: H W pixels.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from meanshifter.data.claims import MAX_SAMPLE_PIXELS, check_claim, formats
from meanshifter.data.depth import refuse_black, to_8_bits
from meanshifter.data.headers import Header, is_tiff, length, read_header
from meanshifter.data.rasters import image_bands, mask_bands
from meanshifter.errors import InputError
from meanshifter.files import require_file

Factor = Callable[[int, int], float]
"""What an image of this height and width will be resized by."""

ORIENTATION: Final = 0x0112
TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPS_SIDES: Final = (5, 6, 7, 8)
_TO_GREY_WITH_ALPHA: Final = "La"
"""Pillow's mode of premultiplied alpha, from which it converts to LA alone."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """The content of a file."""

    picture: Image.Image
    """As stored, before any turn; perhaps reduced."""
    turn: int
    """EXIF orientation, 1: upright."""
    header: Header

    @property
    def size(self) -> tuple[int, int]:
        """(W, H) as stored, before any reduction."""
        return self.header.size

    @property
    def upright(self) -> Image.Image:
        """The picture turned as the EXIF orientation says."""
        return upright(self.picture, self.turn)


def decode_image(
    path: str | Path, max_pixels: int = MAX_SAMPLE_PIXELS, factor: Factor | None = None, data: bytes | None = None
) -> Decoded:
    """The first picture of a file, in a mode of 8 bits or fewer a sample.

    With `factor` a JPEG may come at a half, a quarter or an eighth of its size, at least twice as large as it will be.

    Raises:
        InputError: a file that is missing, truncated, no image, of more than `max_pixels`, a TIFF of several pages of
            one size, or one of samples that have no brightness (see `depth.to_8_bits`).
    """
    with _opened(path, max_pixels, data) as (picture, header):
        if header.stack:
            raise InputError(
                f"{path}: a TIFF of several pages of one size; export the page, or the bands, as one image"
            )
        if picture is None:
            bands, note = image_bands(path, header, data)
            decoded = Decoded(_from_bands(_shown(bands, header, path)), _known(header.turn), header)
        else:
            divisor = 1
            if factor is not None and picture.format == "JPEG":
                divisor = _reduce(picture, factor(picture.height, picture.width))
            picture.load()
            turn, note = orientation(picture), ""
            decoded = Decoded(_whole(_plain(picture, header, path), header.size, divisor), turn, header)
    if header.frames:
        note = "holds several pictures, of which the first is read"
    if note:
        warnings.warn(f"{path}: {note}", stacklevel=3)
    return decoded


def decode_mask(path: str | Path, *, lossy: bool = False) -> Decoded:
    """The picture of a mask file, whose grey values are the numbers that are stored: nothing is stretched or inverted.

    Where Pillow shows other greys than are stored, the picture has a palette of what is shown.

    Args:
        path: of the file.
        lossy: do not refuse lossy compression.

    Raises:
        InputError: a file that is missing, truncated or no image, lossy compression, several pictures, or samples that
            cannot be told.
    """
    with _opened(path, MAX_SAMPLE_PIXELS, None) as (picture, header):
        if header.lossy and not lossy:
            raise InputError(
                f"{path}: a {header.lossy} mask; lossy compression changes class indices along every edge; "
                "store masks as PNG"
            )
        if header.frames:
            raise InputError(f"{path}: holds several pictures, and a mask is one; store class numbers in one, as PNG")
        if picture is None:
            return Decoded(_from_bands(mask_bands(path, header, None)), _known(header.turn), header)
        if header.format == "PPM" and header.bits == 1:
            raise InputError(f"{path}: a PBM mask; whether its black is 1 or 0 tools see differently; store it as PNG")
        if header.bits > 8 and header.bands > 1:
            raise InputError(
                f"{path}: a mask of {header.described()}; store class numbers in one band, or colours of 8 bits"
            )
        picture.load()
        return Decoded(_as_stored(picture, header, path), orientation(picture), header)


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation; 1, upright, where there is none or it is no such number."""
    return _known(picture.getexif().get(ORIENTATION, 1))


def _known(turn: Any) -> int:
    return next((known for known in TURNS if known == turn), 1)  # a broken file has texts there, and fractions


def stored_turn(path: str | Path) -> int:
    """The EXIF orientation of a file that has been decoded before.

    Raises:
        InputError: a file that cannot be read.
    """
    with _opened(path, MAX_SAMPLE_PIXELS, None) as (picture, header):
        return _known(header.turn) if picture is None else orientation(picture)


def upright(picture: Image.Image, turn: int) -> Image.Image:
    """`picture` turned as the EXIF orientation says."""
    return picture.transpose(TURNS[turn]) if turn in TURNS else picture


@contextmanager
def _opened(path: str | Path, max_pixels: int, data: bytes | None) -> Iterator[tuple[Image.Image | None, Header]]:
    """Pillow's picture, not decoded, and the header; None where Pillow does not decode such a TIFF.

    What is raised within is told of the file.
    """
    if data is None:
        require_file(path)
    size = ""
    try:
        with _bytes(path, data) as file, WITHOUT_PILLOWS_LIMIT, _identified(file) as picture:
            header = read_header(file, picture)
            size = f"{header.size[0]}×{header.size[1]} "
            check_claim(path, header.format, header.size, max_pixels, length(file))
            if header.format != "TIFF" and not header.by_pillow:
                raise InputError(f"{path}: a {header.format} of two colours and more than 1 bit; store it as PNG")
            yield picture if header.by_pillow else None, header
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"{path}: not an image of a format that is read ({', '.join(formats())}); copy it again, or save it as PNG"
        ) from None
    except MemoryError:
        raise InputError(f"{path}: {size}pixels need more memory than there is; cut it into tiles") from None
    except Exception as error:  # Pillow's decoders raise nearly anything on a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path}: cannot be decoded ({reason}); copy or export the file again") from error


def _bytes(path: str | Path, data: bytes | None) -> BinaryIO:
    return Path(path).open("rb") if data is None else BytesIO(data)


@contextmanager
def _identified(file: BinaryIO) -> Iterator[Image.Image | None]:
    """What Pillow makes of a file; None for a TIFF that it does not know."""
    try:
        picture = Image.open(file, formats=formats())
    except UnidentifiedImageError:
        if not is_tiff(file):
            raise
        yield None
        return
    with picture:
        yield picture


def _reduce(picture: Image.Image, factor: float) -> int:
    """Have the decoder make the picture smaller, but no smaller than twice what `factor` will make of it; by what."""
    for divisor in (8, 4, 2):
        if 2 * factor * divisor <= 1 and min(picture.size) >= divisor:
            picture.draft(None, (picture.width // divisor, picture.height // divisor))
            return divisor
    return 1


def _whole(picture: Image.Image, size: tuple[int, int], divisor: int) -> Image.Image:
    """A reduced picture without what its last blocks hold beyond the stored image.

    A decoder that reduces makes one pixel of every block of `divisor` × `divisor`, of the last one as well, of which a
    part lies outside of the image. Taken for the whole, all would be displaced.
    """
    if all(side % divisor == 0 for side in size):
        return picture
    width, height = ((side + divisor // 2) // divisor for side in size)
    box = (0, 0, size[0] / divisor, size[1] / divisor)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box)


def _plain(picture: Image.Image, header: Header, path: str | Path) -> Image.Image:
    """An image in a mode of 8 bits or fewer."""
    if picture.mode.startswith("I") or picture.mode == "F":
        samples = np.asarray(picture)
        samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        if header.sample == "unsigned" and header.bits == 32:  # which Pillow takes for signed
            samples = samples.view(np.uint32)
        if header.format == "PPM":  # which Pillow stretches to 16 bits
            return _from_bands(to_8_bits(samples[None], Header("PPM", header.size, 16), path))
        return _from_bands(to_8_bits(samples[None], header, path))
    if picture.mode == _TO_GREY_WITH_ALPHA:
        return picture.convert("LA")
    if header.bits > 8 and picture.mode in ("LA", "RGB", "RGBA"):
        shown = np.asarray(picture)[..., : 1 if picture.mode == "LA" else 3]
        refuse_black(shown, header, path, f"the upper 8 bits are at most {shown.max()}", blank=False)
    return picture


def _shown(bands: npt.NDArray[Any], header: Header, path: str | Path) -> npt.NDArray[np.uint8]:
    if header.bits == 8 and header.sample == "unsigned":
        return ~bands if header.white_is_zero else bands
    if header.bits < 8 and header.sample == "unsigned" and header.bits:
        shown: npt.NDArray[np.uint8] = (bands.astype(np.uint16) * 255 // header.white).astype(np.uint8)
        return ~shown if header.white_is_zero else shown
    return to_8_bits(bands, header, path)


def _from_bands(bands: npt.NDArray[Any]) -> Image.Image:
    """A picture of bands (1, H, W) of integers of any depth, or (3, H, W) of uint8."""
    if len(bands) == 3:
        return Image.fromarray(np.ascontiguousarray(bands.transpose(1, 2, 0)))
    if bands.dtype in (np.uint8, np.uint16) or bands.dtype.kind == "f":
        return Image.fromarray(bands[0] if bands.dtype.kind != "f" else bands[0].astype(np.float32))
    low, high = bands.min(), bands.max()
    if low < -(2**31) or high >= 2**31:
        raise ValueError(f"values {low} to {high}, beyond 32 bits with a sign")
    return Image.fromarray(bands[0].astype(np.int32))


def _as_stored(picture: Image.Image, header: Header, path: str | Path) -> Image.Image:
    """A mask with the numbers that are stored in the place of the greys that are shown."""
    if picture.mode == "I" and header.sample == "unsigned" and header.bits == 32 and np.asarray(picture).min() < 0:
        raise InputError(f"{path}: a mask with values of {2**31:,} and more; store class numbers of 8 or 16 bits")
    if header.format == "PPM" and header.white < 65535 and picture.mode.startswith("I"):
        numbers = (np.asarray(picture).astype(np.int64) * header.white + 32767) // 65535
        return Image.fromarray(numbers.astype(np.uint16))
    if header.white == 255 and not header.white_is_zero:
        return picture
    to_stored = [(2 * shown * header.white + 255) // 510 for shown in range(256)]
    if header.format == "PPM" and picture.mode == "RGB":
        return picture.point(3 * to_stored)
    if picture.mode == "L" or (picture.mode == "1" and header.white_is_zero):
        return _with_palette(picture.convert("L"), to_stored, header)
    return picture


def _with_palette(grey: Image.Image, to_stored: list[int], header: Header) -> Image.Image:
    """The stored numbers, shown by a palette in the greys of `grey`."""
    shown = [(510 * number + header.white) // (2 * header.white) for number in range(header.white + 1)]
    if header.white_is_zero:
        to_stored, shown = [header.white - number for number in to_stored], shown[::-1]
    stored = grey.point(to_stored)
    stored.putpalette([level for level in shown for _ in range(3)])
    return stored


class _WithoutLimit:
    """Within, Pillow's own limit on pixels is off: one number for the whole process, put back when the last leaves."""

    def __init__(self) -> None:
        self._lock, self._inside = Lock(), 0
        self._limit: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                Image.MAX_IMAGE_PIXELS = self._limit


WITHOUT_PILLOWS_LIMIT: Final = _WithoutLimit()
