"""Image file headers: what a file says about its samples, read before anything is decoded.

Pillow converts while it decodes: it stretches gray of few bits to 255, inverts white-is-zero files, and may read only
the first of several bands that are stored separately. In an image that changes the brightness; in a mask it changes
the class. Images and masks are therefore both checked here first.

Sources: TIFF 6.0 (Adobe, 1992) with its Technical Notes; PNG, third edition (W3C, 2025), sections 5 and 11; netpbm's
pgm(5) and ppm(5); RFC 9649 (WebP).
"""

from __future__ import annotations

import ctypes
import logging
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import BinaryIO, Final, Literal

from PIL import Image
from PIL import TiffImagePlugin as Tiff

from meanshifter.errors import InputError, counted

Sample = Literal["unsigned", "signed", "float"]
FORMATS: Final = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are read, recognized by content. Pillow knows dozens more; one of them runs Ghostscript on the file."""
MAX_SAMPLE_PIXELS: Final = 250_000_000
"""Limit for images and masks to train or score on, which several processes hold in memory at the same time."""
BLACK_IS_ZERO: Final = 1
RGB: Final = 2
PALETTE: Final = 3
"""Values of TIFF's PhotometricInterpretation."""
_HEAD: Final = 4096  # bytes within which the header of a PNM has to end
_MANY_PAGES: Final = 32  # TIFF pages that are examined
_SUBFILE: Final = 254
_ORIENTATION: Final = 274
_LIMITS: Final = ((340, 341), (280, 281))  # SMinSampleValue and SMaxSampleValue, MinSampleValue and MaxSampleValue
_NO_PAGE: Final = 1 | 4  # NewSubfileType: a reduced version of another page, a transparency mask
_TIFFS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LOSSLESS: Final = (1, 2, 3, 4, 5, 8, 32771, 32773, 32946, 34925, 50000)
"""TIFF compressions: none, CCITT's, LZW, deflate, PackBits, LZMA, Zstandard."""
_WEBP: Final = 50001
_LOSSY: Final = {
    **dict.fromkeys((6, 7, 34892), "JPEG"),
    **dict.fromkeys((33003, 33005, 34712), "JPEG 2000"),
    **dict.fromkeys((50002, 52546), "JPEG XL"),
    34887: "LERC",
    _WEBP: "WebP",
}
_LOSSY_FORMATS: Final = {"JPEG": "JPEG", "MPO": "MPO", "JPEG2000": "JPEG 2000", "AVIF": "AVIF"}
"""Formats that may change values: the header of a JPEG 2000 or an AVIF does not tell whether it is lossless."""
_PNM: Final = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)")
_PNG_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_PNG_CHANGES: Final = (b"tRNS", b"eXIf", b"acTL")  # transparency, a possible turn, animation
_PNG_TEXTS: Final = (b"tEXt", b"zTXt", b"iTXt")
_PNG_PROFILE: Final = b"Raw profile type"  # begins the keyword of texts in which older programs keep EXIF
_DEFLATED: Final = 8256  # pixels per byte of a PNG at most: deflate makes 1032 bytes of 8 pixels of one bit


@dataclass(frozen=True)
class Header:
    """What a file stores, according to its header."""

    format: str
    """Pillow's name for the format."""
    size: tuple[int, int]
    """(W, H) as stored."""
    bits: int = 8
    """Bits per sample; 0 if bands differ."""
    bands: int = 1
    """Number of bands, including alpha and extra bands."""
    sample: Sample = "unsigned"
    white: int = 255
    """The sample value of white or, with `white_is_zero`, of black."""
    white_is_zero: bool = False
    photometric: int = BLACK_IS_ZERO
    """TIFF's PhotometricInterpretation."""
    alpha: bool = False
    """Whether the extra band of a TIFF is alpha."""
    apart: bool = False
    """Whether the bands of a TIFF are stored one after the other."""
    turn: int = 1
    """Orientation of a TIFF."""
    declared: tuple[float, float] | None = None
    """The smallest and the largest sample according to the tags of a TIFF."""
    lossy: str = ""
    """The compression, if it changes values or may change them."""
    frames: bool = False
    """Whether the file holds more than one picture."""
    stack: bool = False
    """Whether these are TIFF pages of the same size, rather than an animation or a preview."""
    whole: bool = True
    """Whether all blocks of a TIFF lie within the file."""
    by_pillow: bool = True
    """Whether Pillow decodes the file to the right values."""

    def described(self) -> str:
        """The samples in words."""
        kind = {"float": "floating-point ", "signed": "signed "}.get(self.sample, "")
        bands = counted(self.bands, "band")
        depth = f"{kind}{self.bits} bits" if self.bits else "different depths"
        return f"{bands} of {depth}{', stored separately' if self.apart and self.bands > 1 else ''}"


def is_tiff(file: BinaryIO) -> bool:
    """Whether the file starts like a TIFF; its position is kept."""
    with _kept_position(file):
        file.seek(0)
        return file.read(4) in _TIFFS


def read_header(file: BinaryIO, picture: Image.Image | None) -> Header:
    """Read the header of a file that Pillow opened as `picture`, or of a TIFF that it cannot open (None).

    A broken file may raise almost any exception.
    """
    with _kept_position(file):
        if picture is None or isinstance(picture, Tiff.TiffImageFile):
            return _tiff(file, picture)
        file.seek(0)
        head = file.read(_HEAD)
        name = picture.format or ""
        frames = name != "MPO" and bool(getattr(picture, "is_animated", False))  # phones append previews and depth
        if name == "PNG":
            return _png(head, picture, frames)
        if name == "PPM":
            return _pnm(head, picture)
        lossy = _LOSSY_FORMATS.get(name, "")
        if name == "WEBP" and not _webp_is_lossless(file):
            lossy = "WebP"
        # with a palette of black and white, Pillow reads samples of any depth as single bits
        odd = name == "BMP" and picture.mode == "1" and head[28:30] != b"\1\0"
        return Header(name, picture.size, lossy=lossy, frames=frames, by_pillow=not odd)


def length(file: BinaryIO) -> int:
    """Size of an open file in bytes; its position is kept."""
    with _kept_position(file):
        return file.seek(0, 2)


@contextmanager
def _kept_position(file: BinaryIO) -> Iterator[None]:
    position = file.tell()
    try:
        yield
    finally:
        file.seek(position)


def _png(head: bytes, picture: Image.Image, frames: bool) -> Header:
    bits, color = head[24], head[25]
    bands = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    white = 2**bits - 1 if color == 0 else 255
    return Header("PNG", picture.size, bits, bands, white=white, frames=frames)


def _pnm(head: bytes, picture: Image.Image) -> Header:
    if picture.mode in ("1", "F"):  # single bits, where 1 is black, and Pf
        return Header("PPM", picture.size, 1 if picture.mode == "1" else 32, white_is_zero=True)
    found = _PNM.match(head)
    if found is None:
        raise ValueError("invalid PNM header")
    kind, _, _, white = map(int, found.groups())
    return Header("PPM", picture.size, 16 if white > 255 else 8, 3 if kind in (3, 6) else 1, white=white)


def _webp_is_lossless(file: BinaryIO) -> bool:
    """Whether the first picture is VP8L, whatever chunks precede it."""
    file.seek(12)
    while len(chunk := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", chunk)
        if name in (b"VP8 ", b"VP8L"):
            return bool(name == b"VP8L")
        # the chunks of an animation frame follow 16 bytes of its own
        file.seek(16 if name == b"ANMF" else length + length % 2, 1)
    return False


def _tiff(file: BinaryIO, picture: Tiff.TiffImageFile | None) -> Header:
    if picture is None:
        tags = Tiff.ImageFileDirectory_v2(_beginning(file))
        file.seek(tags.next)
        tags.load(file)
    else:
        tags = picture.tag_v2
    every = set(_numbers(tags, Tiff.BITSPERSAMPLE, (1,)))
    bits = int(every.pop()) if len(every) == 1 else 0
    bands = int(tags.get(Tiff.SAMPLESPERPIXEL, 1))
    kinds = set(_numbers(tags, Tiff.SAMPLEFORMAT, (1,)))
    sample: Sample = "float" if kinds == {3} else "signed" if kinds == {2} else "unsigned"
    photometric = int(tags.get(Tiff.PHOTOMETRIC_INTERPRETATION, 0))
    compression = int(tags.get(Tiff.COMPRESSION, 1))
    apart = tags.get(Tiff.PLANAR_CONFIGURATION, 1) == 2
    size = (int(tags[Tiff.IMAGEWIDTH]), int(tags[Tiff.IMAGELENGTH]))
    pages = list(_pages(file, tags))
    header = Header(
        "TIFF",
        size,
        bits,
        bands,
        sample,
        white=2**bits - 1,
        white_is_zero=photometric == 0,
        photometric=photometric,
        alpha=bool({1, 2} & set(_numbers(tags, Tiff.EXTRASAMPLES, ()))),
        apart=apart,
        turn=int(_numbers(tags, _ORIENTATION, (1,))[0]),
        declared=_declared(tags),
        lossy=_tiff_lossy(file, tags, compression, photometric),
        frames=bool(pages),
        stack=size in pages,
        whole=_complete(tags, file.seek(0, 2)),
    )
    return replace(header, by_pillow=picture is not None and _pillow_decodes(header, compression, tags.prefix == b"MM"))


def _pillow_decodes(header: Header, compression: int, big_endian: bool) -> bool:
    """Whether Pillow reads the right values; found by trying every combination on files written byte by byte."""
    bits, compressed = header.bits, compression != 1
    if compression == _WEBP:  # most builds of Pillow lack it
        return False
    if header.bands > 1:
        if bits > 8 and header.declared not in (None, (0, header.white)):  # the lower bits would be needed
            return False
        # of other separate bands Pillow returns the first alone, or garbage
        return not header.apart or (header.photometric == RGB and (bits == 8 or (bits == 16 and compressed)))
    if header.apart and not compressed:  # other files are neither inverted nor unpacked
        return bits == 8 and header.photometric == BLACK_IS_ZERO and header.sample == "unsigned"
    if header.sample == "signed" and bits == 8:  # -1 is read as 255
        return False
    # libtiff has swapped the bytes already, and Pillow swaps them again
    return not (big_endian and compressed and bits >= 16 and (header.sample != "unsigned" or bits == 32))


def _beginning(file: BinaryIO) -> bytes:
    """Everything up to the offset of the first page: 8 bytes, or 16 in a BigTIFF."""
    file.seek(0)
    head = file.read(8)
    return head + file.read(8) if 43 in head[2:4] else head


def _pages(file: BinaryIO, tags: Tiff.ImageFileDirectory_v2) -> Iterator[tuple[int, int]]:
    """Sizes of further pages, except reduced versions and transparency masks; stops where the chain is broken."""
    head, place, seen = _beginning(file), tags.next, {0}
    while place not in seen and len(seen) < _MANY_PAGES:
        seen.add(place)
        page = Tiff.ImageFileDirectory_v2(head)
        try:
            file.seek(place)
            page.load(file)
            flags, width, height = (int(page.get(tag, 0)) for tag in (_SUBFILE, Tiff.IMAGEWIDTH, Tiff.IMAGELENGTH))
        except Exception:  # Pillow raises almost anything on broken files
            return
        if width and height and not flags & _NO_PAGE:
            yield width, height
        place = page.next


def _numbers(tags: Tiff.ImageFileDirectory_v2, tag: int, default: tuple[float, ...]) -> tuple[float, ...]:
    found = tags.get(tag, default)
    return tuple(found) if isinstance(found, tuple) else (found,)


def _declared(tags: Tiff.ImageFileDirectory_v2) -> tuple[float, float] | None:
    for least, greatest in _LIMITS:
        if greatest in tags:
            low, high = float(min(_numbers(tags, least, (0,)))), float(max(_numbers(tags, greatest, ())))
            return (low, high) if low < high else None
    return None


def _tiff_lossy(file: BinaryIO, tags: Tiff.ImageFileDirectory_v2, compression: int, photometric: int) -> str:
    if compression == _WEBP and _blocks(tags)[0]:
        file.seek(int(_blocks(tags)[0][0]))
        if file.read(16)[8:] == b"WEBPVP8L":
            return ""
    if compression not in _LOSSLESS:
        return f"TIFF with {_LOSSY.get(compression, f'compression {compression}')}"
    return "TIFF with YCbCr colors" if photometric == 6 else ""


def _blocks(tags: Tiff.ImageFileDirectory_v2) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Offsets and lengths of the strips or tiles."""
    if Tiff.TILEOFFSETS in tags:
        return _numbers(tags, Tiff.TILEOFFSETS, ()), _numbers(tags, Tiff.TILEBYTECOUNTS, ())
    return _numbers(tags, Tiff.STRIPOFFSETS, ()), _numbers(tags, Tiff.STRIPBYTECOUNTS, ())


def _complete(tags: Tiff.ImageFileDirectory_v2, size: int) -> bool:
    """Whether every block lies within the file; GDAL reads missing blocks as black."""
    offsets, lengths = _blocks(tags)
    return len(offsets) == len(lengths) > 0 and all(
        start and length and start + length <= size for start, length in zip(offsets, lengths, strict=True)
    )


def plain_png_shape(path: Path) -> tuple[int, int, int] | None:
    """(H, W, 3) of a complete, upright, non-interlaced 8-bit RGB PNG; None for any other file."""
    with path.open("rb") as file:
        if file.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
            return None
        shape = last = None
        for name, start in _chunks(file):
            if name == b"IHDR":
                width, height, *kind = struct.unpack(">IIBBBBB", start[:13])
                if kind != [8, 2, 0, 0, 0]:  # 8 bits, RGB, the known methods, no interlacing
                    return None
                shape = (height, width, 3)
            elif name in _PNG_CHANGES or (name in _PNG_TEXTS and start.startswith(_PNG_PROFILE)):
                return None
            last = name
        return shape if last == b"IEND" else None


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Name and first bytes of each complete chunk, up to IEND."""
    end, place = file.seek(0, 2), len(_PNG_SIGNATURE)
    while place + 12 <= end:
        file.seek(place)
        length, name = struct.unpack(">I4s", file.read(8))
        if place + 12 + length > end:
            return
        yield name, file.read(min(length, 32))
        if name == b"IEND":
            return
        place += 12 + length


@cache
def formats() -> tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow can read; also silences Pillow and its libtiff.

    They print a lot about a broken file, but not its name.
    """
    Image.init()
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # without a handler, errors go to stderr
    with suppress(ImportError, OSError, AttributeError):  # AttributeError: linked without symbols
        from PIL import _imaging

        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler(None)
        library.TIFFSetWarningHandler(None)
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def image_suffixes() -> tuple[str, ...]:
    """Lower-case extensions of image files: those that Pillow registers for `formats()`, the usual ones first."""
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in formats()}
    usual = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
    return *usual, *sorted(known.difference(usual))


def check_claim(path: str | Path, kind: str, sides: tuple[int, int], max_pixels: int, stored: int) -> None:
    """Raise an InputError if a header claims a size (W, H) of no pixels, of more than `max_pixels`, or of more than the
    `stored` bytes of a file of this `kind`, Pillow's name for the format, can hold."""
    size, pixels = f"{sides[0]}×{sides[1]}", sides[0] * sides[1]
    if pixels == 0:
        raise InputError(f"{path}: the image size is {size}, which has no pixels; export the file again")
    if pixels > max_pixels:
        tile = max_pixels == MAX_SAMPLE_PIXELS
        remedy = "cut the image and its mask into tiles" if tile else "raise max_pixels if you trust the file"
        raise InputError(f"{path}: {size} is {pixels:,} pixels, above max_pixels {max_pixels:,}; {remedy}")
    if kind == "PNG" and pixels > _DEFLATED * stored:
        raise InputError(f"{path}: claims {size} pixels, more than {stored:,} bytes can hold; copy the file again")
