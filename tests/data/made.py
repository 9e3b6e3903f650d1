"""Image files made byte by byte, by no library that the package reads them with."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Order = Literal["<", ">"]
FORMATS: Final = {"u": 1, "i": 2, "f": 3}
"""numpy's kind → SampleFormat of TIFF 6.0."""


def packed(rows: Array, bits: int, *, order: Order = "<", lowest_first: bool = False) -> bytes:
    """Rows of samples (n, samples), each row begun at a whole byte, the first sample in the highest bits."""
    if bits in (8, 16, 32, 64):
        return rows.astype(f"{order}{rows.dtype.kind}{bits // 8}").tobytes()
    digits = (rows.astype(np.int64)[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    flat = digits.reshape(len(rows), -1).astype(np.uint8)
    return np.packbits(flat, axis=1, bitorder="little" if lowest_first else "big").tobytes()


def tiff(
    values: Array,
    bits: int,
    *,
    photometric: int = 1,
    planes: bool = False,
    deflate: bool = False,
    order: Order = "<",
    lowest_first: bool = False,
    tags: Iterable[tuple[int, int, int, bytes]] = (),
    rows_per_strip: int = 5,
) -> bytes:
    """A TIFF of the samples (H, W) or (H, W, n), by TIFF 6.0.

    Args:
        values: unsigned, signed or floating-point samples.
        bits: of each sample.
        photometric: 0: white is zero, 1: black is zero, 2: RGB.
        planes: store the bands apart (PlanarConfiguration 2).
        deflate: compress with zlib.
        order: "<" or ">".
        lowest_first: FillOrder 2.
        tags: (tag, type, count, value as bytes) besides, or instead.
        rows_per_strip: rows of a strip.
    """
    samples = values if values.ndim == 3 else values[..., None]
    H, W, n = samples.shape
    layers = [samples[..., k] for k in range(n)] if planes else [samples.reshape(H, W * n)]
    strips = [
        packed(layer[top : top + rows_per_strip], bits, order=order, lowest_first=lowest_first)
        for layer in layers
        for top in range(0, H, rows_per_strip)
    ]
    strips = [zlib.compress(strip) for strip in strips] if deflate else strips
    starts = np.cumsum([8, *(len(strip) for strip in strips)]).tolist()
    entries: dict[int, tuple[int, int, bytes]] = {}

    def add(tag: int, kind: int, *numbers: int) -> None:
        code = {3: "H", 4: "I"}[kind]
        entries[tag] = kind, len(numbers), struct.pack(f"{order}{len(numbers)}{code}", *numbers)

    add(256, 4, W)
    add(257, 4, H)
    add(258, 3, *[bits] * n)
    add(259, 3, 8 if deflate else 1)
    add(262, 3, photometric)
    add(266, 3, 2 if lowest_first else 1)
    add(273, 4, *starts[:-1])
    add(277, 3, n)
    add(278, 4, rows_per_strip)
    add(279, 4, *(len(strip) for strip in strips))
    add(284, 3, 2 if planes else 1)
    if n > (3 if photometric == 2 else 1):
        add(338, 3, *[0] * (n - (3 if photometric == 2 else 1)))
    add(339, 3, *[FORMATS[samples.dtype.kind]] * n)
    for tag, kind, count, value in tags:
        entries[tag] = kind, count, value
    return _with_directory(b"".join(strips), entries, order)


def _with_directory(data: bytes, entries: dict[int, tuple[int, int, bytes]], order: Order) -> bytes:
    place = 8 + len(data)
    after = place + 2 + 12 * len(entries) + 4
    directory, more = struct.pack(f"{order}H", len(entries)), b""
    for tag, (kind, count, value) in sorted(entries.items()):
        if len(value) <= 4:
            field = value.ljust(4, b"\0")
        else:
            field = struct.pack(f"{order}I", after + len(more))
            more += value
        directory += struct.pack(f"{order}HHI", tag, kind, count) + field
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, place)
    return head + data + directory + struct.pack(f"{order}I", 0) + more


def png(values: Array, bits: int, color: int = 0, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of the samples (H, W) or (H, W, n), none filtered; `color` is its color type, `chunks` go before it."""
    samples = values if values.ndim == 3 else values[..., None]
    H, W, n = samples.shape
    rows = [b"\0" + packed(row.reshape(1, W * n), bits, order=">") for row in samples]
    header = struct.pack(">IIBBBBB", W, H, bits, color, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"".join(rows))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in parts
    )


def pnm(values: Array, maxval: int, *, text: bool = False) -> bytes:
    """A PGM of (H, W), or a PPM of (H, W, 3), binary or as text."""
    colored = values.ndim == 3
    head = f"P{2 + colored + (0 if text else 3)}\n{values.shape[1]} {values.shape[0]}\n{maxval}\n".encode()
    if text:
        return head + b"\n".join(b" ".join(b"%d" % value for value in row.ravel()) for row in values) + b"\n"
    return head + values.astype(">u2" if maxval > 255 else np.uint8).tobytes()


def bmp(values: Array, bits: int, palette: Iterable[int]) -> bytes:
    """A BMP of indices (H, W) into a palette of grays."""
    rows = [packed(row[None], bits) for row in values[::-1]]
    data = b"".join(row + b"\0" * (-len(row) % 4) for row in rows)
    colors = b"".join(bytes([level, level, level, 0]) for level in palette)
    start, (H, W) = 54 + len(colors), values.shape
    head = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    return (
        head + struct.pack("<IiiHHIIiiII", 40, W, H, 1, bits, 0, len(data), 0, 0, len(colors) // 4, 0) + colors + data
    )
