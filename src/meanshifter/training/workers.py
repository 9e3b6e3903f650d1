"""Data workers that die: which sample they were reading, told in one line."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ctypes import c_char, c_int64
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import RawArray
from typing import Any, Generic, TypeVar

from torch.utils.data import Dataset, get_worker_info

from meanshifter.errors import RunError, one_line

Read = TypeVar("Read")
_NONE = -1
_LONGEST_REASON = 400


class Noted(Dataset[Read], Generic[Read]):
    """A data set that notes, where the main process sees it, which position each worker is reading."""

    def __init__(self, inner: Dataset[Read], workers: int) -> None:
        self._inner = inner
        self._notes: Any = RawArray(c_int64, [0, _NONE] * workers)  # process id and position of each worker
        self._reason: Any = RawArray(c_char, _LONGEST_REASON)

    def __getitem__(self, position: int) -> Read:
        info = get_worker_info()
        if info is None:
            return self._inner[position]
        pid, place = 2 * info.id, 2 * info.id + 1
        self._notes[pid], self._notes[place] = os.getpid(), position
        read = self._inner[position]
        self._notes[place] = _NONE
        return read

    def held_by(self, process: int | None) -> int | None:
        """The position that a worker was reading; None: it was between two."""
        for pid, position in zip(self._notes[::2], self._notes[1::2], strict=True):
            if pid == process and position != _NONE:
                return int(position)
        return None

    @property
    def unsent(self) -> str:
        """Why a worker could not send a batch; empty where none failed to."""
        reason: bytes = self._reason.value
        return reason.decode("utf-8", "replace")

    @unsent.setter
    def unsent(self, reason: str) -> None:
        self._reason.value = reason.encode()[: _LONGEST_REASON - 1]


def end_if_unsent() -> None:
    """In a worker: end with a note where a batch cannot be sent, for which the main process would wait for ever."""
    info = get_worker_info()
    assert info is not None  # of a worker
    noted = info.dataset

    def end(error: BaseException, _batch: object) -> None:
        if isinstance(noted, Noted):
            noted.unsent = one_line(f"{type(error).__name__}: {error}")
        os._exit(1)

    Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


def watched(loader: Iterable[Any], noted: Noted[Any], describe: Callable[[int], str]) -> Iterator[Any]:
    """The batches of a `DataLoader` of `noted`.

    Args:
        loader: gives the batches.
        noted: its data set.
        describe: from a position to the files that are read for it.

    Raises:
        RunError: a worker died, such as by a crash in a decoder or by the system for want of memory.
    """
    before = set(multiprocessing.active_children())
    with _own_handler():
        batches = _start(loader)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:  # of the loader, or of the connection over which tensors come
            for worker in workers:
                worker.join(0.1)  # one that is dying
            dead = [worker for worker in workers if worker.exitcode not in (None, 0)]
            if not dead:
                raise
            raise RunError(_epitaph(dead, noted, describe)) from error
        yield batch


def _start(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's iterator.

    Where files or processes run out, torch leaves one that is half built, and whose deletion fails with a traceback of
    its own beside the reason: it is deleted here, in silence.
    """
    try:
        return iter(loader)
    except OSError as error:
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            traceback.clear_frames(error.__traceback__)
        finally:
            sys.unraisablehook = hook
        raise


@contextmanager
def _own_handler() -> Iterator[None]:
    """Take back, afterwards, torch's handler for children that end: it raises wherever the main process happens to be.

    Without it the loader itself finds out, as soon as a batch is wanted that does not come.
    """
    number = getattr(signal, "SIGCHLD", None)  # which Windows has not
    handler = None if number is None else signal.getsignal(number)
    yield
    if number is not None and handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _epitaph(dead: list[BaseProcess], noted: Noted[Any], describe: Callable[[int], str]) -> str:
    told = []
    for worker in dead:
        position = noted.held_by(worker.pid)
        held = "between two samples" if position is None else f"reading {describe(position)}"
        told.append(f"{_cause(worker.exitcode)} while {held}")
    if noted.unsent:
        told = [f"unable to send a batch ({noted.unsent})"]
        remedy = "set data.workers 0, or raise the limit that it names"
    elif any(worker.exitcode == -getattr(signal, "SIGBUS", 0) for worker in dead):
        remedy = "shared memory has run out: give a container more, such as --shm-size 2g, or set data.workers 0"
    else:
        remedy = "if memory ran out, lower data.workers or data.cache, else look at what was read"
    return f"a data worker was {'; another was '.join(told)}; {remedy}; --resume goes on from the last checkpoint"


def _cause(status: int | None) -> str:
    if status is None or status >= 0:
        return f"ended with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
