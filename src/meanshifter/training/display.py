"""What a run shows while it runs: a bar on a terminal, lines elsewhere, and how long it will take on both."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from meanshifter.errors import one_line, printable

WARM_UP: Final = 2
"""Steps of a process that tell nothing of the others: kernels are compiled, workers started, caches filled."""
ESTIMATE_AFTER: Final = WARM_UP + 1
EARLY: Final = (ESTIMATE_AFTER, 10, 30, 100, 300)
"""Steps of a process after which a line is shown where that of `log_every` is still far off."""


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


class Pace:
    """How long the steps and evaluations of a training take, and so how long the rest will.

    The mean of the last steps, not their median: batches of several workers arrive together, and the median of waits
    of 0, 0, 0 and 4 seconds is 0.
    """

    def __init__(self, steps: int, evaluate_every: int) -> None:
        self.steps, self.evaluate_every = steps, evaluate_every
        self.evaluation: float | None = None
        """Seconds of one evaluation; None: not known yet."""
        self.seen = 0
        self._recent: deque[float] = deque(maxlen=50)
        self._since = self._began = time.perf_counter()

    def step(self) -> None:
        """A step is done."""
        now = time.perf_counter()
        self.seen += 1
        if self.seen > WARM_UP:
            self._recent.append(now - self._since)
        self._since = now

    def restart(self) -> None:
        """Other work is done, which counts to no step."""
        self._since = time.perf_counter()

    def left(self, done: int) -> float | None:
        """Seconds from step `done` to the end, evaluations included; None: nothing is known yet."""
        if not self._recent:
            return None
        evaluations = self.evaluations(self.steps) - self.evaluations(done)
        seconds = sum(self._recent) / len(self._recent) * (self.steps - done)
        return seconds + evaluations * (0.0 if self.evaluation is None else self.evaluation)

    def whole(self, done: int) -> float | None:
        """Seconds from the first step of this process to the end; None: nothing is known yet."""
        left = self.left(done)
        return None if left is None else time.perf_counter() - self._began + left

    def evaluations(self, done: int) -> int:
        """How many evaluations are due in the first `done` steps."""
        regular = done // self.evaluate_every if self.evaluate_every > 0 else 0
        last = done == self.steps and (self.evaluate_every == 0 or done % self.evaluate_every > 0)
        return regular + last


class Display:
    """The progress of a training: loss, learning rate, images per second, waiting for data, time left."""

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        self.console = Console(file=sys.stderr, quiet=quiet)
        self.name, self.quiet, self.pace = name, quiet, Pace(0, 0)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("{task.fields[left]}"),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
        )
        self.task = self.progress.add_task(name, total=None, numbers="", left="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def introduce(self, lines: Iterable[str]) -> None:
        """What is about to be trained, before the first step."""
        for line in lines:
            self.say(one_line(line))

    def begin(self, steps: int, start: int, *, evaluate_every: int, evaluation: float | None = None) -> None:
        """`steps` steps are to be done of which `start` are, with evaluations that take so many seconds."""
        self.pace = Pace(steps, evaluate_every)
        self.pace.evaluation = evaluation
        self.progress.update(self.task, total=steps, completed=start)

    @property
    def estimates(self) -> bool:
        """Whether the step that was just done is the one after which the whole time is said."""
        return not self.quiet and self.pace.seen == ESTIMATE_AFTER

    def step(self, done: int) -> None:
        """So many steps are done."""
        self.pace.step()
        self.progress.update(self.task, completed=done, left=self._left(done))

    def evaluated(self, seconds: float) -> None:
        """An evaluation is done, which took so long."""
        self.pace.evaluation = seconds
        self.pace.restart()

    def say_estimate(self, done: int) -> None:
        """How long all of it takes, where that is known."""
        whole = self.pace.whole(done)
        if whole is not None:
            self.say(f"{self.name} {done}/{self.pace.steps} · about {spell(whole)} in all, evaluations included")

    def say_early(self, done: int, log_every: int) -> None:
        """Lines elsewhere than on a terminal, until the first of those that come every `log_every` steps."""
        early = self.pace.seen in EARLY and self.pace.seen > ESTIMATE_AFTER
        if early and self.pace.seen < log_every and not self.console.is_terminal:
            self.say(f"{self.name} {done}/{self.pace.steps} · {self._left(done)}")

    def say_numbers(self, done: int, values: Mapping[str, float]) -> None:
        """The figures of the last steps: in the bar on a terminal, as a line elsewhere."""
        text = (
            f"loss {values['loss']:.3f} · lr {values['lr']:.2e} · {values['images_per_second']:.1f} images/s "
            f"· waiting {values['data_wait']:.0%}"
        )
        self.progress.update(self.task, numbers=text)
        if not self.console.is_terminal:
            left = self._left(done)
            self.say(f"{self.name} {done}/{self.pace.steps} · {text}{f' · {left}' if left else ''}")

    def say(self, text: str) -> None:
        """One line above the bar."""
        self.console.print(printable(text), highlight=False, soft_wrap=True, markup=False)

    def _left(self, done: int) -> str:
        left = self.pace.left(done)
        return "" if left is None or done == self.pace.steps else f"about {spell(left)} left"


def spell(seconds: float) -> str:
    """A duration to about two figures: 40 s, 12 min, 2 h 10 min, 3 days 4 h."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} days {hours} h"
