"""Ctrl-C and SIGTERM during a run: finish the step, save, and say how to continue."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop and has saved; carries the sentence that says how to continue.

    `said` is true where another process of the run says it.
    """

    def __init__(self, message: str, number: int, *, said: bool = False) -> None:
        super().__init__(message)
        self.signal, self.said = number, said


class Interrupt:
    """Within the context, the first SIGINT or SIGTERM only sets `asked`; a second one acts at once."""

    def __init__(self, *, speaks: bool = True) -> None:
        self.asked: int = 0
        self.speaks = speaks
        self._saved: str | None = None
        self._before: dict[int, Any] = {}
        self._unraisable = sys.unraisablehook
        self._again: threading.Timer | None = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._notice)
            self._unraisable, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            sys.unraisablehook = self._unraisable
        if self._again is not None:
            self._again.cancel()

    def _swallowed(self, lost: sys.UnraisableHookArgs) -> None:
        """Ask again, soon, where the interpreter drops exceptions, as in what it calls around the fork of a worker."""
        if not isinstance(lost.exc_value, Stopped):
            self._unraisable(lost)
            return
        signal.signal(lost.exc_value.signal, self._notice)
        self._again = threading.Timer(0.1, os.kill, (os.getpid(), lost.exc_value.signal))
        self._again.daemon = True
        self._again.start()

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        signal.signal(number, self._before[number])
        if self._saved is not None:
            self.leave(self._saved)

    @contextmanager
    def at_once(self, message: str) -> Iterator[None]:
        """Within, where everything is saved, the first signal already ends the run, as one before it does."""
        self._saved = message
        try:
            if self.asked:
                self.leave(message)
            yield
        finally:
            self._saved = None

    def leave(self, message: str) -> NoReturn:
        """End the run, saved as it is."""
        raise Stopped(message, self.asked, said=not self.speaks)
