"""Files written beside their place and renamed into it, so that a reader never sees half of one."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
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
    path = Path(path)
    temporary = beside(path, f"{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: cannot be written ({reason}); choose a place with space and write access") from error
    finally:
        with suppress(OSError):  # gone after a success, and where the folder could not be made
            temporary.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, beside and renamed into place; bytes of names that are none are spelt as escapes.

    Raises:
        InputError: the file cannot be written.
    """
    write_beside(path, lambda file: file.write(text.encode("utf-8", "backslashreplace")))


@contextmanager
def folder_beside(path: str | Path) -> Iterator[Path]:
    """An empty folder beside `path`, renamed into its place, over an old one, unless the block raises.

    Raises:
        InputError: the folder cannot be made; nothing is left behind then.
    """
    path = Path(path)
    temporary, old = (beside(path, f"{os.getpid()}.{kind}") for kind in ("tmp", "old"))
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: cannot be written ({reason}); choose a place with space and write access") from error
    try:
        yield temporary
        if path.exists():
            path.replace(old)
        temporary.replace(path)
    finally:
        for left in (temporary, old):
            shutil.rmtree(left, ignore_errors=True)
