"""What the header of an image file says of its samples, before anything is decoded.

Pillow converts while it decodes: grey of few bits is stretched to 255, white-is-zero is inverted, of bands stored apart
it may take the first. What is a matter of brightness in an image is another class in a mask, so that both look here.

Sources: TIFF 6.0 (Adobe, 1992) with its Technical Notes; PNG, third edition (W3C, 2025), section 11; netpbm's pgm(5)
and ppm(5); RFC 9649 (WebP).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO, Final, Literal

from PIL import Image
from PIL import TiffImagePlugin as Tiff

Sample = Literal["unsigned", "signed", "float"]
HEAD: Final = 4096
"""Bytes from the beginning of a file in which a PNM's header has to end."""
BLACK_IS_ZERO: Final = 1
RGB: Final = 2
PALETTE: Final = 3
"""Values of TIFF's PhotometricInterpretation."""
MANY_PAGES: Final = 32
"""Pages of a TIFF that are looked at."""
_SUBFILE: Final = 254
_ORIENTATION: Final = 274
_LIMITS: Final = ((340, 341), (280, 281))
"""Tags SMinSampleValue and SMaxSampleValue, MinSampleValue and MaxSampleValue."""
_NO_PAGE: Final = 1 | 4
"""Bits of NewSubfileType: a reduced version of another page, a transparency mask."""
_TIFFS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_LOSSLESS: Final = (1, 2, 3, 4, 5, 8, 32771, 32773, 32946, 34925, 50000)
"""TIFF's Compression: none, CCITT's, LZW, deflate, PackBits, LZMA, Zstandard."""
_LOSSY: Final = {
    6: "JPEG",
    7: "JPEG",
    33003: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    34887: "LERC",
    34892: "JPEG",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
_WEBP: Final = 50001
_JPEG_2000: Final = "JPEG 2000"
_FORMATS: Final = {"JPEG": "JPEG", "MPO": "MPO", "JPEG2000": _JPEG_2000, "AVIF": "AVIF"}
"""Formats that change values, or may: whether a JPEG 2000 or an AVIF is exact cannot be told from its header."""
_PNM: Final = re.compile(rb"P([2356])" + 3 * rb"(?:\s|#[^\r\n]*[\r\n])+(\d+)")


@dataclass(frozen=True)
class Header:
    """What a file stores."""

    format: str
    """Pillow's name of the format."""
    size: tuple[int, int]
    """(W, H) as stored."""
    bits: int = 8
    """Of one sample; 0 where bands differ."""
    bands: int = 1
    """Alpha and extra bands included."""
    sample: Sample = "unsigned"
    white: int = 255
    """The sample that stands for white; with `white_is_zero`, for black."""
    white_is_zero: bool = False
    photometric: int = BLACK_IS_ZERO
    """TIFF's number."""
    alpha: bool = False
    """Whether a TIFF's extra band is one."""
    apart: bool = False
    """Whether a TIFF's bands are stored one after the other."""
    turn: int = 1
    """A TIFF's orientation."""
    declared: tuple[float, float] | None = None
    """The samples that a TIFF's tags name as the least and the greatest."""
    lossy: str = ""
    """The compression that changes values, or may."""
    frames: bool = False
    """Whether there are more pictures than the first."""
    stack: bool = False
    """Whether those are further pages of a TIFF of the same size, rather than an animation or a preview."""
    whole: bool = True
    """Whether all blocks of a TIFF lie within the file."""
    by_pillow: bool = True
    """Whether Pillow decodes such a file to the right values."""

    def described(self) -> str:
        """The samples in words."""
        kind = "floating-point " if self.sample == "float" else "signed " if self.sample == "signed" else ""
        bands = f"{self.bands} band{'s'[: self.bands != 1]}"
        depth = f"{kind}{self.bits} bits" if self.bits else "different depths"
        return f"{bands} of {depth}{', stored apart' if self.apart and self.bands > 1 else ''}"


def is_tiff(file: BinaryIO) -> bool:
    """Whether the file begins like a TIFF; it is left at its beginning."""
    with _kept_place(file):
        file.seek(0)
        return file.read(4) in _TIFFS


def read_header(file: BinaryIO, picture: Image.Image | None) -> Header:
    """The header of a file that Pillow has opened as `picture`, or of a TIFF that it cannot; nothing is decoded.

    Raises:
        Exception: nearly any, on a broken file.
    """
    with _kept_place(file):
        if picture is None or isinstance(picture, Tiff.TiffImageFile):
            return _tiff(file, picture)
        file.seek(0)
        head = file.read(HEAD)
        name = picture.format or ""
        frames = name != "MPO" and bool(getattr(picture, "is_animated", False))  # phones append previews and depth
        if name == "PNG":
            return _png(head, picture, frames)
        if name == "PPM":
            return _pnm(head, picture)
        lossy = _FORMATS.get(name, "")
        if name == "WEBP" and not _webp_is_lossless(file):
            lossy = "WebP"
        # of a palette of black and white Pillow takes the samples for single bits, however many they have
        odd = name == "BMP" and picture.mode == "1" and head[28:30] != b"\1\0"
        return Header(name, picture.size, lossy=lossy, frames=frames, by_pillow=not odd)


def length(file: BinaryIO) -> int:
    """Bytes of a file, which is left at its place."""
    with _kept_place(file):
        return file.seek(0, 2)


@contextmanager
def _kept_place(file: BinaryIO) -> Iterator[None]:
    place = file.tell()
    try:
        yield
    finally:
        file.seek(place)


def _png(head: bytes, picture: Image.Image, frames: bool) -> Header:
    bits, color = head[24], head[25]
    bands = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    white = 2**bits - 1 if color == 0 else 255
    return Header("PNG", picture.size, bits, bands, white=white, frames=frames)


def _pnm(head: bytes, picture: Image.Image) -> Header:
    if picture.mode in ("1", "F"):  # bits of which 1 is black, and Pf
        return Header("PPM", picture.size, 1 if picture.mode == "1" else 32, white_is_zero=True)
    found = _PNM.match(head)
    if found is None:
        raise ValueError("a PNM whose header is not understood")
    kind, _, _, white = map(int, found.groups())
    return Header("PPM", picture.size, 16 if white > 255 else 8, 3 if kind in (3, 6) else 1, white=white)


def _webp_is_lossless(file: BinaryIO) -> bool:
    """Whether the first picture is of VP8L, on whatever chunks come before it."""
    file.seek(12)
    while len(chunk := file.read(8)) == 8:
        name, length = struct.unpack("<4sI", chunk)
        if name in (b"VP8 ", b"VP8L"):
            return bool(name == b"VP8L")
        # a frame of an animation holds chunks after 16 bytes of its own
        file.seek(16 if name == b"ANMF" else length + length % 2, 1)
    return False


def _tiff(file: BinaryIO, picture: Tiff.TiffImageFile | None) -> Header:
    tags = _directory(file) if picture is None else picture.tag_v2
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
    """Of what it opens; found by trying every combination on files that were written byte by byte."""
    bits, compressed = header.bits, compression != 1
    if compression == _WEBP:  # which most builds of it lack
        return False
    if header.bands > 1:
        if bits > 8 and header.declared not in (None, (0, header.white)):  # of which the lower bits would be needed
            return False
        # apart: else the first band alone, or garbage
        return not header.apart or (header.photometric == RGB and (bits == 8 or (bits == 16 and compressed)))
    if header.apart and not compressed:  # else neither inverted nor unpacked
        return bits == 8 and header.photometric == BLACK_IS_ZERO and header.sample == "unsigned"
    if header.sample == "signed" and bits == 8:  # -1 comes as 255
        return False
    # libtiff has turned the bytes already, and Pillow turns them once more
    return not (big_endian and compressed and bits >= 16 and (header.sample != "unsigned" or bits == 32))


def _directory(file: BinaryIO) -> Tiff.ImageFileDirectory_v2:
    """The tags of the first page."""
    tags = Tiff.ImageFileDirectory_v2(_beginning(file))
    file.seek(tags.next)
    tags.load(file)
    return tags


def _beginning(file: BinaryIO) -> bytes:
    """All up to the place of the first page: 8 bytes, in a BigTIFF 16."""
    file.seek(0)
    head = file.read(8)
    return head + file.read(8) if 43 in head[2:4] else head


def _pages(file: BinaryIO, tags: Tiff.ImageFileDirectory_v2) -> Iterator[tuple[int, int]]:
    """Sizes of further pages, without reduced versions and transparency masks; a broken chain ends."""
    head, place, seen = _beginning(file), tags.next, {0}
    while place not in seen and len(seen) < MANY_PAGES:
        seen.add(place)
        page = Tiff.ImageFileDirectory_v2(head)
        try:
            file.seek(place)
            page.load(file)
            flags, width, height = (int(page.get(tag, 0)) for tag in (_SUBFILE, Tiff.IMAGEWIDTH, Tiff.IMAGELENGTH))
        except Exception:  # as broken files have Pillow raise
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
            low, high = (
                float(min(_numbers(tags, least, (0,)))),
                float(max(_numbers(tags, greatest, ()))),
            )
            return (low, high) if low < high else None
    return None


def _tiff_lossy(file: BinaryIO, tags: Tiff.ImageFileDirectory_v2, compression: int, photometric: int) -> str:
    if compression == _WEBP and _blocks(tags)[0]:
        file.seek(int(_blocks(tags)[0][0]))
        if file.read(16)[8:] == b"WEBPVP8L":
            return ""
    if compression not in _LOSSLESS:
        return f"TIFF with {_LOSSY.get(compression, f'compression {compression}')}"
    return "TIFF with YCbCr colours" if photometric == 6 else ""


def _blocks(tags: Tiff.ImageFileDirectory_v2) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Offsets and lengths of strips or tiles."""
    tiled = Tiff.TILEOFFSETS in tags
    return (
        _numbers(tags, Tiff.TILEOFFSETS if tiled else Tiff.STRIPOFFSETS, ()),
        _numbers(tags, Tiff.TILEBYTECOUNTS if tiled else Tiff.STRIPBYTECOUNTS, ()),
    )


def _complete(tags: Tiff.ImageFileDirectory_v2, size: int) -> bool:
    """Whether every block lies in the file; GDAL takes absent ones for black."""
    offsets, lengths = _blocks(tags)
    return len(offsets) == len(lengths) > 0 and all(
        start and length and start + length <= size for start, length in zip(offsets, lengths, strict=True)
    )
