"""Read videos, animated GIFs, folders of frames and cameras frame by frame, with PyAV.

Frames come upright (display matrix) as RGB, with the time at which they are shown: nothing is resampled to a constant
rate, and frames that cannot be read are counted. Glossary: H W pixels, pts presentation time in ticks of the time base.
"""

from __future__ import annotations

import platform
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.reading import IMAGE_SUFFIXES, MAX_PIXELS, is_hidden, read_image
from meanshifter.errors import InputError, counted, summarize_error
from meanshifter.utils.environment import require_installed
from meanshifter.utils.files import require_file

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

VIDEO_SUFFIXES: Final = (
    *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf"),
    *(".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
"""Extensions of videos; the content decides how a file is read."""
_FORMATS: Final = "mov,mp4,matroska,webm,avi,mpegts,mpeg,gif,flv,asf,ogg,mxf"
"""Containers of FFmpeg that are read: no playlists, whose entries could be other files or addresses."""
SLOWEST, FASTEST = 0.001, 1000
"""Frames per second of a folder of frames."""
_MICROSECOND: Final = Fraction(1, 1_000_000)
_USUAL_RATE: Final = Fraction(25)
_TOLERANCE: Final = 0.5
"""Seconds by which a video may end before the duration in its header, which some programs round."""
_CAMERAS: Final = {"Linux": "v4l2", "Darwin": "avfoundation", "Windows": "dshow"}


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a clip."""

    pixels: npt.NDArray[np.uint8]
    """(H, W, 3) RGB, upright."""
    pts: int
    """When it is shown, in units of `Clip.time_base`; larger than that of the frame before."""
    duration: int
    """How long it is shown in the same units; 0 if unknown."""
    name: str
    """Its number from 0 with six digits, or the name of its file without the extension."""


@dataclass(eq=False)
class Clip:
    """An open clip, of which `frames` can be read once."""

    name: str
    """The clip in messages."""
    size: tuple[int, int]
    """(H, W) of the upright frames."""
    time_base: Fraction
    """Seconds per unit of `Frame.pts`."""
    rate: Fraction
    """Nominal frames per second; frames may come at any other rate."""
    pixel_aspect: Fraction
    """Width over height of a pixel."""
    count: int | None
    """How many frames are expected; None if unknown."""
    live: bool
    """Whether it is a camera, which does not wait."""
    frames: Iterator[Frame] = field(repr=False)
    """The frames in order; raises an InputError for an unreadable file in a folder of frames."""
    losses: list[str] = field(default_factory=list)
    """What could not be read, in one message each; complete once all frames are read."""


def is_clip(source: str | Path | int) -> bool:
    """Whether `source` is a camera's number, or a video or an animated GIF by its name and content."""
    if isinstance(source, int):
        return True
    path = Path(source)
    if path.suffix.lower() == ".gif" and path.is_file():
        try:
            with Image.open(path, formats=["GIF"]) as picture:
                return bool(getattr(picture, "is_animated", False))
        except Exception:  # Pillow raises any error for broken files; as an image, the file is refused with a reason
            return False
    return path.suffix.lower() in VIDEO_SUFFIXES


def require_av() -> None:
    """Raise an InputError that names the extra if PyAV is missing."""
    require_installed("reading and writing videos", "video", "av")


@contextmanager
def open_clip(source: str | Path | int, *, fps: float | None = None, max_pixels: int = MAX_PIXELS) -> Iterator[Clip]:
    """Open a clip for reading, for the duration of the context.

    Rotation and mirroring by the display matrix are applied. Times are those of the file, counted from the start of its
    first stream; the times of a camera start at 0. Frames without a time follow the one before at the nominal rate.

    Args:
        source: a video or animated GIF, a folder of frames, or the number of a camera.
        fps: frames per second of a folder of frames, which are its images in the order of their names, with numbers in
            names compared as numbers.
        max_pixels: larger frames are refused before they are decoded.

    Raises:
        InputError: PyAV is missing; a missing or unreadable source; no video in it; no frame; a rotation that is not
            by right angles; frames of a folder that differ in size.
    """
    require_av()
    if isinstance(source, int):
        if fps is not None:
            raise InputError(f"fps: {fps:g} for camera {source}; only applies to folders of frames, leave it out")
        name, (address, form, options) = f"camera {source}", _camera(source)
        remedy = "check its number and that no other program uses it"
    else:
        path = Path(source)
        if path.is_dir():
            yield _folder_clip(path, fps, max_pixels)
            return
        require_file(path)
        if fps is not None:
            raise InputError(f"fps: {fps:g} for {path}, which has its own times; only applies to folders of frames")
        name, address, form = str(path), str(path), None
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        remedy = "check that it is a complete video, or convert it with ffmpeg"
    import av

    try:
        container = av.open(address, format=form, options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise InputError(f"{name}: cannot be opened as a video ({summarize_error(error)}); {remedy}") from error
    with container:
        yield _Decoder(container, name, max_pixels, live=isinstance(source, int)).clip()


def _camera(index: int) -> tuple[str, str, dict[str, str]]:
    """How FFmpeg opens a camera: address, format and options."""
    system = platform.system()
    if index < 0 or system not in _CAMERAS:
        raise InputError(f"camera {index}: expected a number from 0 on, on {', '.join(_CAMERAS)}")
    form = _CAMERAS[system]
    if system == "Linux":
        return f"/dev/video{index}", form, {}
    if system == "Darwin":
        return str(index), form, {"framerate": "30"}  # its default of 29.97 is one that cameras refuse
    from av.device import enumerate_input_devices

    names = [device.name for device in enumerate_input_devices(form) if "video" in device.media_types]
    if index >= len(names):
        raise InputError(f"camera {index}: {len(names)} cameras found; use a number below that")
    return f"video={names[index]}", form, {}


class _Decoder:
    """Decodes one stream, and counts what it does not get."""

    def __init__(self, container: InputContainer, name: str, max_pixels: int, *, live: bool) -> None:
        from av.stream import Disposition

        pictures = Disposition.attached_pic  # covers of music are streams of one frame
        streams = [stream for stream in container.streams.video if not stream.disposition & pictures]
        if not streams:
            kinds = ", ".join(dict.fromkeys(stream.type for stream in container.streams)) or "nothing"
            raise InputError(f"{name}: has no video ({kinds} in it); choose another file")
        self._container, self._name, self._live = container, name, live
        self._stream: VideoStream = streams[0]
        self._stream.thread_type = "SLICE"  # with threads by frame, broken files lose frames without an error
        self._max_pixels = max_pixels
        self._check_size(self._stream.codec_context)
        self._time_base = self._stream.time_base or _MICROSECOND
        self._rate = self._stream.average_rate or self._stream.guessed_rate or _USUAL_RATE
        self._packets = self._frames = self._damaged = self._errors = 0
        self._first_error = 0.0
        self._stopped: str | None = None
        self._losses: list[str] = []

    def clip(self) -> Clip:
        """The clip; decodes its first frame, which has the size and the rotation."""
        pictures = self._pictures()
        first = next(pictures, None)
        if first is None:
            reason = self._stopped or ("none can be decoded" if self._packets else "it is empty")
            raise InputError(f"{self._name}: has no frames ({reason}); check that the file is complete")
        self._check_size(first)  # some headers do not state it
        upright = _upright(first, self._name)
        aspect = self._stream.sample_aspect_ratio or Fraction(1)
        size = upright(np.empty((first.height, first.width, 1))).shape[:2]
        turned = size != (first.height, first.width) or upright(np.empty((1, 2, 1))).shape[0] == 2
        return Clip(
            self._name,
            (size[0], size[1]),
            self._time_base,
            self._rate,
            1 / aspect if turned else aspect,
            self._expected(),
            self._live,
            self._framed(chain([first], pictures), (first.width, first.height), upright),
            self._losses,
        )

    def _check_size(self, sized: Any) -> None:
        if sized.width * sized.height > self._max_pixels:
            raise InputError(
                f"{self._name}: frames of {sized.width}×{sized.height} pixels are more than the limit of "
                f"{self._max_pixels:,}; raise max_pixels, or scale the video"
            )

    def _expected(self) -> int | None:
        if self._stream.frames:
            return self._stream.frames
        seconds = self._duration()
        return None if seconds is None else max(round(seconds * float(self._rate)), 1)

    def _duration(self) -> float | None:
        """Seconds of the stream as its header states them."""
        if self._stream.duration is not None:
            return float(self._stream.duration * self._time_base)
        if self._container.duration is not None and len(self._container.streams) == 1:
            return float(self._container.duration * _MICROSECOND)
        return None

    def _framed(
        self, pictures: Iterator[VideoFrame], sides: tuple[int, int], upright: Callable[[Any], Any]
    ) -> Iterator[Frame]:
        """Frames with their times, all of the size of the first."""
        step = max(round(1 / (self._rate * self._time_base)), 1)
        times, previous, end = _Times(self._start(), step, restart=round(1 / self._time_base)), sides, 0
        for number, picture in enumerate(pictures):
            if (picture.width, picture.height) != previous:
                self._check_size(picture)
                previous = (picture.width, picture.height)
                warnings.warn(
                    f"{self._name}: from frame {number} on, frames are {picture.width}×{picture.height}; all are "
                    f"written with the {sides[0]}×{sides[1]} of the first",
                    stacklevel=2,
                )
            pts = times.shown(picture.pts)
            end = pts + (picture.duration or step)
            pixels = picture.to_ndarray(format="rgb24", width=sides[0], height=sides[1])
            yield Frame(np.ascontiguousarray(upright(pixels)), pts, picture.duration or 0, f"{number:06d}")
        self._conclude(float(end * self._time_base))

    def _start(self) -> int | None:
        """The time of the file's start; None: that of the first frame."""
        if self._live or self._container.start_time is None:
            return None
        return round(self._container.start_time * _MICROSECOND / self._time_base)

    def _pictures(self) -> Iterator[VideoFrame]:
        import av

        while True:
            try:
                for packet in self._container.demux(self._stream):
                    yield from self._decoded(packet)
                return
            except av.error.BlockingIOError:  # a camera without a new frame
                time.sleep(0.005)
            except (av.FFmpegError, OSError) as error:
                self._stopped = summarize_error(error)
                return

    def _decoded(self, packet: Any) -> list[VideoFrame]:
        import av

        self._packets += bool(packet.size) and not packet.is_discard
        try:
            pictures: list[VideoFrame] = packet.decode()
        except (av.FFmpegError, OSError):
            if not self._errors and packet.pts is not None:
                self._first_error = float((packet.pts - (self._start() or 0)) * self._time_base)
            self._errors += 1
            return []
        self._frames += len(pictures)
        self._damaged += sum(picture.is_corrupt for picture in pictures)
        return pictures

    def _conclude(self, end: float) -> None:
        """Say what is missing, after the last frame."""
        if self._errors:
            lost = max(self._packets - self._frames, self._errors)
            self._losses.append(f"{counted(lost, 'frame')} cannot be decoded, near {self._first_error:.1f} s and later")
        if self._damaged:
            self._losses.append(f"{counted(self._damaged, 'frame')} damaged, but decoded")
        if self._stopped is not None:
            self._losses.append(f"cannot be read after {end:.1f} s ({self._stopped})")
            return
        stated, frames = self._duration(), self._stream.frames
        tolerance = min(_TOLERANCE, 1.5 / float(self._rate)) if frames > self._packets else _TOLERANCE
        if not self._live and stated is not None and end < stated - tolerance:
            self._losses.append(f"ends after {end:.1f} s of the {stated:.1f} s that its header states")


class _Times:
    """Turns the times of a file into times from `start`, or from the first one, that increase.

    Frames without a time follow after `step`, and so does all that follows a jump back by more than `restart`, where
    recordings were joined.
    """

    def __init__(self, start: int | None, step: int, *, restart: int) -> None:
        self._start, self._step, self._restart = start, step, restart
        self._last: int | None = None

    def shown(self, pts: int | None) -> int:
        """When the next frame is shown."""
        following = 0 if self._last is None else self._last + self._step
        if pts is None:
            self._last = following
            return following
        self._start = pts if self._start is None else self._start
        shown = max(pts - self._start, 0)
        if self._last is not None and shown < self._last - self._restart:
            self._start -= following - shown
            shown = following
        if self._last is not None:
            shown = max(shown, self._last + 1)  # two frames at one time cannot be written
        self._last = shown
        return shown


def _upright(picture: VideoFrame, name: str) -> Callable[[Any], Any]:
    """The function that turns pixels (H, W, C) as stored upright, from the display matrix of FFmpeg.

    The matrix maps a stored position (x, y) to (a·x + c·y, b·x + d·y), with y downwards.

    Raises:
        InputError: a rotation that is not by right angles.
    """
    every: Any = picture.side_data  # typed as a mapping from names, but it is one of entries
    matrix = next((bytes(data) for data in every if data.type.name == "DISPLAYMATRIX"), None)
    if matrix is None:
        return lambda pixels: pixels
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    unit = max(abs(a), abs(b), abs(c), abs(d)) or 1.0
    signs = [round(value / unit) for value in (a, b, c, d)]
    straight = all(abs(value / unit - sign) < 0.02 for value, sign in zip((a, b, c, d), signs, strict=True))
    a, b, c, d = signs
    if straight and a and d and not (b or c):
        return lambda pixels: pixels[::d, ::a]
    if straight and b and c and not (a or d):
        return lambda pixels: pixels.swapaxes(0, 1)[::b, ::c]
    raise InputError(
        f"{name}: rotated by {picture.rotation} degrees; only right angles are read, rotate it with ffmpeg"
    )


def _folder_clip(folder: Path, fps: float | None, max_pixels: int) -> Clip:
    if fps is None:
        raise InputError(f"fps: missing for {folder}; a folder of frames needs its frames per second")
    if not SLOWEST <= fps <= FASTEST:
        raise InputError(f"fps: {fps:g}; expected frames per second from {SLOWEST} to {FASTEST}")
    files = frame_files(folder)
    rate = Fraction(fps).limit_denominator(1_000_000)

    def frames() -> Iterator[Frame]:
        for number, file in enumerate(files):
            pixels = read_image(file, max_pixels=max_pixels)
            if pixels.shape != first.shape:
                height, width = pixels.shape[:2]
                raise InputError(
                    f"{file}: {width}×{height}, but the first frame {files[0].name} is "
                    f"{first.shape[1]}×{first.shape[0]} (width×height); all frames of a clip must have one size"
                )
            yield Frame(pixels, number, 1, file.stem)

    first = read_image(files[0], max_pixels=max_pixels)
    size = (first.shape[0], first.shape[1])
    return Clip(str(folder), size, 1 / rate, rate, Fraction(1), len(files), live=False, frames=frames())


def frame_files(folder: Path) -> list[Path]:
    """The images that lie directly in a folder, by name, with numbers in names compared as numbers.

    Raises:
        InputError: the folder cannot be listed, has no image, or has two whose names differ only in the extension.
    """
    try:
        names = [entry for entry in folder.iterdir() if entry.is_file() and not is_hidden(entry.name)]
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({summarize_error(error)}); check your access to it") from error
    files = sorted((name for name in names if name.suffix.lower() in IMAGE_SUFFIXES), key=_natural)
    if not files:
        raise InputError(f"{folder}: no images directly in it; give the folder that holds the frames")
    stems: dict[str, Path] = {}
    for file in files:
        if file.stem in stems:
            raise InputError(f"{file}: {stems[file.stem].name} has the same name; a frame is one image, remove one")
        stems[file.stem] = file
    return files


def _natural(path: Path) -> tuple[list[tuple[bool, int, str]], str]:
    parts = re.findall(r"\d+|\D+", path.name)
    return [(not part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in parts], path.name
