"""Where the results of an archive go: a folder, or an fsspec address."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Final, Protocol
from uuid import uuid4

from meanshifter.data.remote import file_system, is_address, leads_out
from meanshifter.errors import InputError

_OF_THIS_NAME: Final = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR)
"""Errors that say something about one name, and nothing about the next."""


class NoSpaceError(InputError):
    """Results cannot be written here, this one no less than the next."""


class Store(Protocol):
    """Files below one place, each there as a whole or not at all."""

    def write(self, place: str, data: bytes) -> None:
        """Put `data` at `place`, over what is there.

        Raises:
            NoSpaceError: nothing can be written here.
            InputError: this name cannot be.
        """

    def has(self, place: str) -> bool:
        """Whether `place` is there, as far as that can be told without asking over a network."""

    def clean(self) -> None:
        """Remove what killed processes have left."""


def _refuse_outside(place: str) -> None:
    if leads_out(place):
        raise InputError(f"{place}: leads out of the output folder; rename the input")


class FolderStore:
    """A local folder. Files are written in a folder of their own inside, which is easy to clean, and renamed."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self._unfinished = self.root / ".unfinished"

    def write(self, place: str, data: bytes) -> None:
        """As `Store.write`."""
        _refuse_outside(place)
        path, temporary = self.root / place, self._unfinished / uuid4().hex
        try:
            self._unfinished.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            reason = error.strerror or type(error).__name__
            if error.errno in _OF_THIS_NAME:
                raise InputError(f"{path}: cannot be written ({reason}); rename the input") from error
            raise NoSpaceError(
                f"{path}: cannot be written ({reason}); choose a place with space and write access"
            ) from error

    def has(self, place: str) -> bool:
        """Whether the file is there."""
        return os.path.lexists(self.root / place)

    def clean(self) -> None:
        """Remove unfinished files."""
        shutil.rmtree(self._unfinished, ignore_errors=True)


class AddressStore:
    """An fsspec address, such as that of a bucket, where an object is there as a whole or not at all."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._files, self._base = file_system(self.root)

    def write(self, place: str, data: bytes) -> None:
        """As `Store.write`."""
        _refuse_outside(place)
        try:
            self._files.pipe_file(f"{self._base}/{place}", data)
        except Exception as error:  # as in data/remote.py
            reason = " ".join(str(error).split()) or type(error).__name__
            raise NoSpaceError(
                f"{self.root}/{place}: cannot be written ({reason}); check the address and your access to it"
            ) from error

    def has(self, place: str) -> bool:
        """Taken for granted: asking would cost as much as the label map."""
        return True

    def clean(self) -> None:
        """Nothing: objects are never half there."""


def open_store(out: str) -> Store:
    """The store at a path or an fsspec address; file:// is a path.

    Raises:
        InputError: a protocol that is not known, or whose package is not installed.
    """
    if out.startswith("file://"):
        out = file_system(out)[1]
    return AddressStore(out) if is_address(out) else FolderStore(out)
