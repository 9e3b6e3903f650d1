"""What an archive's label maps were made of: a line of JSON for every image that is finished.

The first line says with which weights and settings; a run with others starts a new manifest. Only the process that
leads a run writes here, so that no line is ever shared, and a line that a kill cut off is dropped by the next run.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from meanshifter.data.remote import file_system, is_address
from meanshifter.errors import InputError
from meanshifter.inference.listing import MANIFEST, Entry
from meanshifter.inference.store import Store
from meanshifter.utils.locking import TAKEN, lock_file

FORMAT_VERSION: Final = 1
FLUSH_SECONDS: Final = 30
"""How long an address waits for the lines of its manifest, which it takes in parts."""
Line = dict[str, Any]


class Done:
    """The images that need not be done again: 16 bytes each, whatever the length of their names."""

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
    """Says of an image whether it need not be read. It is sent to other processes as it is."""

    done: Done
    store: Store
    failed: frozenset[str] = frozenset()
    """Addresses that this run has given up."""
    folders: tuple[str, ...] = ("",)
    """Where below the store its label maps are: `Work.folders`."""

    def __call__(self, entry: Entry) -> bool:
        """Whether it is finished, or given up."""
        return (entry in self.done and self._is_there(entry)) or entry.address in self.failed

    def _is_there(self, entry: Entry) -> bool:
        return all(self.store.has(folder + entry.place) for folder in self.folders)


def identity(input: str, output: str, size: int | None, stamp: str | None) -> bytes:  # noqa: A002
    """What must agree for a line of the manifest to speak of an image as it is now."""
    return hashlib.sha256(json.dumps([input, output, size, stamp]).encode()).digest()[:16]


def line_of(entry: Entry, error: str | None = None) -> Line:
    """The line that says that `entry` is finished, or why it cannot be."""
    if error is not None:
        return {"input": entry.address, "error": error}
    return {"input": entry.address, "output": entry.place, "size": entry.size, "stamp": entry.stamp}


class Log(Protocol):
    """Where the lines of a manifest are kept."""

    restarted: bool
    """Whether there was a manifest of other weights or settings, or one to be overwritten."""

    def lines(self) -> Iterator[Line]:
        """What earlier runs of the same settings have written."""

    def add(self, lines: list[Line]) -> None:
        """Append."""

    def flush(self) -> None:
        """Write what waits."""

    def close(self) -> None:
        """Write what waits, and give up the place."""


def open_log(out: str, settings: dict[str, Any], *, overwrite: bool) -> Log:
    """The manifest of an output folder or address, to be gone on with where its settings are the same.

    Raises:
        InputError: another run is writing it, or it cannot be read or written.
    """
    if out.startswith("file://"):
        out = file_system(out)[1]
    header = json.loads(json.dumps({"format_version": FORMAT_VERSION, **settings}))
    return _Parts(out, header, overwrite) if is_address(out) else _File(Path(out), header, overwrite)


def _agree(first: Line, header: Line) -> bool:
    """Whether two runs make the same files; versions may differ, lest an upgrade does an archive again."""
    return {**first, "version": None} == {**header, "version": None}


def _dumped(lines: Iterable[Line]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


class _File:
    """One file that grows, under a lock."""

    def __init__(self, folder: Path, header: Line, overwrite: bool) -> None:
        self.path = folder / MANIFEST
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("ab+", buffering=0)
            self._lock()
            self._drop_half_line()
            first = self._first()
            self.restarted = first is not None and (overwrite or not _agree(first, header))
            if self.restarted:
                self._put_aside(first or {})
            if first is None or self.restarted:
                self.add([header])
        except OSError as error:
            reason = error.strerror or type(error).__name__
            raise InputError(
                f"{self.path}: cannot be written ({reason}); choose a place with space and write access"
            ) from error

    def lines(self) -> Iterator[Line]:
        """All but the first."""
        with self.path.open("rb") as file:
            next(file, None)
            yield from _parsed(file, self.path)

    def add(self, lines: list[Line]) -> None:
        """Append in one call, which no other process divides."""
        data = _dumped(lines)
        try:
            while data:  # a disk that fills up takes a part
                data = data[self._file.write(data) :]
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written ({error.strerror}); free space and run it again"
            ) from error

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Give up the lock."""
        self._file.close()

    def _lock(self) -> None:
        try:
            lock_file(self._file)
        except OSError as error:
            self._file.close()
            if error.errno not in TAKEN:
                raise
            raise InputError(
                f"{self.path}: another run is writing its label maps there; wait for it, or use another --out"
            ) from None

    def _drop_half_line(self) -> None:
        """A kill, or a full disk, may have cut the last line."""
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

    def _first(self) -> Line | None:
        self._file.seek(0)
        with self.path.open("rb") as file:
            return next(_parsed(file, self.path), None)

    def _put_aside(self, first: Line) -> None:
        """Keep the old manifest under the hash of its weights; the lock goes to the new file."""
        old = self._file
        self.path.replace(self.path.with_name(f"manifest.{first.get('weights', 'old')}.{int(time.time())}.jsonl"))
        self._file = self.path.open("ab+", buffering=0)
        self._lock()
        old.close()


class _Parts:
    """Objects manifest/GENERATION-PART.jsonl, since objects cannot grow; each has the first line of its generation."""

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
        self._parts = len([name for name in names if self._is_mine(name)])

    def lines(self) -> Iterator[Line]:
        """Those of all parts of this generation."""
        for name in self._names():
            if self._is_mine(name):
                lines = self._read(name)
                next(lines)
                yield from lines

    def add(self, lines: list[Line]) -> None:
        """Keep them until the next part is due."""
        self._waiting += lines
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def close(self) -> None:
        """Write the last part."""
        self.flush()

    def flush(self) -> None:
        """Write a part."""
        if self._waiting:
            self._parts += 1
            place = f"{self._folder}/{self._generation:06}-{self._parts:09}.jsonl"
            try:
                self._files.pipe_file(place, _dumped([self._header, *self._waiting]))
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise InputError(f"{place}: cannot be written ({reason}); check your access to it") from error
            self._waiting = []
        self._flushed = time.monotonic()

    def _names(self) -> list[str]:
        try:
            return sorted(name for name in self._files.ls(self._folder, detail=False) if name.endswith(".jsonl"))
        except FileNotFoundError:
            return []
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"{self._folder}: cannot be listed ({reason}); check your access to it") from error

    def _is_mine(self, name: str) -> bool:
        return name.rpartition("/")[2].startswith(f"{self._generation:06}-")

    def _read(self, name: str) -> Iterator[Line]:
        return _parsed(self._files.cat_file(name).splitlines(), name)


def _parsed(lines: Iterable[bytes], name: object) -> Iterator[Line]:
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict):
            raise InputError(f"{name}: line {number} is no JSON object; mend or remove it, or use --overwrite")
        yield line
