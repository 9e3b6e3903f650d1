"""Ctrl-C and SIGTERM during a run: finish the step, save, and say how to continue."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, NoReturn, Self


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop and has saved; carries the sentence that says how to continue."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.signal = number


class Interrupt:
    """Within the context, the first SIGINT or SIGTERM only sets `asked`; a second one acts at once."""

    def __init__(self) -> None:
        self.asked: int = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        signal.signal(number, self._before[number])

    def leave(self, message: str) -> NoReturn:
        """End the run, saved as it is."""
        raise Stopped(message, self.asked)
