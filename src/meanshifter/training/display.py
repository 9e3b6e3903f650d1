"""What a run displays and records: progress bar, lines, time left; metrics.jsonl and TensorBoard; and its signals."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, NoReturn, Self

import torch
from torch import Tensor

from meanshifter.errors import InputError, RunError, counted
from meanshifter.evaluation.evaluate import count_images
from meanshifter.evaluation.result import Result
from meanshifter.model.segmenter import Segmenter
from meanshifter.training.config import TrainConfig
from meanshifter.training.loggers import Loggers, Pixels
from meanshifter.training.setup import Setup
from meanshifter.training.state import RunFolder, TrainState
from meanshifter.utils.distributed import Processes
from meanshifter.utils.environment import peak_memory
from meanshifter.utils.files import write_text
from meanshifter.utils.progress import ProgressBar

WARM_UP: Final = 2
"""First steps of a process, which are not representative: kernels are compiled, workers started, caches filled."""
ESTIMATE_AFTER: Final = WARM_UP + 1
EARLY: Final = (10, 30, 100, 300)
"""Steps of a process after which the time left is printed, until the first line of `log_every`."""


class Meter:
    """Throughput since the last reading, and the share of time spent waiting for data."""

    def __init__(self) -> None:
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within the context as waiting."""
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
        """Reset all counts, for example after an evaluation."""
        self.images, self.waited, self.since = 0, 0.0, time.perf_counter()


CLASSES: Final = "per_class.md"
"""Run folder file with the per-class scores of the newest evaluation."""


class Log:
    """Writes metrics to metrics.jsonl and the loggers, in the main process only."""

    def __init__(
        self, run: RunFolder, state: TrainState, processes: Processes, config: TrainConfig | None = None
    ) -> None:
        """`config`: its loggers are used too; None: TensorBoard only."""
        self.run, self.state, self.processes, self.meter = run, state, processes, Meter()
        names, settings = ([], {}) if config is None else (config.loggers, config.to_dict())
        step, is_main = state.progress.step, processes.is_main
        self.loggers = processes.run_all(lambda: Loggers(run.path, step, names, settings) if is_main else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.loggers is not None:
            self.loggers.close(complete=kind is None)

    def add(self, loss: Tensor, images: int) -> None:
        """Count one step: this process's part of its loss, and the crops of all processes."""
        total, count = self.state.progress.loss_sum
        self.state.progress.loss_sum = (total + loss.item(), count + 1)
        self.meter.images += images

    def write(self, rate: float) -> dict[str, float]:
        """Record means since the last call: loss, learning rate, images per second, share of time waiting for data.

        And the peak memory of this process so far: of its GPU, or without one of its own, as far as the system knows.
        """
        speed, wait = self.meter.read()
        total, count = self.state.progress.loss_sum
        total = float(self.processes.sum(torch.tensor(total, dtype=torch.float64)))
        loss = total / count if count else math.nan
        self.state.progress.loss_sum = (0.0, 0)
        values = {"loss": loss, "lr": rate, "images_per_second": speed, "data_wait": wait}
        self.record(**values, peak_memory_gb=peak_memory(self.state.model.device) / 1e9)
        return values

    def record(self, **values: float | Mapping[str, float]) -> None:
        """Write metrics of the current step; values that are not finite become null, since JSON has no NaN."""
        if self.loggers is None:
            return
        step = self.state.progress.step
        line: dict[str, Any] = {"step": step}
        flat: dict[str, float] = {}
        for name, value in values.items():
            if isinstance(value, Mapping):
                line[name] = {key: _finite(part) for key, part in value.items()}
                flat |= {f"{name}/{key}": part for key, part in value.items()}
            else:
                line[name] = _finite(value)
                flat[name] = value
        self.loggers.scalars({name: value for name, value in flat.items() if math.isfinite(value)}, step)
        self.run.log(line)

    def show(self, pictures: Mapping[str, Pixels]) -> None:
        """Log pictures (H, W, 3) by name."""
        if self.loggers is not None:
            for name, pixels in pictures.items():
                self.loggers.image(name, pixels, self.state.progress.step)

    def write_classes(self, result: Result) -> None:
        """Replace the per-class scores in the run folder; a RunError if they cannot be written."""
        if self.loggers is None:
            return
        text = f"Step {self.state.progress.step}\n\n{result.table()}\n"
        try:
            write_text(self.run.path / CLASSES, text)
        except InputError as error:
            reason = str(error).split(";")[0]
            raise RunError(f"{reason}; training stopped: free some space, then resume with --resume") from error


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


class Pace:
    """Duration of steps and evaluations, and from it the time left.

    A mean over the last steps, not a median: batches of several workers arrive together, and the median of waiting
    times of 0, 0, 0 and 4 seconds is 0.
    """

    def __init__(self, steps: int, evaluate_every: int) -> None:
        self.steps, self.evaluate_every = steps, evaluate_every
        self.evaluation: float | None = None
        """Seconds per evaluation; None if not known yet."""
        self.seen = 0
        self._recent: deque[float] = deque(maxlen=50)
        self._since = self._began = time.perf_counter()

    def step(self) -> None:
        """Record that a step is done."""
        now = time.perf_counter()
        self.seen += 1
        if self.seen > WARM_UP:
            self._recent.append(now - self._since)
        self._since = now

    def restart(self) -> None:
        """Exclude the time since the last step, for example after an evaluation."""
        self._since = time.perf_counter()

    def left(self, done: int) -> float | None:
        """Seconds from step `done` to the end, including evaluations; None if not known yet."""
        if not self._recent:
            return None
        evaluations = self.evaluations(self.steps) - self.evaluations(done)
        seconds = sum(self._recent) / len(self._recent) * (self.steps - done)
        return seconds + evaluations * (0.0 if self.evaluation is None else self.evaluation)

    def whole(self, done: int) -> float | None:
        """Seconds from this process's first step to the end; None if not known yet."""
        left = self.left(done)
        return None if left is None else time.perf_counter() - self._began + left

    def evaluations(self, done: int) -> int:
        """Number of evaluations within the first `done` steps."""
        regular = done // self.evaluate_every if self.evaluate_every > 0 else 0
        last = done == self.steps and (self.evaluate_every == 0 or done % self.evaluate_every > 0)
        return regular + last


class Display:
    """Training progress: loss, learning rate, images per second, waiting for data, time left."""

    def __init__(self, name: str, *, quiet: bool = False) -> None:
        self.bar = ProgressBar(name, shown=not quiet, time_left=False, transient=False)
        self.name, self.quiet, self.pace = name, quiet, Pace(0, 0)
        self.numbers = ""

    def __enter__(self) -> Self:
        self.bar.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.__exit__()

    def begin(self, steps: int, start: int, *, evaluate_every: int, evaluation: float | None = None) -> None:
        """Start at step `start` of `steps`; `evaluation` is the seconds of one evaluation."""
        self.pace = Pace(steps, evaluate_every)
        self.pace.evaluation = evaluation
        self.bar.update(start, steps)

    @property
    def estimates(self) -> bool:
        """Whether to print the estimate of the total time after the current step."""
        return not self.quiet and self.pace.seen == ESTIMATE_AFTER

    def step(self, done: int, log_every: int) -> None:
        """Show that `done` steps are done."""
        self.pace.step()
        self.bar.update(done, status=self._status(done))
        if self.pace.seen in EARLY and self.pace.seen < log_every and not self.bar.is_terminal:
            self.say(f"{self.name} {done}/{self.pace.steps} · {self._left(done)}")

    def evaluated(self, seconds: float) -> None:
        """Record the duration of an evaluation that has just ended."""
        self.pace.evaluation = seconds
        self.pace.restart()

    def say_estimate(self, done: int) -> None:
        """Print the total time, if known."""
        whole = self.pace.whole(done)
        if whole is not None:
            self.say(f"{self.name} {done}/{self.pace.steps} · about {spell(whole)} in total, evaluations included")

    def say_numbers(self, done: int, values: Mapping[str, float]) -> None:
        """Show the metrics of the last steps: in the bar on a terminal, else as a line."""
        speed, wait = f"{values['images_per_second']:.1f} images/s", f"waiting {values['data_wait']:.0%}"
        self.numbers = f"loss {values['loss']:.3f} · lr {values['lr']:.2e} · {speed} · {wait}"
        self.bar.update(status=self._status(done))
        if not self.bar.is_terminal:
            progress = f"{self.name} {done}/{self.pace.steps}"
            self.say(" · ".join(filter(None, (progress, self.numbers, self._left(done)))))

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self.bar.print(text)

    def _status(self, done: int) -> str:
        return " ".join(filter(None, (self.numbers, self._left(done))))

    def _left(self, done: int) -> str:
        left = self.pace.left(done)
        return "" if left is None or done == self.pace.steps else f"about {spell(left)} left"


def spell(seconds: float) -> str:
    """Format a duration to about two digits: 40 s, 12 min, 2 h 10 min, 3 days 4 h."""
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


LONG: Final = 30 * 60
"""Seconds of training on a CPU from which `advice` suggests how to shorten it."""
NAMES: Final = 8


def summary(config: TrainConfig, setup: Setup) -> list[str]:
    """Lines that describe data, model and training."""
    processes, trained = setup.learner.processes, setup.learner.state.model
    data, labels = config.data, trained.label_space
    place = data.name if data.root is None else f"{data.name} {data.root}"
    names = ", ".join(labels.names[:NAMES]) + (", …" if labels.num_classes > NAMES else "")
    scored = count_images(setup.val_set, config.evaluation.limit)
    model = config.model.preset if config.model.init_from is None else config.model.init_from
    parameters = _spelled_parameters(config, trained)
    devices = f"{processes.count} × " if processes.count > 1 else ""
    height, width = config.augment.crop
    every = config.evaluation.interval
    steps = counted(config.steps, "step")
    evaluated = f" · evaluation {f'every {every:,} steps and ' if 0 < every < config.steps else ''}after the last step"
    if config.evaluation.patience is not None:
        evaluated += f" · early stopping with patience {config.evaluation.patience}"
    if config.minutes is not None:
        steps, evaluated = f"as many steps as fit in {config.minutes:g} minutes,", ""
    stream, extra = setup.feed.stream, ""
    images = len(stream.dataset)
    if stream.mix is not None:
        images, extra = stream.mix.first, f" and {stream.mix.extra:,} extra ({stream.mix.share:.0%} of the samples)"
    return [
        f"data: {place} · {counted(images, 'training image')}{extra}, {counted(scored, 'validation image')} · "
        f"{labels.num_classes} classes ({names}), {setup.label_origin}",
        f"model: {model} · {parameters} · {devices}{trained.device.type}, {config.precision}",
        f"training: {steps} of {config.crops_per_step} crops of {height}×{width}{evaluated}",
        *([] if setup.feed.tokens is None else [setup.feed.tokens.describe()]),
    ]


def _spelled_parameters(config: TrainConfig, model: Segmenter) -> str:
    """Number of parameters, and how many of them are trained if not all are."""
    whole = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    how = "frozen encoder" if config.lora is None else f"adapters of rank {config.lora.rank} in the encoder"
    return f"{whole:,} parameters" + ("" if trained == whole else f", {trained:,} of them trained ({how})")


def advice(config: TrainConfig, device: torch.device, seconds: float | None) -> str | None:
    """How to shorten a long training on a CPU; None if it is short or runs on another device."""
    if seconds is None or seconds < LONG or device.type != "cpu":
        return None
    smaller = max(config.augment.crop) // 2
    return (
        f"training on the CPU will take about {spell(seconds)}: --minutes 30 trains only as many steps as fit in that "
        f"time, --size {smaller} uses smaller crops and images, which makes each step about four times faster (stop "
        "with Ctrl-C and start again with another --out)"
    )


class Stopped(KeyboardInterrupt):
    """A requested stop of a run that has been saved; the message says how to resume.

    `said` is true if another process of the run prints the message.
    """

    def __init__(self, message: str, number: int, *, said: bool = False) -> None:
        super().__init__(message)
        self.signal, self.said = number, said


class Interrupt:
    """Within the context, the first SIGINT or SIGTERM only sets `requested`; a second one acts immediately."""

    def __init__(self, *, is_main: bool = True) -> None:
        self.requested: int = 0
        self.is_main = is_main
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

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            sys.unraisablehook = self._unraisable
        if self._again is not None:
            self._again.cancel()

    def _swallowed(self, lost: sys.UnraisableHookArgs) -> None:
        """Send the signal again if Python dropped the exception, as it does in callbacks around a worker's fork."""
        if not isinstance(lost.exc_value, Stopped):
            self._unraisable(lost)
            return
        signal.signal(lost.exc_value.signal, self._notice)
        self._again = threading.Timer(0.1, os.kill, (os.getpid(), lost.exc_value.signal))
        self._again.daemon = True
        self._again.start()

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self.requested = number
        signal.signal(number, self._before[number])
        if self._saved is not None:
            self.stop(self._saved)

    @contextmanager
    def immediately(self, message: str) -> Iterator[None]:
        """Within the context, where everything is saved, end the run at the first signal, including an earlier one."""
        self._saved = message
        try:
            if self.requested:
                self.stop(message)
            yield
        finally:
            self._saved = None

    def stop(self, message: str) -> NoReturn:
        """End the run, which has been saved."""
        raise Stopped(message, self.requested, said=not self.is_main)
