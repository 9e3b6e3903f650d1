"""The training loop, readable from top to bottom.

Glossary: B crops in a batch, K classes, H W pixels of a crop, h w its patch grid.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from meanshifter.errors import InputError, RunError
from meanshifter.evaluation.evaluate import count_images
from meanshifter.evaluation.result import Result
from meanshifter.files import write_text
from meanshifter.training.budget import plan, read_plan
from meanshifter.training.display import Display, Meter, Pace
from meanshifter.training.interrupt import Interrupt, Stopped
from meanshifter.training.optimizer import set_learning_rate
from meanshifter.training.recipe import TrainConfig
from meanshifter.training.scoring import image_seconds, score, step_figures
from meanshifter.training.session import Session, prepare, resolve
from meanshifter.training.step import Crops, next_crops, take_gradient
from meanshifter.training.stochastic_depth import step_seed
from meanshifter.training.summary import advice, summary

HOW_TO_GO_ON = "the same command with --resume continues"
CLASSES: Final = "per_class.md"
"""The scores per class of the newest evaluation, in the run folder."""


@dataclass(frozen=True)
class Trained:
    """What a finished training leaves."""

    path: Path
    """The run folder; `load_model(path)` reads its best checkpoint."""
    result: Result
    """The score of the last weights on the validation split."""
    best: float
    """The best mIoU of all evaluations, that of checkpoints/best."""
    seconds: float
    """Wall time of this process's part of the run, preparation and evaluations included."""
    first: bool
    """Whether this process wrote the run folder; of several, one does."""


def train(config: TrainConfig, *, resume: bool = False, quiet: bool = False) -> Trained:
    """Train a model into the run folder `config.out`.

    With several devices every process runs this function, and Fabric starts those that are missing by running the
    program again.

    Args:
        config: the recipe; `parse_recipe` makes one.
        resume: continue the run in that folder, to the weights it would have reached without a stop.
        quiet: show nothing.

    Raises:
        InputError: a wrong configuration or wrong data, before anything is trained; a run folder in use.
        RunError: a loss that is not finite; checkpoints/last holds the last good weights. A full disk; the
            checkpoint before is whole. No memory for a single crop.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the step is done and saved.
    """
    began = time.perf_counter()
    asked = config.minutes
    config = resolve(read_plan(config) if resume else config)
    session = prepare(config, resume=resume)
    kept = (
        None
        if asked is None or config.minutes is not None
        else f"minutes {asked:g}: steps stay as config.yaml has them"
    )
    try:
        result = _train(session, config, kept, quiet=quiet or not session.processes.first)
    finally:
        session.run.release()
    seconds = time.perf_counter() - began
    return Trained(session.run.path, result, session.progress.best, seconds, session.processes.first)


def _train(session: Session, config: TrainConfig, kept: str | None, *, quiet: bool) -> Result:
    progress, result = session.progress, None
    display = Display(session.run.path.name, quiet=quiet)
    with Log(session) as log, Interrupt(speaks=session.processes.first) as interrupt, display:
        display.introduce([*summary(session, config), *([] if kept is None else [kept])])
        config, evaluation = _planned(session, config, log, interrupt, display)
        progress = session.progress
        display.begin(config.steps, progress.step, evaluate_every=config.evaluation.every, evaluation=evaluation)
        if not progress.scored:
            result = score_step(session, config, log, interrupt, display)
        for step in range(progress.step, config.steps):
            rate, crops = take_step(session, config, step, log, _saving(session, config, interrupt), interrupt.asked)
            done, stop = progress.step, crops.stop or (session.processes.count == 1 and interrupt.asked)
            # one process alone stops at once; of several, all stop after the next step
            show_progress(session, config, log, display)
            if is_due(done, config.log_every, config.steps):
                display.say_numbers(done, log.write(rate))
            if is_due(done, config.evaluation.every, config.steps):
                result = score_step(session, config, log, interrupt, display)
            elif stop or is_due(done, config.save_every, config.steps):
                session.save()
                log.meter.restart()
            if stop and done < config.steps:
                interrupt.leave(f"stopped after step {done} of {config.steps}; {HOW_TO_GO_ON}")
    return score(session, config).result if result is None else result  # None: resumed when nothing was left to do


def take_step(
    session: Session,
    config: TrainConfig,
    step: int,
    log: Log,
    waiting: AbstractContextManager[object],
    asked: int,
) -> tuple[float, Crops]:
    """Train step number `step` (from 0), waiting for its crops within `waiting`; its learning rate and crops."""
    torch.manual_seed(step_seed(config.seed, step))  # stochastic depth follows the step, so that a run resumes
    rate = set_learning_rate(session.optimizer, config.optimizer, step, config.steps)
    with log.meter.waiting(), waiting:
        crops = next_crops(session, config, asked=bool(asked))
    log.add(learn(session, config, crops), config.crops_per_step)
    return rate, crops


@contextmanager
def _saving(session: Session, config: TrainConfig, interrupt: Interrupt) -> Iterator[None]:
    """While crops are waited for, which may take long, a signal saves and ends the run; of several processes, later."""
    if session.processes.count > 1:
        yield
        return
    try:
        with interrupt.at_once(f"stopped after step {session.progress.step} of {config.steps}; {HOW_TO_GO_ON}"):
            yield
    except Stopped:
        session.save()
        raise


def _planned(
    session: Session, config: TrainConfig, log: Log, interrupt: Interrupt, display: Display
) -> tuple[TrainConfig, float | None]:
    """The recipe with the number of steps that `minutes` asks for, and the seconds of an evaluation where measured."""
    if config.minutes is None:
        return config, None

    def step(number: int) -> None:
        take_step(session, config, number, log, nullcontext(), 0)

    display.say("measuring the first steps, which are then undone …")
    with interrupt.at_once("stopped while the first steps were measured; the same command with --resume begins again"):
        planned, seconds = plan(session, config, step)
    log.meter.restart()
    limit = planned.evaluation.limit
    scored = "" if limit == config.evaluation.limit else f", of the first {limit:,} images: all would take too long"
    count = Pace(planned.steps, planned.evaluation.every).evaluations(planned.steps)
    display.say(
        f"minutes {config.minutes:g}: {planned.steps:,} steps fit, and {count} evaluation{'s' * (count > 1)}{scored}"
    )
    return planned, seconds


def show_progress(session: Session, config: TrainConfig, log: Log, display: Display) -> None:
    """Move the bar; once steps have become regular, say how long all of it takes."""
    done = session.progress.step
    display.step(done)
    display.say_early(done, config.log_every)
    if not display.estimates or done == config.steps:
        return
    planned, resumed = display.pace.evaluation is not None, done > display.pace.seen
    if not planned:
        images = count_images(session.val_set, config.evaluation.limit)
        display.evaluated(image_seconds(session, config) * math.ceil(images / session.processes.count))
        log.meter.restart()
    display.say_estimate(done)
    hint = None if planned or resumed else advice(session, config, display.pace.whole(done))
    if hint is not None:
        display.say(hint)


def learn(session: Session, config: TrainConfig, crops: Crops) -> Tensor:
    """One optimiser step; returns this process's part of its loss."""
    loss = take_gradient(session, config, crops)
    refuse_nonfinite(session, "loss", loss, crops)
    limit = math.inf if config.optimizer.clip_norm is None else config.optimizer.clip_norm
    norm = session.fabric.clip_gradients(session.network, session.optimizer, max_norm=limit, error_if_nonfinite=False)
    if config.precision != "fp16":  # its loss scaling skips steps whose gradient is not finite
        refuse_nonfinite(session, "gradient", norm, crops)
    session.optimizer.step()
    session.optimizer.zero_grad()
    if session.average is not None:
        session.average.update(session.model.parameters(), session.progress.step)
    session.progress.step += 1
    return loss


def score_step(session: Session, config: TrainConfig, log: Log, interrupt: Interrupt, display: Display) -> Result:
    """The evaluation that is due; the state before it is saved, so that a run which stops here begins with it."""
    progress = session.progress
    progress.scored = False
    session.save()
    began = time.perf_counter()
    with interrupt.at_once(f"stopped after step {progress.step} of {config.steps}, before its score; {HOW_TO_GO_ON}"):
        scores = score(session, config)
        figures = step_figures(session, config) if session.processes.first else {}
    result, seconds = scores.result, time.perf_counter() - began
    display.say(f"step {progress.step}: mIoU {result.mIoU:.2f}, mAcc {result.mAcc:.2f}, aAcc {result.aAcc:.2f}")
    log.record(
        mIoU=result.mIoU,
        mAcc=result.mAcc,
        aAcc=result.aAcc,
        **scores.boundary,
        IoU={name: score.IoU for name, score in result.per_class.items()},
        **figures,
    )
    log.write_classes(result)
    session.keep_best(result.mIoU)
    progress.scored = True
    session.save()
    log.meter.restart()
    display.evaluated(seconds)
    return result


def is_due(done: int, every: int, steps: int) -> bool:
    """After each `every` steps (0: never) and after the last."""
    return done == steps or (every > 0 and done % every == 0)


def refuse_nonfinite(session: Session, what: str, value: Tensor | None, crops: Crops) -> None:
    """Stop before a loss or gradient that is not finite reaches the weights, and keep the crops that made it."""
    if value is None or torch.isfinite(value):
        return
    step, run = session.progress.step + 1, session.run
    kept = run.keep_batch(step, crops.parts, session.processes.rank)
    last = run.checkpoint("last")
    weights = f"last good weights in {last}" if last.exists() else "no checkpoint was written yet"
    raise RunError(
        f"step {step}: the {what} is {value.item()}; stopped before the weights took it in. Batch kept in {kept}, "
        f"{weights}; lower optimizer.lr, set optimizer.clip_norm, or use precision fp32"
    )


class Log:
    """Figures of the steps, to metrics.jsonl and TensorBoard; the first of several processes writes them."""

    def __init__(self, session: Session) -> None:
        self.session, self.meter = session, Meter()
        self.board: SummaryWriter | None = None
        if session.processes.first:
            step = session.progress.step
            self.board = SummaryWriter(str(session.run.path), purge_step=step + 1 if step else None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.board is not None:
            with suppress(OSError):  # a full disk has been spoken of already
                self.board.close()

    def add(self, loss: Tensor, images: int) -> None:
        """Count one step: this process's part of its loss, and the crops of all."""
        total, count = self.session.progress.tally
        self.session.progress.tally = (total + loss.item(), count + 1)
        self.meter.images += images

    def write(self, rate: float) -> dict[str, float]:
        """Record the means since the last call: loss, learning rate, images per second, share of time waiting."""
        speed, wait = self.meter.read()
        total, count = self.session.progress.tally
        total = float(self.session.processes.sum(torch.tensor(total, dtype=torch.float64)))
        loss = total / count if count else math.nan
        self.session.progress.tally = (0.0, 0)
        values = {"loss": loss, "lr": rate, "images_per_second": speed, "data_wait": wait}
        self.record(**values)
        return values

    def record(self, **values: float | Mapping[str, float]) -> None:
        """Write figures of the step that is done; JSON has no NaN, so that it becomes null there."""
        if self.board is None:
            return
        line: dict[str, Any] = {"step": self.session.progress.step}
        for name, value in values.items():
            if isinstance(value, Mapping):
                line[name] = {key: self._finite(f"{name}/{key}", part) for key, part in value.items()}
            else:
                line[name] = self._finite(name, value)
        self.session.run.log(line)

    def _finite(self, name: str, value: float) -> float | None:
        """Show a figure on the board; None where it is not finite."""
        if not math.isfinite(value):
            return None
        if self.board is not None:
            self.board.add_scalar(name, value, self.session.progress.step)
        return value

    def write_classes(self, result: Result) -> None:
        """Write the scores per class of the step that is done, over those of the evaluation before.

        Raises:
            RunError: they cannot be written.
        """
        if self.board is None:
            return
        text = f"Step {self.session.progress.step}\n\n{result.table()}\n"
        try:
            write_text(self.session.run.path / CLASSES, text)
        except InputError as error:
            reason = str(error).split(";")[0]
            raise RunError(f"{reason}; the run has stopped; make space and go on with --resume") from error
