"""Decode image files to 8 bits per sample and mask files to the numbers that they store.

Glossary: H W pixels, n bands.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from meanshifter.data.headers import MAX_SAMPLE_PIXELS, Header, check_claim, formats, is_tiff, length, read_header
from meanshifter.data.rasters import image_bands, mask_bands
from meanshifter.errors import InputError, summarize_error
from meanshifter.utils.files import require_file

DARK: Final = 16
"""Of 256 levels, those below this one count as black, as 12-bit data in 16-bit files would be. Signed samples, whose
range is half as large, have twice as many."""
BRIGHT: Final = 0.01
"""Minimum share of samples that reach `DARK`, unless all samples are at the lower end of the range."""
_ROWS: Final = 256
Factor = Callable[[int, int], float]
"""(height, width) of an image → the factor by which it will be resized."""
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


def _to_8_bits(samples: npt.NDArray[Any], header: Header, path: str | Path) -> npt.NDArray[np.uint8]:
    """Scale samples (n, H, W) of more than 8 bits to uint8: the ends of the range become 0 and 255.

    The range is the one that a TIFF's tags declare, if it contains all samples; otherwise that of the bit depth (16
    bits for 32-bit integers). Samples of 16 bits keep their upper 8.
    """
    found = samples.min().item(), samples.max().item()
    low, high = _range(found, header, path)
    out = np.empty(samples.shape, np.uint8)
    for top in range(0, samples.shape[1], _ROWS):  # all samples in 64 bits would take eight times the memory
        band = samples[:, top : top + _ROWS]
        if header.sample == "float":
            scaled = np.minimum((band.astype(np.float64) - low) / (high - low) * 256, 255)
        else:
            scaled = (band.astype(np.int64) - int(low)) * 256 // (int(high) - int(low) + 1)
        out[:, top : top + _ROWS] = scaled
    if header.declared is None or not _within(found, header.declared):
        _check_not_black(out, header, path, f"values {_text(found[0])} to {_text(found[1])}", blank=found[1] == low)
    return ~out if header.white_is_zero else out


def _check_not_black(
    shown: npt.NDArray[np.uint8], header: Header, path: str | Path, values: str, *, blank: bool
) -> None:
    """Raise an InputError if almost no sample, read over the range of its bit depth, is brighter than black."""
    dark = DARK * (2 if header.sample == "signed" else 1)
    if blank or np.count_nonzero(shown >= dark) >= BRIGHT * shown.size:
        return
    raise InputError(
        f"{path}: the image would be almost black ({values} in samples of {header.bits} bits); scale it to 8 bits, or "
        "declare its range in the TIFF tags SMinSampleValue and SMaxSampleValue"
    )


def _range(found: tuple[float, float], header: Header, path: str | Path) -> tuple[float, float]:
    if header.declared is not None and _within(found, header.declared):
        return header.declared
    if header.sample == "float":
        raise InputError(
            f"{path}: floating-point values {_text(found[0])} to {_text(found[1])}; export the image with 8 or 16 bits "
            "per channel, or declare its range in the TIFF tags SMinSampleValue and SMaxSampleValue"
        )
    bits = 16 if header.bits > 16 else header.bits
    limits = 0, 2 ** (bits - (header.sample == "signed" and header.bits <= 16)) - 1
    if not _within(found, limits):
        raise InputError(
            f"{path}: {header.bits}-bit values {_text(found[0])} to {_text(found[1])}, outside {limits[0]} to "
            f"{limits[1]}; export the image with 8 or 16 bits per channel"
        )
    return limits


def _within(found: tuple[float, float], limits: tuple[float, float]) -> bool:
    return limits[0] <= found[0] and found[1] <= limits[1]


def _text(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded file."""

    picture: Image.Image
    """As stored, before the EXIF turn; a JPEG may be reduced."""
    turn: int
    """EXIF orientation; 1 is upright."""
    header: Header

    @property
    def size(self) -> tuple[int, int]:
        """(W, H) as stored, before any reduction."""
        return self.header.size

    @property
    def upright(self) -> Image.Image:
        """The picture with its EXIF orientation applied."""
        return upright(self.picture, self.turn)


def decode_image(
    path: str | Path, max_pixels: int = MAX_SAMPLE_PIXELS, factor: Factor | None = None, data: bytes | None = None
) -> Decoded:
    """Decode the first picture of a file, in a mode of at most 8 bits per sample.

    With `factor`, a JPEG may be decoded at a half, a quarter or an eighth of its size, but at least at twice the size
    that it will be resized to.

    Raises:
        InputError: the file is missing, truncated, not an image, or larger than `max_pixels`; a TIFF of several pages
            of one size; floating-point samples without a declared range, samples outside the range of their bit
            depth, or an image that would be almost black.
    """
    with _opened(path, max_pixels, data) as (picture, header):
        if header.stack:
            raise InputError(f"{path}: a TIFF of several pages of one size; export the page or the bands as one image")
        if picture is None:
            bands, note = image_bands(path, header, data)
            decoded = Decoded(_from_bands(_shown(bands, header, path)), _valid_turn(header.turn), header)
        else:
            divisor = 1
            if factor is not None and picture.format == "JPEG":
                divisor = _reduce(picture, factor(picture.height, picture.width))
            picture.load()
            turn, note = orientation(picture), ""
            decoded = Decoded(_whole(_plain(picture, header, path), header.size, divisor), turn, header)
    if header.frames:
        note = "holds several pictures; only the first is read"
    if note:
        warnings.warn(f"{path}: {note}", stacklevel=3)
    return decoded


def decode_mask(path: str | Path, *, lossy: bool = False) -> Decoded:
    """Decode a mask file to the numbers that it stores: gray values are neither stretched nor inverted.

    If Pillow displays other grays than the file stores, the picture gets a palette of the displayed grays.

    Args:
        path: the file.
        lossy: accept lossy compression.

    Raises:
        InputError: the file is missing, truncated or not an image; lossy compression; several pictures; or samples
            that cannot be read as numbers.
    """
    with _opened(path, MAX_SAMPLE_PIXELS, None) as (picture, header):
        if header.lossy and not lossy:
            raise InputError(
                f"{path}: a {header.lossy} mask; lossy compression changes class indices along every edge; "
                "store masks as PNG"
            )
        if header.frames:
            raise InputError(f"{path}: holds several pictures; a mask is a single picture, store it as PNG")
        if picture is None:
            return Decoded(_from_bands(mask_bands(path, header, None)), _valid_turn(header.turn), header)
        if header.format == "PPM" and header.bits == 1:
            raise InputError(f"{path}: a PBM mask; tools disagree on whether its black is 0 or 1; store it as PNG")
        if header.bits > 8 and header.bands > 1:
            raise InputError(
                f"{path}: a mask of {header.described()}; store class numbers in one band, or 8-bit colors"
            )
        picture.load()
        return Decoded(_as_stored(picture, header, path), orientation(picture), header)


def orientation(picture: Image.Image) -> int:
    """EXIF orientation of a picture; 1 (upright) if it has none or an invalid one."""
    return _valid_turn(picture.getexif().get(ORIENTATION, 1))


def _valid_turn(turn: Any) -> int:
    return next((known for known in TURNS if known == turn), 1)  # broken files hold strings and fractions here


def stored_turn(path: str | Path) -> int:
    """EXIF orientation of an image file; raises as `decode_image`."""
    with _opened(path, MAX_SAMPLE_PIXELS, None) as (picture, header):
        return _valid_turn(header.turn) if picture is None else orientation(picture)


def upright(picture: Image.Image, turn: int) -> Image.Image:
    """Apply an EXIF orientation to `picture`."""
    return picture.transpose(TURNS[turn]) if turn in TURNS else picture


@contextmanager
def _opened(path: str | Path, max_pixels: int, data: bytes | None) -> Iterator[tuple[Image.Image | None, Header]]:
    """The undecoded picture, or None for a TIFF that Pillow does not decode, and the header.

    Whatever is raised within becomes an InputError about the file.
    """
    if data is None:
        require_file(path)
    size = ""
    try:
        with _bytes(path, data) as file, WITHOUT_PILLOWS_LIMIT, ExitStack() as stack:
            picture: Image.Image | None = None
            try:
                picture = stack.enter_context(Image.open(file, formats=formats()))
            except UnidentifiedImageError:
                if not is_tiff(file):
                    raise
            header = read_header(file, picture)
            size = f"{header.size[0]}×{header.size[1]} "
            check_claim(path, header.format, header.size, max_pixels, length(file))
            if header.format != "TIFF" and not header.by_pillow:
                raise InputError(f"{path}: a two-color {header.format} of more than 1 bit per pixel; store it as PNG")
            yield picture if header.by_pillow else None, header
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(
            f"{path}: not an image of a supported format ({', '.join(formats())}); copy it again, or save it as PNG"
        ) from None
    except MemoryError:
        raise InputError(f"{path}: {size}pixels need more memory than is available; cut it into tiles") from None
    except Exception as error:  # Pillow's decoders raise almost anything on broken files
        reason = summarize_error(error)
        raise InputError(f"{path}: cannot be decoded ({reason}); copy or export the file again") from error


def _bytes(path: str | Path, data: bytes | None) -> BinaryIO:
    return Path(path).open("rb") if data is None else BytesIO(data)


def _reduce(picture: Image.Image, factor: float) -> int:
    """Have the decoder reduce the picture, but to no less than twice its final size; returns the divisor."""
    for divisor in (8, 4, 2):
        if 2 * factor * divisor <= 1 and min(picture.size) >= divisor:
            picture.draft(None, (picture.width // divisor, picture.height // divisor))
            return divisor
    return 1


def _whole(picture: Image.Image, size: tuple[int, int], divisor: int) -> Image.Image:
    """Cut what the last blocks of a reduced picture hold beyond the stored image.

    The decoder makes one pixel of every `divisor` × `divisor` block, including the last ones, which reach beyond the
    image. If they were kept, the picture would be displaced.
    """
    if all(side % divisor == 0 for side in size):
        return picture
    width, height = ((side + divisor // 2) // divisor for side in size)
    box = (0, 0, size[0] / divisor, size[1] / divisor)
    return picture.resize((width, height), Image.Resampling.BICUBIC, box)


def _plain(picture: Image.Image, header: Header, path: str | Path) -> Image.Image:
    """Convert an image to a mode of at most 8 bits."""
    if picture.mode.startswith("I") or picture.mode == "F":
        samples = np.asarray(picture)
        samples = samples.astype(samples.dtype.newbyteorder("="), copy=False)
        if header.sample == "unsigned" and header.bits == 32:  # Pillow reads them as signed
            samples = samples.view(np.uint32)
        if header.format == "PPM":  # Pillow stretches it to 16 bits
            header = Header("PPM", header.size, 16)
        return _from_bands(_to_8_bits(samples[None], header, path))
    if picture.mode == "La":  # premultiplied alpha, which Pillow converts to LA only
        return picture.convert("LA")
    if header.bits > 8 and picture.mode in ("LA", "RGB", "RGBA"):
        shown = np.asarray(picture)[..., : 1 if picture.mode == "LA" else 3]
        _check_not_black(shown, header, path, f"upper 8 bits of at most {shown.max()}", blank=False)
    return picture


def _shown(bands: npt.NDArray[Any], header: Header, path: str | Path) -> npt.NDArray[np.uint8]:
    if header.bits == 8 and header.sample == "unsigned":
        return ~bands if header.white_is_zero else bands
    if header.bits < 8 and header.sample == "unsigned" and header.bits:
        shown: npt.NDArray[np.uint8] = (bands.astype(np.uint16) * 255 // header.white).astype(np.uint8)
        return ~shown if header.white_is_zero else shown
    return _to_8_bits(bands, header, path)


def _from_bands(bands: npt.NDArray[Any]) -> Image.Image:
    """A picture from bands: (1, H, W) integers of any depth, or (3, H, W) uint8."""
    if len(bands) == 3:
        return Image.fromarray(np.ascontiguousarray(bands.transpose(1, 2, 0)))
    if bands.dtype in (np.uint8, np.uint16) or bands.dtype.kind == "f":
        return Image.fromarray(bands[0] if bands.dtype.kind != "f" else bands[0].astype(np.float32))
    low, high = bands.min(), bands.max()
    if low < -(2**31) or high >= 2**31:
        raise ValueError(f"values {low} to {high} do not fit signed 32-bit integers")
    return Image.fromarray(bands[0].astype(np.int32))


def _as_stored(picture: Image.Image, header: Header, path: str | Path) -> Image.Image:
    """Replace the grays that Pillow displays by the numbers that the mask stores."""
    if picture.mode == "I" and header.sample == "unsigned" and header.bits == 32 and np.asarray(picture).min() < 0:
        raise InputError(f"{path}: a mask with values of {2**31:,} or more; store class numbers of 8 or 16 bits")
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


def _with_palette(gray: Image.Image, to_stored: list[int], header: Header) -> Image.Image:
    """The stored numbers, with a palette that displays them in the grays of `gray`."""
    shown = [(510 * number + header.white) // (2 * header.white) for number in range(header.white + 1)]
    if header.white_is_zero:
        to_stored, shown = [header.white - number for number in to_stored], shown[::-1]
    stored = gray.point(to_stored)
    stored.putpalette([level for level in shown for _ in range(3)])
    return stored


class _WithoutLimit:
    """Turn off Pillow's own pixel limit, which is global to the process; the last thread to exit restores it."""

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
