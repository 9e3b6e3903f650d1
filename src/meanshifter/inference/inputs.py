"""Which images a command line means, and where the results of each go."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from meanshifter.data.reading import IMAGE_SUFFIXES
from meanshifter.data.walk import HIDDEN_FILES, NO_FILES, PassedOver, ending, files_below, is_hidden, said
from meanshifter.errors import InputError


@dataclass(frozen=True)
class Job:
    """One image and the files that one prediction of it becomes."""

    source: Path
    mask: Path
    overlay: Path | None
    scores: tuple[Path, ...] = ()


def plan(
    inputs: Sequence[str],
    out: Path,
    *,
    overlay: bool,
    scores: Sequence[str] = (),
    folders: Sequence[str] = ("",),
    besides: Sequence[Path] = (),
    passed: PassedOver | None = None,
) -> list[Job]:
    """The work for images, folders and globs, checked as a whole before any of it is done.

    A file NAME.jpg becomes OUT/NAME.png. Folders are searched recursively, and their structure is kept below
    OUT; so is that below the part of a glob before its first wildcard. Overlays go to OUT/overlays
    likewise, maps of scores to OUT/scores/SCORE. With several `folders` each image has as many jobs, one after the
    other, of which each has one of these folders below OUT for its own. What lies in OUT, where OUT is inside an
    input folder, is left out; what is no image by its name, or hidden, is added to `passed`. A file named twice is
    read once.
    `besides`: files that the run writes as well.

    Raises:
        InputError: an input that is missing or holds no image; two inputs with the same result; a result that
            would replace an input or one of `besides`; an OUT that is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; name a folder")
    jobs: dict[tuple[Path, Path], Job] = {}
    for given in inputs:
        for source, relative in _expand(given, out, PassedOver() if passed is None else passed):
            for folder in folders:
                job = _job(source, relative.with_suffix(".png"), out / folder, overlay, scores)
                jobs.setdefault((source.resolve(), job.mask), job)
    _check_targets(list(jobs.values()), besides)
    return list(jobs.values())


def _job(source: Path, place: Path, out: Path, overlay: bool, scores: Sequence[str]) -> Job:
    maps = tuple(out / "scores" / file_name(score) / place for score in scores)
    return Job(source, out / place, out / "overlays" / place if overlay else None, maps)


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The images that files, folders and globs mean, each once.

    Raises:
        InputError: an input that is missing or holds no image.
    """
    return list(dict.fromkeys(source for given in inputs for source, _ in _expand(given, None, PassedOver())))


def file_name(score: str) -> str:
    """A score's or class's name as that of a folder, another for each: signs that may not be are spelt %2F."""
    plain = "".join(sign if sign.isalnum() or sign in " -_" else quote(sign, safe="") for sign in score)
    return plain.replace(".", "%2E").replace("~", "%7E") or "%"


def layers_folder(steps: int) -> str:
    """The folder of the results after one of several numbers of mean shift steps."""
    return f"layers_{steps}"


def _expand(given: str, out: Path | None, passed: PassedOver) -> Iterator[tuple[Path, Path]]:
    """Images that one argument means, each with its place below the output folder."""
    path, here = Path(given), PassedOver()
    if path.is_file():
        yield path, Path(path.name)
        return
    if path.is_dir():
        base = path
        images = sorted(files_below(path, IMAGE_SUFFIXES, here, avoid=out))
    elif glob.has_magic(given):
        base = _fixed_part(path)
        matches = sorted(file for file in _matches(base, path.relative_to(base)) if not _inside(file, out, base))
        images = [file for file in matches if _is_image(file, base, here)]
        if "**" in given and (links := _linked_folders(base)):
            here["linked folders, which ** does not enter"] = links
    else:
        raise InputError(f"{given}: no such file or folder; give images, folders or globs")
    if not images:
        raise no_images(given, here)
    passed += here
    for file in images:
        yield file, file.relative_to(base)


def no_images(given: str, passed: PassedOver, more: Sequence[str] = ()) -> InputError:
    """What is said of a folder or glob without images."""
    there = f" ({said(passed)})" if passed else ""
    return InputError(f"{given}: no images{there}; looked for {', '.join(sorted((*IMAGE_SUFFIXES, *more)))}")


def _fixed_part(pattern: Path) -> Path:
    """The folders of a glob before its first wildcard."""
    fixed = []
    for part in pattern.parts[:-1]:
        if glob.has_magic(part):
            break
        fixed.append(part)
    return Path(*fixed)


def _matches(base: Path, pattern: Path) -> Iterator[Path]:
    """What a pattern below `base` matches; unlike `glob.glob`, pathlib follows no links on its way down, nor loops."""
    if ".." in pattern.parts:
        raise InputError(f"{base / pattern}: '..' after a wildcard; name the folder itself")
    try:
        yield from base.glob(str(pattern))
    except ValueError as error:
        raise InputError(f"{base / pattern}: no pattern of names ({error}); ** stands for whole folders") from error


def _linked_folders(base: Path) -> int:
    return sum((Path(folder) / name).is_symlink() for folder, names, _ in os.walk(base) for name in names)


def _is_image(file: Path, base: Path, passed: PassedOver) -> bool:
    """Whether what a glob has matched is an image; what is none is counted, folders on the way to others are not."""
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
    """Whether `file` is an earlier result, in an output folder that itself lies inside the input folder."""
    if out is None:
        return False
    out, base = out.resolve(), base.resolve()
    return out != base and out.is_relative_to(base) and file.resolve().is_relative_to(out)


def _check_targets(jobs: list[Job], besides: Sequence[Path]) -> None:
    sources = {job.source.resolve(): job.source for job in jobs}
    written: dict[Path, Path] = {}
    for target in besides:
        if target.resolve() in sources:
            raise InputError(f"{target}: is an input and would be replaced; choose another --out")
        written[target.resolve()] = target
    for job in jobs:
        for path in (job.mask, job.overlay, *job.scores):
            if path is None:
                continue
            place = path.resolve()
            if place in sources:
                raise InputError(
                    f"{path}: the result of {job.source} would replace the input {sources[place]}; choose another --out"
                )
            if place in written:
                raise InputError(
                    f"{path}: would be written for both {written[place]} and {job.source}; rename one, "
                    "give their common parent folder, or use another --out for each"
                )
            written[place] = job.source
