"""Label videos: a label map video, an overlay video, the area of each class over time, and label maps of all frames.

Frames are decoded and results encoded in threads beside the model, which gets frames in batches. What waits between
them is bounded, so memory does not depend on the length of the clip.
"""

from __future__ import annotations

import csv
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Final

import numpy as np

from meanshifter.data.labels import LabelSpace
from meanshifter.data.video import Clip, Frame, open_clip
from meanshifter.data.video_writer import VideoWriter
from meanshifter.errors import InputError, counted, summarize_error
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.segmentation import Segmentation, save_png
from meanshifter.utils.background import ReadAhead, WriteBehind
from meanshifter.utils.files import temp_sibling
from meanshifter.utils.progress import ProgressBar

LABELS, OVERLAY, AREAS, FRAMES = "labels.mp4", "overlay.mp4", "areas.csv", "frames"
INTERRUPTED: Final = "interrupted"
"""Folder for the results of an interrupted run, if there are earlier results that they must not replace."""
WAITING_BYTES: Final = 256 * 2**20
"""Frames that wait on each side of the model, at most; but at least one batch."""
WAITING: Final = 32


@dataclass(frozen=True)
class LabeledVideo:
    """The results of a clip."""

    folder: Path
    """Where they are."""
    files: tuple[str, ...]
    """Their names in it."""
    frames: int
    """Labeled frames."""
    seconds: float
    """Time that labeling them took."""
    losses: tuple[str, ...]
    """What of the clip is missing in them, in one message each."""


def label_video(
    predictor: Predictor,
    source: str | Path | int,
    out: str | Path,
    *,
    fps: float | None = None,
    overlay: bool = True,
    alpha: float = 0.5,
    frames: bool = False,
    progress: bool = False,
) -> LabeledVideo:
    """Label every frame of a clip, and write the results to the folder `out`.

    labels.mp4 shows the class colors and overlay.mp4 the colors over the frames; both have the size, the times and the
    pixel aspect ratio of the clip, upright and without sound. areas.csv has a row for each frame: its number, its time
    in seconds, and the share of its pixels that each class has. frames/ has the label map of each frame as a PNG of
    train ids, named by its number, or like the file of the frame. Files are replaced once all of them are complete.

    After Ctrl-C, the files hold the frames that are done. They are in `out`, or in `out`/interrupted if `out` has
    earlier results; the message of the KeyboardInterrupt, which is raised again, says so.

    Args:
        predictor: the model and its settings; maps of confidence and probabilities are not written.
        source: a video, an animated GIF, a folder of frames, or the number of a camera, which is read until Ctrl-C.
        out: a folder; created if missing.
        fps: frames per second of a folder of frames.
        overlay: write overlay.mp4.
        alpha: opacity of the colors over the frames.
        frames: write frames/.
        progress: show a bar on a terminal.

    Raises:
        InputError: a clip that cannot be read, as `data.video.open_clip`; no access to `out`; results that would
            replace the clip; `alpha` outside 0..1.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"alpha: {alpha}; it must be between 0 (image only) and 1 (colors only)")
    names = result_names(overlay=overlay, frames=frames)
    outputs, start = Outputs(Path(out), names), time.monotonic()
    outputs.check(source)
    with open_clip(source, fps=fps, max_pixels=predictor.max_pixels) as clip, outputs:
        results = _Results(clip, outputs, predictor.model.label_space, alpha)
        try:
            dropped = _label(predictor, clip, results, progress=progress)
            results.close()
            outputs.finish()
        except KeyboardInterrupt as stop:
            stop.args = (_keep_done(results, outputs),)
            raise
        except BaseException:
            results.abort()
            raise
    losses = [*clip.losses, *([f"{counted(dropped, 'frame')} left out, as the model was busy"] if dropped else [])]
    return LabeledVideo(outputs.folder, names, results.count, time.monotonic() - start, tuple(losses))


def result_names(*, overlay: bool = True, frames: bool = False) -> tuple[str, ...]:
    """The names of the results in their folder."""
    return (LABELS, *([OVERLAY] if overlay else []), AREAS, *([FRAMES] if frames else []))


def _label(predictor: Predictor, clip: Clip, results: _Results, *, progress: bool) -> int:
    """Label all frames; returns how many frames of a camera were left out."""
    batch = predictor.images_per_pass(clip.size)
    waiting = max(min(WAITING, WAITING_BYTES // (clip.size[0] * clip.size[1] * 3)), batch)
    reader, writer = ReadAhead(clip.frames, waiting, drop=clip.live), WriteBehind(results.add, waiting)
    with ProgressBar("frames", clip.count, shown=progress) as bar, reader as source:
        try:
            while several := list(islice(source, batch)):
                found = predictor.segment_batch([frame.pixels for frame in several])
                for pair in zip(several, found, strict=True):
                    writer.put(pair)
                bar.advance(len(several))
        except KeyboardInterrupt:
            writer.finish()
            raise
        except BaseException:
            writer.abort()
            raise
        writer.finish()
    return reader.dropped


def _keep_done(results: _Results, outputs: Outputs) -> str:
    """Complete the files of an interrupted run; returns the message."""
    if not results.count:
        results.abort()
        return "interrupted before the first frame was labeled; nothing was written"
    results.close()
    outputs.finish(interrupted=True)
    return f"interrupted after {counted(results.count, 'frame')}; what is labeled is in {outputs.folder}"


class _Results:
    """The files that are written while a clip is labeled."""

    def __init__(self, clip: Clip, outputs: Outputs, label_space: LabelSpace, alpha: float) -> None:
        self.count = 0
        self._outputs, self._alpha, self._time_base = outputs, alpha, clip.time_base
        self._names = label_space.names
        colors = np.zeros((65_536 if label_space.num_classes > 255 else 256, 3), np.uint8)
        colors[: label_space.num_classes] = label_space.palette
        self._colors = colors
        self._videos: dict[str, VideoWriter] = {}
        self._areas: IO[str] | None = None
        try:
            for name in (LABELS, OVERLAY):
                if name in outputs.names:
                    timing: Any = {"time_base": clip.time_base, "rate": clip.rate, "pixel_aspect": clip.pixel_aspect}
                    path = outputs.temporary(name)
                    self._videos[name] = VideoWriter(path, clip.size, shown=outputs.folder / name, **timing)
            with _writing(outputs.folder / AREAS):
                self._areas = outputs.temporary(AREAS).open("w", encoding="utf-8", newline="")
                self._rows = csv.writer(self._areas)
                self._rows.writerow(["frame", "seconds", *self._names])
                if FRAMES in outputs.names:
                    outputs.temporary(FRAMES).mkdir()
        except BaseException:
            self.abort()
            raise

    def add(self, pair: tuple[Frame, Segmentation]) -> None:
        """Write the results of one frame."""
        frame, found = pair
        K, labels = len(self._names), found.labels
        self._videos[LABELS].write(np.take(self._colors, labels, axis=0), frame.pts, frame.duration)
        if OVERLAY in self._videos:
            self._videos[OVERLAY].write(np.asarray(found.overlay(self._alpha)), frame.pts, frame.duration)
        if FRAMES in self._outputs.names:
            save_png(self._outputs.temporary(FRAMES) / f"{frame.name}.png", found.to_image())
        shares = np.bincount(labels.ravel(), minlength=K)[:K] / labels.size
        seconds = float(frame.pts * self._time_base)
        with _writing(self._outputs.folder / AREAS):
            self._rows.writerow([self.count, f"{seconds:.6f}", *(f"{share:.6f}" for share in shares)])
        self.count += 1

    def close(self) -> None:
        """Complete the files; closing them twice does nothing."""
        while self._videos:
            self._videos.popitem()[1].close()
        with _writing(self._outputs.folder / AREAS):
            if self._areas is not None:
                self._areas.close()

    def abort(self) -> None:
        """Close the files, which are then removed."""
        for video in self._videos.values():
            video.abort()
        if self._areas is not None:
            with suppress(OSError):
                self._areas.close()


class Outputs:
    """Files and folders of one run, which have temporary names until `finish`; a context, which removes these.

    Args:
        folder: where the results go.
        names: their names.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.folder, self.names = folder, tuple(names)
        self._base, self._created = folder, False

    def check(self, source: str | Path | int) -> None:
        """Raise an InputError if the results cannot be written, or would replace `source`."""
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"{self.folder}: is a file; choose a folder for the results")
        given = None if isinstance(source, int) else Path(source).resolve()
        if given in (self.folder.resolve(), *((self.folder / name).resolve() for name in self.names)):
            raise InputError(f"{source}: the results would be written over it; choose another folder for them")
        for name in self.names:
            place = self.folder / name
            if place.exists() and place.is_dir() != (name == FRAMES):
                kind = "a file" if name == FRAMES else "a folder"
                raise InputError(f"{place}: is {kind}, where a result goes; remove it, or choose another folder")
        existing = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not (existing.is_dir() and os.access(existing, os.W_OK)):
            raise InputError(f"{self.folder}: cannot be written; choose a place with write access")

    def temporary(self, name: str) -> Path:
        """The name until `finish`."""
        return temp_sibling(self._base / name, f"{os.getpid()}.tmp")

    def __enter__(self) -> Outputs:
        with _writing(self.folder):
            self._created = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            _remove(self.temporary(name))
        if self._created:
            with suppress(OSError):  # it has results
                self._base.rmdir()

    def finish(self, *, interrupted: bool = False) -> None:
        """Give the files their names, replacing earlier ones; results of an interrupted run replace nothing."""
        if interrupted and any((self.folder / name).exists() for name in self.names):
            self.folder = self._base / INTERRUPTED
        with _writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            for name in self.names:
                place, old = self.folder / name, temp_sibling(self._base / name, f"{os.getpid()}.old")
                if place.is_dir():
                    place.replace(old)  # a folder replaces no folder that has files
                self.temporary(name).replace(place)
                _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Errors of the system are those of writing `path`."""
    try:
        yield
    except OSError as error:
        reason = summarize_error(error)
        raise InputError(f"{path}: cannot be written ({reason}); choose a place with write access and space") from error
