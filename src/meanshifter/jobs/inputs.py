"""Which images a command line names, and where the results of each go."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from urllib.parse import quote

from meanshifter.data.reading import (
    HIDDEN_FILES,
    IMAGE_SUFFIXES,
    NO_FILES,
    PassedOver,
    ending,
    files_below,
    is_hidden,
    said,
)
from meanshifter.errors import InputError


@dataclass(frozen=True)
class Job:
    """One image and the files that one prediction of it is written to."""

    source: Path
    mask: Path
    overlay: Path | None
    confidence: tuple[Path, ...] = ()


def plan(
    inputs: Sequence[str],
    out: Path,
    *,
    overlay: bool,
    confidence: Sequence[str] = (),
    folders: Sequence[str] = ("",),
    extra_outputs: Sequence[Path] = (),
    passed: PassedOver | None = None,
) -> list[Job]:
    """Plan the work for images, folders and globs, and check all of it before any image is labeled.

    NAME.jpg becomes OUT/NAME.png, its overlay OUT/overlays/NAME.png and its confidence maps
    OUT/confidence/MEASURE/NAME.png. Folders are searched recursively; their structure is kept below OUT, as is that
    below the fixed part of a glob. With several `folders`, each image has consecutive jobs, one for each of these
    folders below OUT. Files in an OUT that lies inside an input folder are skipped, and an image that is named twice
    is read once.

    Args:
        folders: folders below OUT, one job of each image for each.
        extra_outputs: other files that the run writes.
        passed: counts hidden files and files that are not images.

    Raises:
        InputError: an input that is missing or has no image; two inputs with the same result; a result that
            would overwrite an input or one of `extra_outputs`; an OUT that is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; choose a folder")
    jobs: dict[tuple[Path, Path], Job] = {}
    for given in inputs:
        for source, relative in _expand(given, out, PassedOver() if passed is None else passed):
            place = relative.with_suffix(".png")
            for base in (out / folder for folder in folders):
                maps = tuple(base / "confidence" / file_name(measure) / place for measure in confidence)
                job = Job(source, base / place, base / "overlays" / place if overlay else None, maps)
                jobs.setdefault((source.resolve(), job.mask), job)
    _check_targets(list(jobs.values()), extra_outputs)
    return list(jobs.values())


def find_images(inputs: Sequence[str]) -> list[Path]:
    """List the images that files, folders and globs name, each once.

    Raises:
        InputError: an input that is missing or has no image.
    """
    return list(dict.fromkeys(source for given in inputs for source, _ in _expand(given, None, PassedOver())))


def file_name(name: str) -> str:
    """Turn the name of a measure, class or model into a file name; special characters are percent-encoded."""
    plain = "".join(sign if sign.isalnum() or sign in " -_" else quote(sign, safe="") for sign in name)
    return plain.replace(".", "%2E").replace("~", "%7E") or "%"


def layers_folder(steps: int) -> str:
    """The folder for the results after `steps` mean shift steps, where several numbers of steps are requested."""
    return f"layers_{steps}"


def _expand(given: str, out: Path | None, passed: PassedOver) -> Iterator[tuple[Path, Path]]:
    """Images that one argument names, each with its path below the output folder."""
    path, here = Path(given), PassedOver()
    if path.is_file():
        yield path, Path(path.name)
        return
    if path.is_dir():
        base = path
        images = sorted(files_below(path, IMAGE_SUFFIXES, here, avoid=out))
    elif glob.has_magic(given):
        base = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts[:-1]))
        matches = sorted(file for file in _matches(base, path.relative_to(base)) if not _inside(file, out, base))
        images = [file for file in matches if _is_image(file, base, here)]
        below = os.walk(base) if "**" in given else ()
        if links := sum((Path(folder) / name).is_symlink() for folder, names, _ in below for name in names):
            here["linked folders, which ** does not follow"] = links
    else:
        raise InputError(f"{given}: no such file or folder; pass images, folders or globs")
    if not images:
        raise no_images(given, here)
    passed += here
    for file in images:
        yield file, file.relative_to(base)


def no_images(given: str, passed: PassedOver, more: Sequence[str] = ()) -> InputError:
    """The error for a folder or glob without images; `more` are other suffixes that are accepted."""
    there = f" ({said(passed)})" if passed else ""
    return InputError(f"{given}: no images{there}; accepted are {', '.join(sorted((*IMAGE_SUFFIXES, *more)))}")


def _matches(base: Path, pattern: Path) -> Iterator[Path]:
    """Files that match a pattern below `base`; unlike `glob.glob`, pathlib does not follow links, so no loops."""
    if ".." in pattern.parts:
        raise InputError(f"{base / pattern}: '..' after a wildcard is not supported; name the folder itself")
    try:
        yield from base.glob(str(pattern))
    except ValueError as error:
        raise InputError(f"{base / pattern}: not a valid glob ({error}); ** must be a complete folder name") from error


def _is_image(file: Path, base: Path, passed: PassedOver) -> bool:
    """Whether a match of a glob is an image; anything else is counted, except for folders."""
    if file.is_dir():
        return False
    if any(is_hidden(part) for part in file.relative_to(base).parts):
        passed[HIDDEN_FILES] += 1
    elif file.suffix.lower() not in IMAGE_SUFFIXES:
        passed[ending(file.name)] += 1
    elif not file.is_file():
        passed[NO_FILES] += 1
    else:
        return True
    return False


def _inside(file: Path, out: Path | None, base: Path) -> bool:
    """Whether `file` is an earlier result, in an output folder that lies inside the input folder."""
    if out is None:
        return False
    out, base = out.resolve(), base.resolve()
    return out != base and out.is_relative_to(base) and file.resolve().is_relative_to(out)


def _check_targets(jobs: list[Job], extra_outputs: Sequence[Path]) -> None:
    sources = {job.source.resolve(): job.source for job in jobs}
    written: dict[Path, Path] = {}
    for target in extra_outputs:
        if target.resolve() in sources:
            raise InputError(f"{target}: is an input and would be overwritten; choose another --out")
        written[target.resolve()] = target
    for job in jobs:
        for path in filter(None, (job.mask, job.overlay, *job.confidence)):
            place = path.resolve()
            if place in sources:
                raise InputError(
                    f"{path}: the result of {job.source} would overwrite the input {sources[place]}; "
                    "choose another --out"
                )
            if place in written:
                raise InputError(
                    f"{path}: would be written for both {written[place]} and {job.source}; rename one, pass their "
                    "common parent folder, or use a separate --out for each"
                )
            written[place] = job.source
