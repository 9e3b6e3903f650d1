"""Two ends of a pipeline in threads of their own: a source that is read ahead, and a sink that is written behind."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from threading import Event, Thread
from typing import Any, Final, Generic, TypeVar

from meanshifter.errors import RunError

Item = TypeVar("Item")
_PAUSE: Final = 0.1
"""Seconds after which a thread that waits looks whether it is to stop."""


class _End:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class ReadAhead(Generic[Item]):
    """Iterate over `source` in a thread that is at most `ahead` items ahead; use it as a context, which stops it.

    Args:
        source: what is read; an error that it raises is raised after the items before it.
        ahead: items that wait, 1 or more.
        drop: leave out items that come while `ahead` are waiting, as for a camera, and count them in `dropped`.
    """

    def __init__(self, source: Iterable[Item], ahead: int, *, drop: bool = False) -> None:
        self.dropped = 0
        self._source, self._drop = source, drop
        self._waiting: queue.Queue[Item | _End] = queue.Queue(ahead)
        self._stop = Event()
        self._thread = Thread(target=self._read, name="meanshifter-read", daemon=True)

    def __enter__(self) -> Iterator[Item]:
        self._thread.start()
        return self._items()

    def __exit__(self, *_: object) -> None:
        """Stop reading, and wait until the thread no longer uses the source."""
        self._stop.set()
        self._thread.join()

    def _items(self) -> Iterator[Item]:
        while True:
            try:  # on Windows, only waiting with a timeout can be interrupted
                item = self._waiting.get(timeout=_PAUSE)
            except queue.Empty:
                continue
            if not isinstance(item, _End):
                yield item
                continue
            if item.error is not None:
                raise item.error
            return

    def _read(self) -> None:
        end = _End()
        try:
            for item in self._source:
                self._put(item, drop=self._drop)
                if self._stop.is_set():
                    return
        except BaseException as error:  # raised where the items are used
            end = _End(error)
        self._put(end)

    def _put(self, item: Item | _End, *, drop: bool = False) -> None:
        while not self._stop.is_set():
            try:
                self._waiting.put(item, block=not drop, timeout=_PAUSE)
                return
            except queue.Full:
                if drop:
                    self.dropped += 1
                    return


class WriteBehind(Generic[Item]):
    """Call `write` with each item in a thread, in order; at most `behind` items wait.

    An error in `write` ends the writing, and is raised by the next `put` or by `finish`.
    """

    def __init__(self, write: Callable[[Item], Any], behind: int) -> None:
        self._write = write
        self._waiting: queue.Queue[Item | _End] = queue.Queue(behind)
        self._error: BaseException | None = None
        self._thread = Thread(target=self._run, name="meanshifter-write", daemon=True)
        self._thread.start()

    def put(self, item: Item) -> None:
        """Add an item; waits while `behind` others do."""
        self._put(item)

    def finish(self) -> None:
        """Write what waits, and end the thread."""
        if self._thread.is_alive():
            self._put(_End())
            self._thread.join()
        self._raise()

    def abort(self) -> None:
        """End the thread without writing what waits."""
        self._error = self._error or RunError("writing was aborted")
        self._thread.join()

    def _put(self, item: Item | _End) -> None:
        while True:
            self._raise()
            try:
                self._waiting.put(item, timeout=_PAUSE)
                return
            except queue.Full:
                continue

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while self._error is None:
            try:
                item = self._waiting.get(timeout=_PAUSE)
            except queue.Empty:
                continue
            if isinstance(item, _End):
                return
            try:
                self._write(item)
            except BaseException as error:  # raised where items are added
                self._error = error
