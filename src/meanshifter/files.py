"""Files written beside their place and renamed into it, so that a reader never sees half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from meanshifter.errors import InputError


def write_beside(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file beside `path` and rename it into place, over an old one; folders are made.

    Raises:
        InputError: the file cannot be written; nothing is left behind then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
    """Write `text` as UTF-8, beside and renamed into place.

    Raises:
        InputError: the file cannot be written.
    """
    write_beside(path, lambda file: file.write(text.encode()))


@contextmanager
def folder_beside(path: str | Path) -> Iterator[Path]:
    """An empty folder beside `path`, renamed into its place, over an old one, unless the block raises.

    Raises:
        InputError: the folder cannot be made; nothing is left behind then.
    """
    path = Path(path)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{kind}") for kind in ("tmp", "old"))
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
