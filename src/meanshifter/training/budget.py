"""`minutes`: how many steps fit into a time, measured on the first steps of the training.

These are run, timed and undone; then the training begins with a number of steps, which config.yaml holds from there
on. So its schedule is exact, `--resume` keeps it, and its config.yaml trains the same weights again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from meanshifter.documents import parse_yaml, read_text
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import count_images
from meanshifter.training.display import WARM_UP
from meanshifter.training.recipe import TrainConfig
from meanshifter.training.scoring import image_seconds
from meanshifter.training.session import Session
from meanshifter.training.state import Progress

MEASURED: Final = (3, 200)
"""Fewest and most steps that are timed."""
MEASURING_SHARE, MOST_MEASURING = 0.05, 20.0
"""Share of the time, and seconds, that measuring takes where steps are short."""
EVALUATION_SHARE: Final = 0.25
"""Share of the time that evaluations may take."""


def planned_before(config: TrainConfig, stored: Mapping[str, Any]) -> TrainConfig:
    """The recipe of a run with `minutes` that is resumed: the number of steps that its config.yaml holds stays.

    The same recipe where the run was stopped before they were known.
    """
    if config.minutes is None or stored.get("minutes") is not None:
        return config
    evaluation, optimizer = stored["evaluation"], stored["optimizer"]
    return replace(
        config,
        minutes=None,
        steps=stored["steps"],
        log_every=stored["log_every"],
        save_every=stored["save_every"],
        evaluation=replace(config.evaluation, every=evaluation["every"], limit=evaluation["limit"]),
        optimizer=replace(config.optimizer, warmup=optimizer["warmup"]),
    )


def read_plan(config: TrainConfig) -> TrainConfig:
    """`planned_before` with the config.yaml of the run folder; what is wrong with that is said where it is resumed."""
    try:
        return planned_before(config, parse_yaml(read_text(f"{config.out}/config.yaml"), str(config.out)))
    except (InputError, KeyError, TypeError, AttributeError):
        return config


def plan(session: Session, config: TrainConfig, step: Callable[[int], None]) -> tuple[TrainConfig, float]:
    """The recipe with the number of steps that fits into `minutes`, and the seconds of one evaluation.

    Args:
        session: at step 0, where it is afterwards.
        config: with `minutes`.
        step: trains step number n (from 0).
    """
    began = time.perf_counter()
    before = {name: value.clone() for name, value in session.model.state_dict().items()}
    step_seconds = _time_steps(session, config, step)
    session.model.load_state_dict(before)
    if session.average is not None:
        session.average.average.load_state_dict(before)
    session.optimizer.state.clear()  # not load_state_dict, which would leave Fabric's wrapper with the old groups
    session.progress = Progress()

    def decide() -> tuple[TrainConfig, float]:
        images = math.ceil(count_images(session.val_set, config.evaluation.limit) / session.processes.count)
        seconds = image_seconds(session, config)
        fitting = fit(config, step_seconds, seconds, images, spent=time.perf_counter() - began)
        scored = count_images(session.val_set, fitting.evaluation.limit)
        return fitting, seconds * math.ceil(scored / session.processes.count)

    fitting, evaluation = session.processes.from_first(decide)
    session.begin_feed(fitting)
    if session.processes.first:
        session.run.write_config(fitting)
    return fitting, evaluation


def _time_steps(session: Session, config: TrainConfig, step: Callable[[int], None]) -> float:
    """Seconds of a step: the mean of those after the first, which the first process takes the time of."""
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
        if session.processes.from_first(lambda enough=ready or late: enough):  # type: ignore[misc]
            break
    return (time.perf_counter() - warm) / timed


def fit(config: TrainConfig, step_seconds: float, image_seconds: float, images: int, *, spent: float) -> TrainConfig:
    """The recipe with as many steps as fit into its minutes, less the seconds that are spent, and one or more.

    Evaluations take up to a quarter of the time: as many as the recipe has, or fewer; where not even one over all
    `images` of a process fits, the last one scores the first so many. What the recipe counts in steps becomes smaller
    where too few are left.
    """
    whole = 60 * (0.0 if config.minutes is None else config.minutes)
    evaluation, share = config.evaluation, EVALUATION_SHARE * whole
    affordable = int(share / max(image_seconds, 1e-9))
    if affordable < images:
        images, count = max(affordable, 1), 1
        evaluation = replace(evaluation, limit=images * _processes(config))
    else:
        wanted = math.ceil(config.steps / evaluation.every) if evaluation.every else 1
        count = max(1, min(wanted, affordable // max(images, 1)))
    steps = max(1, int((whole - spent - count * images * image_seconds) / step_seconds))
    return replace(
        config,
        minutes=None,
        steps=steps,
        evaluation=replace(evaluation, every=0 if count == 1 else math.ceil(steps / count)),
        optimizer=replace(config.optimizer, warmup=min(config.optimizer.warmup, steps // 10)),
        log_every=min(config.log_every, max(steps // 10, 1)),
        save_every=min(config.save_every, max(steps // 5, 1)),
    )


def _processes(config: TrainConfig) -> int:
    return config.crops_per_step // (config.batch_size * config.accumulate)
