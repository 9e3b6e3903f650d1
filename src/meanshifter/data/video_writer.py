"""Write videos that all players can show: H.264 in MP4, with the times of the frames kept."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from meanshifter.errors import InputError, summarize_error

if TYPE_CHECKING:
    from av.video.stream import VideoStream

ENCODERS: Final[tuple[tuple[str, dict[str, str]], ...]] = (
    ("libx264", {"preset": "veryfast", "crf": "18", "bf": "0"}),
    ("libopenh264", {}),
    ("mpeg4", {"q": "3"}),
)
"""Encoders by preference: builds of FFmpeg differ in what they include. Without B-frames, MP4 stores the duration of
each frame, and thus of the last one."""
_BT709: Final = 1
_LIMITED: Final = 1


class VideoWriter:
    """Write frames to an MP4 file; `close` completes the file.

    Chroma is stored at half the resolution, so the colors of a label map are exact within regions, and mixed at their
    borders. Odd sides are padded to even ones by repeating the last row or column.

    Args:
        path: the file; an existing one is replaced.
        size: (H, W) of the frames.
        time_base: seconds per unit of `pts`.
        rate: nominal frames per second.
        pixel_aspect: width over height of a pixel.
        shown: the file in messages, if `path` is temporary.

    Raises:
        InputError: the file cannot be written, also later on.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        *,
        time_base: Fraction,
        rate: Fraction,
        pixel_aspect: Fraction = Fraction(1),
        shown: Path | None = None,
    ) -> None:
        import av

        self._shown, self._size = path if shown is None else shown, size
        codec, options = next(((name, opts) for name, opts in ENCODERS if name in av.codecs_available), (None, {}))
        if codec is None:
            raise InputError(
                f"{self._shown}: PyAV was built without {', '.join(name for name, _ in ENCODERS)}; reinstall av"
            )
        self._durations: dict[int, int] = {}
        try:
            self._container = av.open(str(path), "w", format="mp4")
        except (av.FFmpegError, OSError) as error:
            raise self._unwritable(error) from error
        stream: Any = self._container.add_stream(codec, rate=rate, options=dict(options))
        stream.width, stream.height = size[1] + size[1] % 2, size[0] + size[0] % 2
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = time_base
        stream.codec_context.sample_aspect_ratio = pixel_aspect
        for name in ("colorspace", "color_primaries", "color_trc"):
            setattr(stream.codec_context, name, _BT709)
        stream.codec_context.color_range = _LIMITED
        self._stream: VideoStream = stream

    def write(self, pixels: npt.NDArray[np.uint8], pts: int, duration: int = 0) -> None:
        """Append a frame (H, W, 3) that is shown at `pts`, which increases, for `duration`; 0 is until the next one."""
        import av

        H, W = self._size
        if H % 2 or W % 2:
            pixels = np.pad(pixels, ((0, H % 2), (0, W % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = picture.reformat(format="yuv420p", dst_colorspace=_BT709, dst_color_range=_LIMITED)
        frame.pts, frame.time_base = pts, self._stream.codec_context.time_base
        if duration:
            self._durations[pts] = duration
        self._mux(frame)

    def close(self) -> None:
        """Write what the encoder still holds, and the end of the file."""
        import av

        try:
            self._mux(None)
            self._container.close()
        except (av.FFmpegError, OSError) as error:
            raise self._unwritable(error) from error

    def abort(self) -> None:
        """Close the file without completing it."""
        with suppress(Exception):  # the file is removed anyway
            self._container.close()

    def _mux(self, frame: Any) -> None:
        import av

        try:
            for packet in self._stream.encode(frame):
                if packet.pts in self._durations:
                    packet.duration = self._durations.pop(packet.pts)
                self._container.mux(packet)
        except (av.FFmpegError, OSError) as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: Exception) -> InputError:
        reason = summarize_error(error)
        return InputError(
            f"{self._shown}: cannot be written ({reason}); choose a place with free space and write access"
        )
