"""Training for a number of `minutes`: derive the number of steps from timing the first ones.

The timed steps are undone. Training then starts with a fixed number of steps, which is written to config.yaml. The
learning rate schedule is therefore exact, `--resume` keeps it, and config.yaml reproduces the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import count_images
from meanshifter.training.config import TrainConfig
from meanshifter.training.display import WARM_UP
from meanshifter.training.optimizer import forget_steps
from meanshifter.training.parsing import read_run_config
from meanshifter.training.setup import Setup
from meanshifter.training.state import Progress
from meanshifter.utils.distributed import Processes

MEASURED: Final = (3, 200)
"""Minimum and maximum number of timed steps."""
MEASURING_SHARE, MOST_MEASURING = 0.05, 20.0
"""Share of the time budget, and seconds, after which timing ends if steps are short."""
EVALUATION_SHARE: Final = 0.25
"""Maximum share of the time budget for evaluations."""


def read_plan(config: TrainConfig) -> TrainConfig:
    """The configuration of a run with `minutes` that is resumed, with the number of steps from its config.yaml.

    Unchanged if the run stopped before timing ended, or if config.yaml is invalid, which is reported later.
    """
    if config.minutes is None:
        return config
    try:
        stored = read_run_config(str(config.out))
        if stored.get("minutes") is not None:
            return config
        evaluation, optimizer = stored["evaluation"], stored["optimizer"]
        return replace(
            config,
            minutes=None,
            steps=stored["steps"],
            log_every=stored["log_every"],
            save_every=stored["save_every"],
            evaluation=replace(config.evaluation, interval=evaluation["interval"], limit=evaluation["limit"]),
            optimizer=replace(config.optimizer, warmup=optimizer["warmup"]),
        )
    except (InputError, KeyError, TypeError, AttributeError):
        return config


def plan(
    config: TrainConfig, setup: Setup, step: Callable[[int], None], image_seconds: Callable[[], float]
) -> tuple[TrainConfig, float]:
    """The configuration with the number of steps that fits into `minutes`, and the seconds of one evaluation.

    Args:
        config: with `minutes`.
        setup: at step 0; it is restored to that state.
        step: performs training step n (from 0).
        image_seconds: measures the evaluation time per image.
    """
    began = time.perf_counter()
    learner, val_set = setup.learner, setup.val_set
    state, processes = learner.state, learner.processes
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    step_seconds = _time_steps(config, processes, step)
    state.model.load_state_dict(before)
    if state.average is not None:
        state.average.average.load_state_dict(before)
    forget_steps(state.optimizer)
    state.progress = Progress()

    def decide() -> tuple[TrainConfig, float]:
        images = math.ceil(count_images(val_set, config.evaluation.limit) / processes.count)
        seconds = image_seconds()
        fitting = fit(config, step_seconds, seconds, images, spent=time.perf_counter() - began)
        scored = count_images(val_set, fitting.evaluation.limit)
        return fitting, seconds * math.ceil(scored / processes.count)

    fitting, evaluation = processes.broadcast(decide)
    setup.feed.begin(fitting, state.progress.step)
    if processes.is_main:
        setup.run.write_config(fitting)
    return fitting, evaluation


def _time_steps(config: TrainConfig, processes: Processes, step: Callable[[int], None]) -> float:
    """Seconds per step, as timed by the first process: the mean over the steps after the warm-up."""
    whole = 60 * (0.0 if config.minutes is None else config.minutes)
    fewest, most = MEASURED
    began = warm = time.perf_counter()
    for number in range(WARM_UP + most):
        step(number)
        now, timed = time.perf_counter(), number + 1 - WARM_UP
        if timed == 0:
            warm = now
        ready = timed >= fewest and now - began >= min(MEASURING_SHARE * whole, MOST_MEASURING)
        late = timed >= 1 and now - began >= 2 * MEASURING_SHARE * whole
        if processes.broadcast(lambda enough=ready or late: enough):  # type: ignore[misc]
            break
    return (time.perf_counter() - warm) / timed


def fit(config: TrainConfig, step_seconds: float, image_seconds: float, images: int, *, spent: float) -> TrainConfig:
    """The configuration with the number of steps, at least 1, that fits into its minutes after `spent` seconds.

    Evaluations take at most a quarter of the time: as many as configured, or fewer. If not even one evaluation of all
    `images` per process fits, a single one covers the first images only. Warm-up, logging and saving intervals shrink
    if there are few steps.
    """
    whole = 60 * (0.0 if config.minutes is None else config.minutes)
    evaluation, share = config.evaluation, EVALUATION_SHARE * whole
    affordable = int(share / max(image_seconds, 1e-9))
    if affordable < images:
        images, count = max(affordable, 1), 1
        evaluation = replace(evaluation, limit=images * config.num_processes)
    else:
        wanted = math.ceil(config.steps / evaluation.interval) if evaluation.interval else 1
        count = max(1, min(wanted, affordable // max(images, 1)))
    steps = max(1, int((whole - spent - count * images * image_seconds) / step_seconds))
    once = steps if evaluation.patience is not None else 0  # patience needs an interval, even if it cannot take effect
    return replace(
        config,
        minutes=None,
        steps=steps,
        evaluation=replace(evaluation, interval=once if count == 1 else math.ceil(steps / count)),
        optimizer=replace(config.optimizer, warmup=min(config.optimizer.warmup, steps // 10)),
        log_every=min(config.log_every, max(steps // 10, 1)),
        save_every=min(config.save_every, max(steps // 5, 1)),
    )
