"""Which images a command line means, and where the results of each go."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from meanshifter.data.reading import IMAGE_SUFFIXES
from meanshifter.errors import InputError


@dataclass(frozen=True)
class Job:
    """One image and the files that its prediction becomes."""

    source: Path
    mask: Path
    overlay: Path | None
    scores: tuple[Path, ...] = ()


def plan(inputs: Sequence[str], out: Path, *, overlay: bool, scores: Sequence[str] = ()) -> list[Job]:
    """The work for images, folders and globs, checked as a whole before any of it is done.

    A file NAME.jpg becomes OUT/NAME.png. Folders are searched recursively, and their structure is kept below
    OUT; so is that below the part of a glob before its first wildcard. Overlays go to OUT/overlays
    likewise, maps of scores to OUT/scores/SCORE. Hidden files, and what lies in OUT where OUT is inside an input
    folder, are passed over. A file named twice is read once.

    Raises:
        InputError: an input that is missing or holds no image; two inputs with the same result; a result that
            would replace an input; an OUT that is a file.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; name a folder")
    jobs: dict[tuple[Path, Path], Job] = {}
    for given in inputs:
        for source, relative in _expand(given, out):
            mask = out / relative.with_suffix(".png")
            picture = out / "overlays" / relative.with_suffix(".png") if overlay else None
            maps = tuple(out / "scores" / file_name(score) / relative.with_suffix(".png") for score in scores)
            jobs.setdefault((source.resolve(), mask), Job(source, mask, picture, maps))
    _check_targets(list(jobs.values()))
    return list(jobs.values())


def find_images(inputs: Sequence[str]) -> list[Path]:
    """The images that files, folders and globs mean, each once.

    Raises:
        InputError: an input that is missing or holds no image.
    """
    return list(dict.fromkeys(source for given in inputs for source, _ in _expand(given, None)))


def file_name(score: str) -> str:
    """A score's or class's name as that of a folder."""
    return "".join(letter if letter.isalnum() or letter in " -_" else "_" for letter in score)


def _expand(given: str, out: Path | None) -> Iterator[tuple[Path, Path]]:
    """Images that one argument means, each with its place below the output folder."""
    path = Path(given)
    if path.is_file():
        yield path, Path(path.name)
        return
    if path.is_dir():
        base, found = path, sorted(path.rglob("*"))
    elif glob.has_magic(given):
        base = _fixed_part(path)
        found = sorted(_matches(base, path.relative_to(base)))
    else:
        raise InputError(f"{given}: no such file or folder; give images, folders or globs")
    images = [file for file in found if _is_image(file, base) and not _inside(file, out, base)]
    if not images:
        raise InputError(f"{given}: no images; looked for {', '.join(sorted(IMAGE_SUFFIXES))}")
    for file in images:
        yield file, file.relative_to(base)


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


def _is_image(file: Path, base: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(base).parts)
    return not hidden and file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()


def _inside(file: Path, out: Path | None, base: Path) -> bool:
    """Whether `file` is an earlier result, in an output folder that itself lies inside the input folder."""
    if out is None:
        return False
    out, base = out.resolve(), base.resolve()
    return out != base and out.is_relative_to(base) and file.resolve().is_relative_to(out)


def _check_targets(jobs: list[Job]) -> None:
    sources = {job.source.resolve(): job.source for job in jobs}
    written: dict[Path, Path] = {}
    for job in jobs:
        for target in (job.mask, job.overlay, *job.scores):
            if target is None:
                continue
            place = target.resolve()
            if place in sources:
                raise InputError(
                    f"{target}: the result of {job.source} would replace the input {sources[place]}; "
                    "choose another --out"
                )
            if place in written:
                raise InputError(
                    f"{target}: would be written for both {written[place]} and {job.source}; rename one, "
                    "give their common parent folder, or use another --out for each"
                )
            written[place] = job.source
