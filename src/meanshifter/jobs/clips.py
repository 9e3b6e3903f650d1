"""Which videos a command line names, and where the results of each go."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from meanshifter.data.remote import is_address
from meanshifter.data.video import VIDEO_SUFFIXES, is_clip
from meanshifter.errors import InputError


@dataclass(frozen=True)
class ClipJob:
    """A clip and the folder for its results."""

    source: Path | int
    """A video, an animated GIF, a folder of frames, or the number of a camera."""
    out: Path


def plan_clips(inputs: Sequence[str], out: Path, *, frames: bool = False) -> list[ClipJob]:
    """The clips among the inputs of a command, each with its folder below `out`; empty if no input is one.

    A clip is a video or an animated GIF, also from a glob, or a number that is no file: that of a camera. The results
    of NAME.mp4 go to OUT/NAME, those of camera 0 to OUT/camera_0.

    Args:
        inputs: files, folders, globs and numbers.
        out: a folder.
        frames: every input is a folder of frames.

    Raises:
        InputError: clips together with other inputs; a camera with other clips; two clips with the same folder.
    """
    named = [given for text in inputs for given in _expanded(text)]
    if frames:
        for given in named:
            if not Path(given).is_dir():
                raise InputError(f"--as-video: {given} is not a folder; give folders of frames")
        sources: list[Path | int] = [Path(given) for given in named]
    else:
        found = {given: _source(given) for given in named}
        others = [given for given, source in found.items() if source is None]
        sources = [source for source in found.values() if source is not None]
        if sources and others:
            raise InputError(f"{others[0]}: given together with a video, {sources[0]}; use a separate command")
    if len(sources) > 1 and any(isinstance(source, int) for source in sources):
        raise InputError("INPUT: a camera is read until Ctrl-C; give no other inputs with it")
    return _placed(sources, out)


def _source(given: str) -> Path | int | None:
    if given.isdecimal() and not Path(given).exists():
        return int(given)
    if not is_clip(given):
        return None
    if is_address(given):
        raise InputError(f"{given}: videos at addresses are not read; download it first")
    return Path(given)


def _expanded(given: str) -> list[str]:
    """The videos that a glob names; other inputs as they are."""
    path = Path(given)
    if not glob.has_magic(given) or path.exists() or path.suffix.lower() not in VIDEO_SUFFIXES or is_address(given):
        return [given]
    base = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
    videos = sorted(str(file) for file in base.glob(str(path.relative_to(base))) if file.is_file())
    if not videos:
        raise InputError(f"{given}: no such file; pass videos, or a glob in quotes that matches some")
    return videos


def _placed(sources: Sequence[Path | int], out: Path) -> list[ClipJob]:
    places: dict[Path, ClipJob] = {}
    for source in dict.fromkeys(sources):
        if isinstance(source, int):
            name = f"camera_{source}"
        else:
            name = source.resolve().name if source.is_dir() else source.stem
        place = out / name
        if place in places:
            raise InputError(f"{place}: for the results of both {places[place].source} and {source}; rename one")
        places[place] = ClipJob(source, place)
    return list(places.values())
