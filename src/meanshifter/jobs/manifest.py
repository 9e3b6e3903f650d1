"""The manifest of an archive, one JSON line for every finished image, and the store that its results are written to.

The first line holds the weights and settings; a run with others starts a new manifest. Only the main process of a run
writes it, so that lines never interleave. A line that was cut off by a kill is dropped by the next run.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from meanshifter.data.remote import file_system, is_address, leads_out
from meanshifter.errors import InputError, summarize_error
from meanshifter.jobs.listing import MANIFEST, Entry, cannot_list
from meanshifter.utils.files import TAKEN, lock_file

FORMAT_VERSION: Final = 1
FLUSH_SECONDS: Final = 30
"""Interval between parts of a manifest at an address, which cannot be appended to."""
Line = dict[str, Any]


class Done:
    """The finished images of a manifest, as 16-byte digests."""

    def __init__(self, lines: Iterable[Line] = ()) -> None:
        digests = (identity(**line) for line in lines if "error" not in line)
        self.digests: npt.NDArray[np.bytes_] = np.sort(np.fromiter(digests, dtype="S16"))

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, entry: Entry) -> bool:
        wanted = np.array([identity(entry.address, entry.place, entry.size, entry.stamp)], dtype="S16")
        place = int(np.searchsorted(self.digests, wanted)[0])
        return bool((self.digests[place : place + 1] == wanted).any())


@dataclass(frozen=True)
class Known:
    """Which images are skipped. It is pickled to workers."""

    done: Done
    store: Store
    failed: frozenset[str] = frozenset()
    """Addresses that have failed in this run."""
    folders: tuple[str, ...] = ("",)
    """Folders of its label maps below the store: `Work.folders`."""

    def __call__(self, entry: Entry) -> bool:
        """Whether the image is finished, or has failed in this run."""
        is_done = entry in self.done and all(self.store.has(folder + entry.place) for folder in self.folders)
        return is_done or entry.address in self.failed


def identity(input: str, output: str, size: int | None, stamp: str | None) -> bytes:  # noqa: A002
    """Digest of what must be unchanged for an image to count as finished."""
    return hashlib.sha256(json.dumps([input, output, size, stamp]).encode()).digest()[:16]


def line_of(entry: Entry, error: str | None = None) -> Line:
    """The manifest line of a finished image, or of one that failed with `error`."""
    if error is not None:
        return {"input": entry.address, "error": error}
    return {"input": entry.address, "output": entry.place, "size": entry.size, "stamp": entry.stamp}


def open_log(out: str, settings: dict[str, Any], *, overwrite: bool) -> Log:
    """Open the manifest of an output folder or address, and continue it if its settings are the same.

    Raises:
        InputError: another run is writing it, or it cannot be read or written.
    """
    if out.startswith("file://"):
        out = file_system(out)[1]
    header = json.loads(json.dumps({"format_version": FORMAT_VERSION, **settings}))
    return _Parts(out, header, overwrite) if is_address(out) else _File(Path(out), header, overwrite)


def _agree(first: Line, header: Line) -> bool:
    """Whether two runs write the same files; versions may differ, so that an upgrade does not redo an archive."""
    return {**first, "version": None} == {**header, "version": None}


def _dumped(lines: Iterable[Line]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


class _File:
    """A manifest in one local file, under a lock.

    `restarted` tells whether a manifest was there that has other weights or settings, or is to be overwritten.
    """

    def __init__(self, folder: Path, header: Line, overwrite: bool) -> None:
        self.path = folder / MANIFEST
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("ab+", buffering=0)
            self._lock()
            self._drop_half_line()
            self._file.seek(0)
            with self.path.open("rb") as file:
                first = next(_parsed(file, self.path), None)
            self.restarted = first is not None and (overwrite or not _agree(first, header))
            if self.restarted:
                self._archive(first or {})
            if first is None or self.restarted:
                self.add([header])
        except OSError as error:
            reason = summarize_error(error)
            raise InputError(
                f"{self.path}: cannot be written ({reason}); choose a place with space and write access"
            ) from error

    def lines(self) -> Iterator[Line]:
        """What earlier runs with the same settings wrote."""
        with self.path.open("rb") as file:
            next(file, None)
            yield from _parsed(file, self.path)

    def add(self, lines: list[Line]) -> None:
        data = _dumped(lines)
        try:
            while data:  # a disk that fills up accepts only a part
                data = data[self._file.write(data) :]
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({summarize_error(error)}); free space and run it again"
            ) from error

    def flush(self) -> None:
        """Do nothing: lines are written immediately."""

    def close(self) -> None:
        self._file.close()

    def _lock(self) -> None:
        try:
            lock_file(self._file)
        except OSError as error:
            self._file.close()
            if error.errno not in TAKEN:
                raise
            raise InputError(
                f"{self.path}: another run is writing to this folder; wait for it, or choose another --out"
            ) from None

    def _drop_half_line(self) -> None:
        """Drop a last line that a kill, or a full disk, has cut off."""
        size = end = self._file.seek(0, os.SEEK_END)
        while end:
            start = max(end - 2**16, 0)
            self._file.seek(start)
            found = self._file.read(end - start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            self._file.truncate(end)

    def _archive(self, first: Line) -> None:
        """Rename the old manifest after the hash of its weights, and lock a new file."""
        old = self._file
        self.path.replace(self.path.with_name(f"manifest.{first.get('weights', 'old')}.{int(time.time())}.jsonl"))
        self._file = self.path.open("ab+", buffering=0)
        self._lock()
        old.close()


class _Parts:
    """A manifest at an address, in objects manifest/GENERATION-PART.jsonl, as objects cannot be appended to.

    Every part starts with the header of its generation.
    """

    def __init__(self, root: str, header: Line, overwrite: bool) -> None:
        self._files, base = file_system(root)
        self._folder, self._header = f"{base.rstrip('/')}/manifest", header
        self._waiting: list[Line] = []
        self._flushed = time.monotonic()
        names = self._names()
        last = int(names[-1].rpartition("/")[2].partition("-")[0]) if names else 0
        same = bool(names) and _agree(next(self._read(names[-1])), header) and not overwrite
        self.restarted = bool(names) and not same
        self._generation = last if same else last + 1
        self._parts = len([name for name in names if self._is_current(name)])

    def lines(self) -> Iterator[Line]:
        """What earlier runs with the same settings wrote."""
        for name in filter(self._is_current, self._names()):
            lines = self._read(name)
            next(lines)
            yield from lines

    def add(self, lines: list[Line]) -> None:
        """Collect lines until the next part is due."""
        self._waiting += lines
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def close(self) -> None:
        self.flush()

    def flush(self) -> None:
        """Write the collected lines as a part."""
        if self._waiting:
            self._parts += 1
            place = f"{self._folder}/{self._generation:06}-{self._parts:09}.jsonl"
            try:
                self._files.pipe_file(place, _dumped([self._header, *self._waiting]))
            except Exception as error:
                reason = summarize_error(error)
                raise InputError(f"{place}: cannot be written ({reason}); check your access to it") from error
            self._waiting = []
        self._flushed = time.monotonic()

    def _names(self) -> list[str]:
        try:
            return sorted(name for name in self._files.ls(self._folder, detail=False) if name.endswith(".jsonl"))
        except FileNotFoundError:
            return []
        except Exception as error:
            raise cannot_list(f"{self._folder}:", error, "check your access to it") from error

    def _is_current(self, name: str) -> bool:
        return name.rpartition("/")[2].startswith(f"{self._generation:06}-")

    def _read(self, name: str) -> Iterator[Line]:
        return _parsed(self._files.cat_file(name).splitlines(), name)


Log = _File | _Parts


def _parsed(lines: Iterable[bytes], name: object) -> Iterator[Line]:
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise InputError(f"{name}: line {number} is not a JSON object; fix or remove it, or use --overwrite")
        yield line


_NAME_ERRORS: Final = (errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.EISDIR)
"""Errors that concern a single file name, so that other files can still be written."""


class NoSpaceError(InputError):
    """The store cannot be written to, neither this file nor the next."""


def _check_inside(place: str) -> None:
    if leads_out(place):
        raise InputError(f"{place}: points outside the output folder; rename the input")


class _FolderStore:
    """A local folder. Files are written to a subfolder, which is easy to clean up, and renamed into place."""

    def __init__(self, root: str) -> None:
        self.root = Path(root)
        self._unfinished = self.root / ".unfinished"

    def write(self, place: str, data: bytes) -> None:
        """Write `data` to `place` atomically, over an existing file.

        Raises:
            NoSpaceError: nothing can be written here.
            InputError: a file of this name cannot be written.
        """
        _check_inside(place)
        path, temporary = self.root / place, self._unfinished / uuid4().hex
        try:
            self._unfinished.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            reason = summarize_error(error)
            if error.errno in _NAME_ERRORS:
                raise InputError(f"{path}: cannot be written ({reason}); rename the input") from error
            raise NoSpaceError(
                f"{path}: cannot be written ({reason}); choose a place with space and write access"
            ) from error

    def has(self, place: str) -> bool:
        return os.path.lexists(self.root / place)

    def clean(self) -> None:
        """Remove what killed processes have left."""
        shutil.rmtree(self._unfinished, ignore_errors=True)


class _AddressStore:
    """An fsspec address, such as a bucket, where objects are written atomically."""

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self._files, self._base = file_system(self.root)

    def write(self, place: str, data: bytes) -> None:
        """As `_FolderStore.write`."""
        _check_inside(place)
        try:
            self._files.pipe_file(f"{self._base}/{place}", data)
        except Exception as error:  # as in data/remote.py
            reason = summarize_error(error)
            raise NoSpaceError(
                f"{self.root}/{place}: cannot be written ({reason}); check the address and your access to it"
            ) from error

    def has(self, place: str) -> bool:
        """Return True without a request, which would cost as much as the label map."""
        return True

    def clean(self) -> None:
        """Do nothing: there are no partial objects."""


Store = _FolderStore | _AddressStore


def open_store(out: str) -> Store:
    """Open the store at a path or an fsspec address; file:// is a path.

    Raises:
        InputError: an unknown protocol, or one whose package is not installed.
    """
    if out.startswith("file://"):
        out = file_system(out)[1]
    return _AddressStore(out) if is_address(out) else _FolderStore(out)
