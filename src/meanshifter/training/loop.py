"""The training loop, readable from top to bottom.

Glossary: B crops in a batch, K classes, H W pixels of a crop, h w its patch grid.
"""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from meanshifter.errors import RunError
from meanshifter.evaluation.result import Result
from meanshifter.training.display import Display, Meter
from meanshifter.training.interrupt import Interrupt
from meanshifter.training.optimizer import set_learning_rate
from meanshifter.training.recipe import TrainConfig
from meanshifter.training.scoring import score, step_figures
from meanshifter.training.session import Session, prepare, resolve
from meanshifter.training.step import Crops, next_crops, take_gradient

HOW_TO_GO_ON = "the same command with --resume continues"


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
    config = resolve(config)
    session = prepare(config, resume=resume)
    try:
        result = _train(session, config, quiet=quiet or not session.processes.first)
    finally:
        session.run.release()
    seconds = time.perf_counter() - began
    return Trained(session.run.path, result, session.progress.best, seconds, session.processes.first)


def _train(session: Session, config: TrainConfig, *, quiet: bool) -> Result:
    progress, result = session.progress, None
    display = Display(session.run.path.name, config.steps, progress.step, quiet=quiet)
    with Log(session) as log, Interrupt(speaks=session.processes.first) as interrupt, display:
        if not progress.scored:
            result = score_step(session, config, log, interrupt, display)
        for step in range(progress.step, config.steps):
            torch.manual_seed((config.seed << 32) + step)  # stochastic depth follows the step, so that a run resumes
            rate = set_learning_rate(session.optimizer, config.optimizer, step, config.steps)
            with log.meter.waiting():
                crops = next_crops(session, config, asked=bool(interrupt.asked))
            log.add(learn(session, config, crops), config.crops_per_step)
            done, stop = progress.step, crops.stop or (session.processes.count == 1 and interrupt.asked)
            # one process alone stops at once; of several, all stop after the next step
            if is_due(done, config.log_every, config.steps):
                display.say_numbers(done, log.write(rate))
            if is_due(done, config.evaluation.every, config.steps):
                result = score_step(session, config, log, interrupt, display)
            elif stop or is_due(done, config.save_every, config.steps):
                session.save()
                log.meter.restart()
            if stop and done < config.steps:
                interrupt.leave(f"stopped after step {done} of {config.steps}; {HOW_TO_GO_ON}")
    return score(session, config) if result is None else result  # None: resumed when nothing was left to do


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
    with interrupt.at_once(f"stopped after step {progress.step} of {config.steps}, before its score; {HOW_TO_GO_ON}"):
        result = score(session, config)
        figures = step_figures(session, config) if session.processes.first else {}
    display.say(f"step {progress.step}: mIoU {result.mIoU:.2f}, mAcc {result.mAcc:.2f}, aAcc {result.aAcc:.2f}")
    log.record(mIoU=result.mIoU, mAcc=result.mAcc, aAcc=result.aAcc, **figures)
    session.keep_best(result.mIoU)
    progress.scored = True
    session.save()
    log.meter.restart()
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

    def record(self, **values: float) -> None:
        """Write figures of the step that is done."""
        if self.board is None:
            return
        step = self.session.progress.step
        self.session.run.log({"step": step, **values})
        for name, value in values.items():
            self.board.add_scalar(name, value, step)
