"""Which images an archive holds and where the results of each go, as a stream: no complete list is ever held.

`plan_units` reads only the command line; `entries` lists one unit of it, in this process or on a worker.
"""

from __future__ import annotations

import glob
import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Final, Literal

from meanshifter.data.reading import (
    HIDDEN_FILES,
    HIDDEN_FOLDERS,
    IMAGE_SUFFIXES,
    PassedOver,
    ending,
    files_below,
    is_hidden,
)
from meanshifter.data.remote import (
    TAR_SUFFIXES,
    TarImage,
    absolute,
    address_of,
    base_name,
    expand_braces,
    file_stamp,
    file_system,
    is_address,
    is_image,
    is_tar,
    is_web,
    leads_out,
    stamp,
    tar_images,
)
from meanshifter.errors import InputError, summarize_error
from meanshifter.jobs.inputs import no_images

PER_UNIT: Final = 1000
"""Single files that are listed together."""
MANIFEST: Final = "manifest.jsonl"
"""Name of the manifest in an output folder."""
Kind = Literal["files", "folder", "tar"]


@dataclass(frozen=True)
class Unit:
    """A part of the archive that is listed by itself."""

    kind: Kind
    address: str
    """The folder or the tar."""
    files: tuple[tuple[str, str], ...] = ()
    """(address, place) of single files."""


@dataclass(frozen=True)
class Entry:
    """One image of an archive."""

    address: str
    place: str
    """Path of its label map below the output folder, with slashes."""
    size: int | None = None
    """Bytes, where the listing knows."""
    stamp: str | None = None
    """ETag or modification time, where the listing knows."""
    data: bytes | None = None
    """The bytes of a sample in a tar; None: read from the address."""
    error: str | None = None
    """Why it cannot be labeled, in one line."""


Known = Callable[[Entry], bool]
"""Whether an image is to be skipped."""


def plan_units(inputs: Sequence[str], out: str, passed: PassedOver | None = None) -> list[Unit]:
    """Resolve the images, folders, globs and tars of a command line, without listing what is in them.

    Matches of a glob that are neither images nor tars are counted in `passed`.

    Raises:
        InputError: an input that is missing, a glob without images, two tars whose results would collide, a tar whose
            name gives its results no folder, or `out` in the place of an input.
    """
    passed = PassedOver() if passed is None else passed
    names = [absolute(name) for given in inputs for name in ([given] if Path(given).exists() else expand_braces(given))]
    found = list(dict.fromkeys(thing for name in names for thing in _resolve(name, passed)))
    files = [(address, place) for kind, address, place in found if kind == "files"]
    units = [Unit(kind, address) for kind, address, _ in found if kind != "files"]
    _check(units, files, absolute(out))
    return units + [Unit("files", "", tuple(files[i : i + PER_UNIT])) for i in range(0, len(files), PER_UNIT)]


def entries(unit: Unit, out: str, known: Known, passed: PassedOver | None = None) -> Iterator[Entry | None]:
    """The images of one unit in order, None for each that is `known`; a listing error becomes an entry of its own.

    Folders keep their structure and SHARD.tar becomes the folder SHARD. Files in `out` are skipped; hidden files and
    files that are not images are counted in `passed`. Within one folder or tar, the second of two images with the same
    result has an error.
    """
    passed = PassedOver() if passed is None else passed
    if unit.kind == "files":
        found: Iterator[Entry] = (Entry(address, place, *file_stamp(address)) for address, place in unit.files)
    elif unit.kind == "folder":
        found = _in_folder(unit.address, absolute(out), passed)
    else:
        found = _in_tar(unit.address, known, passed)
    try:
        for entry in found:
            yield None if known(entry) else entry
    except InputError as error:
        broken = Entry(unit.address, "", error=str(error))
        yield None if known(broken) else broken


def place_of(relative: str) -> str:
    """The path of the label map for an image at `relative`."""
    return posixpath.splitext(relative)[0] + ".png"


def cannot_list(what: str, error: Exception, hint: str = "check the address and your access to it") -> InputError:
    """The error for a place that cannot be listed, be it for credentials or the network."""
    return InputError(f"{what} cannot be listed ({summarize_error(error)}); {hint}")


def _resolve(given: str, passed: PassedOver) -> Iterator[tuple[Kind, str, str]]:
    """Kind, address and place (of single files) of what one argument names."""
    local = not is_address(given)
    if not local and "::" in given and "://" not in given.partition("::")[0]:
        raise InputError(f"{given}: fsspec caches are not supported; remove what precedes ::")
    magic = glob.has_magic(given) and not is_web(given)
    if is_tar(given) and not magic:
        if local and not Path(given).is_file():
            raise InputError(f"{given}: no such file; check the path")
        yield "tar", given, ""
    elif Path(given).is_file() if local else is_web(given) or (is_image(given) and not magic):
        yield "files", given, place_of(base_name(given))
    elif magic and not (local and Path(given).exists()):
        yield from _matching(given, passed)
    elif _is_folder(given):
        yield "folder", given if "::" in given else given.rstrip("/") or "/", ""
    else:
        raise InputError(f"{given}: no such file or folder; pass images, folders, globs or tars")


def _is_folder(given: str) -> bool:
    files, path = file_system(given)
    try:
        return bool(files.isdir(path))
    except Exception as error:  # as in remote.py: credentials, networks
        raise cannot_list(f"{given}:", error) from error


def _matching(pattern: str, passed: PassedOver) -> Iterator[tuple[Kind, str, str]]:
    """Images and tars that match a glob; images keep the path below its fixed part."""
    files, path = file_system(pattern)
    try:
        matches = sorted(files.glob(path))
    except Exception as error:
        raise cannot_list(f"{pattern}:", error) from error
    base = "/".join(takewhile(lambda part: not glob.has_magic(part), path.split("/")[:-1]))
    here, wanted = PassedOver(), list[str]()
    for match in matches:
        kind = _why_not(match[len(base) :], (*IMAGE_SUFFIXES, *TAR_SUFFIXES))
        if kind is None:
            wanted.append(match)
        elif not files.isdir(match):
            here[kind] += 1
    if not wanted:
        raise no_images(pattern, here, TAR_SUFFIXES)
    passed += here
    for match in wanted:
        address = match if not is_address(pattern) else address_of(files, match, pattern)
        yield ("tar", address, "") if is_tar(match) else ("files", address, place_of(match[len(base) :].lstrip("/")))


def _why_not(relative: str, suffixes: Sequence[str]) -> str | None:
    """The kind under which a skipped file is counted; None for a file with one of the suffixes."""
    if any(is_hidden(part) for part in relative.split("/")):
        return HIDDEN_FILES
    return None if relative.lower().endswith(tuple(suffixes)) else ending(relative)


def _check(units: list[Unit], files: list[tuple[str, str]], out: str) -> None:
    """Refuse results that would collide across units; within a unit, `entries` finds such collisions."""
    if not is_address(out) and Path(out).exists() and not Path(out).is_dir():
        raise InputError(f"--out: {out} is a file; choose a folder")
    if is_address(out) and "::" in out:
        raise InputError(f"--out: {out} is a chained address, which is read-only; choose a folder or a plain address")
    for unit in units:
        _check_shard(unit)
        if unit.kind != "folder":
            continue
        if unit.address == out.rstrip("/"):
            raise InputError(f"--out: {out} is also an input; choose another folder, which may lie inside it")
        if len(units) > 1 or files:
            raise InputError(
                f"{unit.address}: with a manifest, a folder must be the only input, since results of two could "
                "collide; pass their common parent folder, or use a separate --out for each"
            )
    places: dict[str, str] = {}
    for address, place in [(unit.address, f"{shard_name(unit.address)}/") for unit in units] + files:
        other = places.setdefault(place, address)
        if place.partition("/")[0] + "/" in places and not place.endswith("/"):
            other = places[place.partition("/")[0] + "/"]
        if other != address:
            raise InputError(
                f"{address}: its results would collide with those of {other} in {absolute(out)}; rename one, pass "
                "their common parent folder, or use a separate --out for each"
            )


def _check_shard(unit: Unit) -> None:
    name = shard_name(unit.address)
    # hidden folders belong to the store, ".." leads out of the output folder, and the manifest is a file
    if unit.kind == "tar" and (not name or name.startswith(".") or name == MANIFEST):
        raise InputError(f"{unit.address}: its results would go to a folder called {name!r}; rename the tar")


def shard_name(address: str) -> str:
    """The name of a tar without its suffix: the folder of its results."""
    name = base_name(address)
    for suffix in sorted(TAR_SUFFIXES, key=len, reverse=True):
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return name


def _in_folder(root: str, out: str, passed: PassedOver) -> Iterator[Entry]:
    here = PassedOver()
    empty, folder, taken = True, "", dict[str, str]()
    for entry in _in_address(root, out, here) if is_address(root) else _in_local(root, out, here):
        empty = False
        if posixpath.dirname(entry.place) != folder:
            folder, taken = posixpath.dirname(entry.place), {}
        yield _once(entry, taken)
    if empty:
        raise no_images(root, here)
    passed += here


def _in_local(root: str, out: str, passed: PassedOver) -> Iterator[Entry]:
    avoid = None if is_address(out) else Path(out)
    for path in files_below(Path(root), IMAGE_SUFFIXES, passed, avoid=avoid):
        yield Entry(str(path), place_of(path.relative_to(root).as_posix()), *file_stamp(str(path)))


def _in_address(root: str, out: str, passed: PassedOver) -> Iterator[Entry]:
    files, path = file_system(root)
    avoided = str(file_system(out)[1]).rstrip("/") if is_address(out) else ""
    waiting = [path.rstrip("/")]
    while waiting:
        folder = waiting.pop()
        try:
            listed = sorted(files.ls(folder, detail=True), key=lambda info: str(info["name"]))
        except Exception as error:
            raise cannot_list(f"{root}: {folder}", error, "check your access to it") from error
        inside = list[str]()
        for info in listed:
            name = info["name"].rstrip("/")
            if name in (folder, avoided):
                continue
            hidden = is_hidden(posixpath.basename(name))
            if info["type"] == "directory" and (hidden or info.get("islink")):
                passed[HIDDEN_FOLDERS if hidden else "linked folders"] += 1
            elif info["type"] == "directory":
                inside.append(name)
            elif (kind := _why_not(posixpath.basename(name), IMAGE_SUFFIXES)) is not None:
                passed[kind] += 1
            else:
                place = place_of(name[len(path) :].lstrip("/"))
                yield Entry(address_of(files, name, root), place, *stamp(info))
        waiting += reversed(inside)


def _in_tar(address: str, known: Known, passed: PassedOver) -> Iterator[Entry]:
    """Samples of a tar; each has its own size, and the stamp of the tar."""
    version = file_stamp(address)[1]
    folder, taken = shard_name(address), dict[str, str]()

    def entry(image: TarImage) -> Entry:
        return Entry(f"{address}::{image.member}", f"{folder}/{image.key}.png", image.size, version)

    for image in tar_images(address, lambda image: known(entry(image)), passed):
        made = entry(image)
        if image.error is not None:
            yield replace(made, place="", error=f"{made.address}: {image.error}")
        else:
            yield _once(replace(made, data=image.data), taken)


def _once(entry: Entry, taken: dict[str, str]) -> Entry:
    """`entry`, with an error where its label map would leave the output folder or replace another one."""
    if leads_out(entry.place):
        error = f"{entry.address}: its name points outside the output folder; rename it"
        return replace(entry, data=None, error=error)
    first = taken.setdefault(posixpath.normpath(entry.place), entry.address)
    if first == entry.address:
        return entry
    error = f"{entry.address}: has the same label map {entry.place} as {first}; rename one of them"
    return replace(entry, data=None, error=error)
