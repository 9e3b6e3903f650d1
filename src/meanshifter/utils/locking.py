"""Locks on open files, which the system takes back when a process ends, however it ends."""

from __future__ import annotations

import errno
from importlib import import_module
from typing import IO, Any

_posix: Any
try:
    _posix = import_module("fcntl")
except ImportError:  # Windows
    _posix = None

TAKEN = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)
"""Numbers of the errors that say that another holds a lock."""
_FAR = 2**30
"""Windows keeps others from reading and writing what is locked, so that it is a byte behind all content."""


def lock_file(file: IO[Any], *, by_process: bool = False) -> None:
    """Hold `file` from now on; others can still read and write it.

    Args:
        file: an open file, which gives the lock back as it is closed.
        by_process: the holder is this process and not the open file: processes that are forked from it do not keep the
            lock alive, and the same process may take it twice.

    Raises:
        OSError: another holds it (`TAKEN`), or the file system has no locks.
    """
    if _posix is not None:
        (_posix.lockf if by_process else _posix.flock)(file, _posix.LOCK_EX | _posix.LOCK_NB)
        return
    msvcrt: Any = import_module("msvcrt")
    before = file.tell()
    file.seek(_FAR)
    try:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    finally:
        file.seek(before)
