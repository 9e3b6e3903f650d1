"""Files written beside their place and renamed into it, so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from meanshifter.errors import InputError

LONGEST_NAME: Final = 255
"""Bytes that a file's name may have on the file systems in use."""


def require_file(path: str | Path) -> None:
    """Make sure that `path` is a regular file, or a link to one: reading a pipe or a device may never end.

    Raises:
        InputError: it is anything else, or nothing.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (the mode, of whatever it is)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except (OSError, ValueError) as error:  # loops of links, no permission; null bytes in the name
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); check the path") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder; name a file")
    if not stat.S_ISREG(mode):
        raise InputError(f"{path}: is a pipe, socket or device; only files are read, so save its content as one")


def beside(path: Path, kind: str) -> Path:
    """A hidden name in the folder of `path` for what will take its place, within the 255 bytes that names may have."""
    name = f".{path.name}.{kind}"
    if len(os.fsencode(name)) > LONGEST_NAME:
        name = f".{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:32]}.{kind}"
    return path.with_name(name)


def write_beside(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file beside `path` and rename it into place, over an old one; folders are made.

    Raises:
        InputError: the file cannot be written; nothing is left behind then.
    """
    write_together({Path(path): write})


def write_together(contents: Mapping[Path, Callable[[IO[bytes]], object]]) -> None:
    """As `write_beside`, for files that belong together: where one cannot be written all stay as they were.

    Raises:
        InputError: a file cannot be written.
    """
    parts = {path: [beside(path, f"{os.getpid()}.{kind}") for kind in ("tmp", "old")] for path in contents}
    path, ready = next(iter(contents)), False
    try:
        for path, write in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with parts[path][0].open("wb") as file:
                write(file)
        for path in list(parts)[:-1]:  # with the last one all are there
            if path.exists():
                shutil.copy2(path, parts[path][1])
        ready = True
        for path, (temporary, _) in parts.items():
            temporary.replace(path)
    except BaseException as error:
        replaced = [path for path, (temporary, _) in parts.items() if ready and not temporary.exists()]
        for done in replaced if len(replaced) < len(parts) else ():
            old = parts[done][1]
            old.replace(done) if old.exists() else done.unlink()
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: cannot be written ({reason}); choose a place with space and write access") from error
    finally:
        for left in (left for pair in parts.values() for left in pair):
            with suppress(OSError):  # gone after a success, and where the folder could not be made
                left.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, beside and renamed into place; bytes of names that are none are spelt as escapes.

    Raises:
        InputError: the file cannot be written.
    """
    write_beside(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def require_replaceable(path: str | Path) -> Path:
    """The folder that `path` names, behind links, if another can be renamed into its place.

    Raises:
        InputError: it is where the process stands, where a disk is mounted, or a loop of links.
    """
    try:
        found = Path(path).resolve()
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: cannot be followed ({error}); name another place") from error
    if found == Path.cwd():
        raise InputError(f"{path}: is the current folder, which cannot be replaced; name a folder in it")
    if found.is_mount():
        raise InputError(f"{path}: is where a disk is mounted, which cannot be replaced; name a folder in it")
    return found


@contextmanager
def folder_beside(path: str | Path) -> Iterator[Path]:
    """An empty folder beside `path`, renamed into its place, over an old one, unless the block raises.

    A link stays, and the folder that it points to is replaced.

    Raises:
        InputError: the folder cannot be made, filled or put in place; nothing is left behind then, and what was there
            before stays.
    """
    place = require_replaceable(path)
    temporary, old = (beside(place, f"{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if place.exists():
            place.replace(old)
        temporary.replace(place)
    except OSError as error:
        if not (error.filename is None or str(error.filename).startswith((str(temporary), str(place)))):
            raise  # of a file that was read
        reason = error.strerror or str(error) or type(error).__name__
        raise InputError(f"{path}: cannot be written ({reason}); choose a place with space and write access") from error
    finally:
        if old.exists() and not place.exists():
            old.replace(place)
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
