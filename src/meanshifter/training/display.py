"""What a run shows while it runs: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Meter:
    """Time of the steps since the last reading, and the share of it spent waiting for data."""

    def __init__(self) -> None:
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time within the context counts as waiting."""
        began = time.perf_counter()
        yield
        self.waited += time.perf_counter() - began

    def read(self) -> tuple[float, float]:
        """Images per second and share of time spent waiting, since the last reading."""
        elapsed = max(time.perf_counter() - self.since, 1e-9)
        speed, share = self.images / elapsed, self.waited / elapsed
        self.restart()
        return speed, share

    def restart(self) -> None:
        """Forget what was counted, after work that is no training."""
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()


class Display:
    """The progress of a training: loss, learning rate, images per second, waiting for data, time left."""

    def __init__(self, name: str, steps: int, start: int, *, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, quiet=quiet)
        self.name, self.steps = name, steps
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self.task = self.progress.add_task(name, total=steps, completed=start, numbers="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def step(self, step: int) -> None:
        """Steps done."""
        self.progress.update(self.task, completed=step)

    def say_numbers(self, step: int, values: Mapping[str, float]) -> None:
        """The figures of the last steps: in the bar on a terminal, as a line elsewhere."""
        text = (
            f"loss {values['loss']:.3f} · lr {values['lr']:.2e} · {values['images_per_second']:.1f} images/s "
            f"· waiting {values['data_wait']:.0%}"
        )
        self.progress.update(self.task, numbers=text)
        if not self.console.is_terminal:
            self.say(f"{self.name} {step}/{self.steps} · {text}")

    def say(self, text: str) -> None:
        """One line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True, markup=False)
