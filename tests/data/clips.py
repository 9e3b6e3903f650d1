"""Small videos, written with PyAV alone."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

RATE = 10


def picture(number: int, size: tuple[int, int] = (48, 64)) -> npt.NDArray[np.uint8]:
    """A red frame with a green corner at the top left and a bar whose gray is the frame's number."""
    pixels = np.zeros((*size, 3), np.uint8)
    pixels[..., 0] = 255
    pixels[: size[0] // 4, : size[1] // 4] = (0, 255, 0)
    pixels[-size[0] // 4 :] = number * 20 % 256
    return pixels


def write_clip(
    path: Path,
    count: int = 6,
    *,
    times: Sequence[int] | None = None,
    size: tuple[int, int] = (48, 64),
    codec: str = "libx264",
    last: int = 100,
    aspect: Fraction | None = None,
) -> Path:
    """Frames of `picture` at `times` in milliseconds; the last one is shown for `last`."""
    import av

    times = [1000 // RATE * number for number in range(count)] if times is None else times
    base = Fraction(1, 1000)
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream: Any = container.add_stream(codec, rate=Fraction(RATE), options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = size[1], size[0], "yuv420p"
        stream.codec_context.time_base = stream.time_base = base
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        for number, time in enumerate(times):
            frame: Any = av.VideoFrame.from_ndarray(picture(number, size), format="rgb24")
            frame.pts, frame.time_base = time, base
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            if packet.pts == times[-1]:
                packet.duration = last
            container.mux(packet)
    return path


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Set the display matrix in an MP4 file: a stored (x, y) is shown at (a·x + c·y, b·x + d·y)."""
    content = bytearray(path.read_bytes())
    place = content.index(b"tkhd") + 44
    content[place : place + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def read_frames(path: Path) -> tuple[list[float], list[npt.NDArray[np.uint8]]]:
    """Times in seconds and pixels of all frames, by PyAV alone."""
    import av

    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        return [float(frame.time) for frame in frames], [
            np.asarray(frame.to_ndarray(format="rgb24")) for frame in frames
        ]
