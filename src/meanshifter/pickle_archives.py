"""Archives of torch.save whose directory says one thing to every reader.

torch reads an archive by rules of its own: it finds names whatever their case, takes the first of two that are alike,
and looks for the directory where Python would not. What is checked must be what is read.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from meanshifter.errors import InputError

_END: Final = struct.Struct("<4s4H2LH")
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_LOCATOR: Final = struct.Struct("<4sLQL")
_NONE32: Final = 0xFFFFFFFF
"""What stands for a number in the old record where only the new one holds it."""


class Archive:
    """An open archive: the bytes of each record, by its name below the folder that holds them all."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self._file = file
        entries = file.infolist()
        self._folder = entries[0].filename.partition("/")[0] + "/" if entries else ""
        self.records = {entry.filename.removeprefix(self._folder): entry.file_size for entry in entries}
        wrong = _wrong(entries, self._folder)
        if wrong is None and sum(self.records.values()) > path.stat().st_size:
            wrong = f"unpacks to {sum(self.records.values()):,} bytes, more than it has"
        if wrong is not None:
            raise InputError(f"{path}: an archive that {wrong}; torch.save writes no such file: ask for the original")
        if "constants.pkl" in self.records:
            raise InputError(f"{path}: a program of TorchScript, not weights; save its state_dict() with torch.save")

    def read(self, name: str) -> bytes:
        """The whole of a record.

        Raises:
            zipfile.BadZipFile: it is damaged, or packed in a way that torch does not know.
        """
        with _one_error():
            return self._file.read(self._folder + name)


@contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """The archive, if there is one way only to read it.

    Raises:
        InputError: torch could find in it what Python does not, it is larger inside, or it is a program.
        zipfile.BadZipFile: it is none, or damaged.
    """
    _check_directory(path)
    with _one_error():
        file = zipfile.ZipFile(path)
    with file:
        yield Archive(path, file)


@contextmanager
def _one_error() -> Iterator[None]:
    """What zipfile raises depends on where the damage is."""
    try:
        yield
    except (zipfile.BadZipFile, OSError):
        raise
    except Exception as error:
        raise zipfile.BadZipFile(f"{type(error).__name__}: {error}") from error


def _wrong(entries: list[zipfile.ZipInfo], folder: str) -> str | None:
    """What is wrong with the names of an archive."""
    names: set[str] = set()
    for entry in entries:
        name = entry.orig_filename
        if name != entry.filename or not name.isascii() or not name.isprintable() or "\\" in name:
            return f"holds a name of odd characters ({name!r:.60})"
        if not name.startswith(folder) or folder == "/":
            return f"holds {name!r:.60} beside the folder {folder!r:.60}"
        if name.lower() in names:
            return f"holds {name!r:.60} twice"
        names.add(name.lower())
    return None


def _check_directory(path: Path) -> None:
    """Make sure that the directory stands at the end of the file, where both ways of looking for it lead."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(size - _END.size - _LOCATOR.size - _END64.size, 0))
        tail = file.read().rjust(_END.size + _LOCATOR.size + _END64.size, b"\0")
    mark, *_, length, start, comment = _END.unpack(tail[-_END.size :])
    if mark != b"PK\x05\x06" or comment:
        raise zipfile.BadZipFile("its directory is not at its end")
    end = size - _END.size
    locator = _LOCATOR.unpack(tail[_END64.size : -_END.size])
    if locator[0] == b"PK\x06\x07":
        end -= _LOCATOR.size + _END64.size
        mark, *_, wide_length, wide_start = _END64.unpack(tail[: _END64.size])
        agree = all(old in (new, _NONE32) for old, new in ((length, wide_length), (start, wide_start)))
        if mark != b"PK\x06\x06" or locator[2] != end or not agree:
            raise zipfile.BadZipFile("its directory is said to be in two places")
        length, start = wide_length, wide_start
    if start + length != end:
        raise zipfile.BadZipFile("its directory is not where it is said to be")
