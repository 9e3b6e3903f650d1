"""A file that one process at a time may hold, given back by the system when that process ends, however it ends."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import IO

from meanshifter.errors import InputError
from meanshifter.utils.locking import TAKEN, lock_file


class Lock:
    """A lock on a file that belongs to the process: workers forked from it do not keep it alive after a kill."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def take(self, refusal: str) -> None:
        """Hold the lock from now on, and say in the file who does.

        Raises:
            InputError: another process holds it; begins with `refusal`. Or the folder cannot be made.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.path.open("a+", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"{self.path.parent}: cannot be written ({error.strerror}); choose a place with space and write access"
            ) from error
        try:
            lock_file(file, by_process=True)
        except OSError as error:
            file.seek(0)
            holder = file.read().strip()
            file.close()
            if error.errno in TAKEN:
                raise InputError(f"{refusal} ({holder}); wait until it ends, or choose another --out") from error
            return  # a file system without locks
        if not self._is_there(file):  # the holder removed it between opening and locking
            file.close()
            self.take(refusal)
            return
        with suppress(OSError):  # who holds it is a courtesy
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        self._file = file

    def _is_there(self, file: IO[str]) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False

    def drop(self) -> None:
        """Give the lock back, and remove its file."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            self._file.close()
            self._file = None
