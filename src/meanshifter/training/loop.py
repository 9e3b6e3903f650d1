"""The training loop, readable from top to bottom.

Glossary: B crops in a batch, K classes, H W pixels of a crop, h w its patch grid.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from meanshifter.errors import RunError
from meanshifter.evaluation.result import Result
from meanshifter.ops import upsampled_cross_entropy
from meanshifter.training.batches import Batch
from meanshifter.training.display import Display, Meter
from meanshifter.training.interrupt import Interrupt
from meanshifter.training.optimizer import set_learning_rate
from meanshifter.training.recipe import TrainConfig
from meanshifter.training.scoring import score, step_figures
from meanshifter.training.session import Session, prepare, resolve
from meanshifter.training.state import RunFolder


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


def train(config: TrainConfig, *, resume: bool = False, quiet: bool = False) -> Trained:
    """Train a model into the run folder `config.out`.

    Args:
        config: the recipe; `parse_recipe` makes one.
        resume: continue the run in that folder, to the weights it would have reached without a stop.
        quiet: show nothing.

    Raises:
        InputError: a wrong configuration or wrong data, before anything is trained.
        RunError: a loss that is not finite; checkpoints/last holds the last good weights.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the step is done and saved.
    """
    began = time.perf_counter()
    config = resolve(config)
    session = prepare(config, resume=resume)
    fabric, optimizer, run = session.fabric, session.optimizer, session.run
    log = Log(run, session.tally)
    result = None
    with Interrupt() as interrupt, Display(run.path.name, config.steps, session.start, quiet=quiet) as display:
        for step in range(session.start, config.steps):
            torch.manual_seed((config.seed << 32) + step)  # stochastic depth follows the step, so that a run resumes
            rate = set_learning_rate(optimizer, config.optimizer, step, config.steps)
            for part in range(config.accumulate):
                with log.meter.waiting():
                    batch = next(session.feed)
                images, labels = fabric.to_device(batch[:2])
                with fabric.no_backward_sync(session.network, enabled=part + 1 < config.accumulate):
                    loss = crop_loss(session.network(images), labels, session, config)
                    refuse_nonfinite(run, step + 1, "loss", loss, batch)
                    fabric.backward(loss / config.accumulate)
                log.add(loss, len(images))
            limit = math.inf if config.optimizer.clip_norm is None else config.optimizer.clip_norm
            norm = fabric.clip_gradients(session.network, optimizer, max_norm=limit, error_if_nonfinite=False)
            if config.precision != "fp16":  # its loss scaling skips steps whose gradient is not finite
                refuse_nonfinite(run, step + 1, "gradient", norm, batch)
            optimizer.step()
            optimizer.zero_grad()
            if session.average is not None:
                session.average.update(session.model.parameters(), step)

            done = step + 1
            display.step(done)
            if is_due(done, config.log_every, config.steps):
                display.say_numbers(done, log.write(done, rate))
            if is_due(done, config.evaluation.every, config.steps):
                result = score(session, config, done)
                display.say(f"step {done}: mIoU {result.mIoU:.2f}, mAcc {result.mAcc:.2f}, aAcc {result.aAcc:.2f}")
                log.record(done, mIoU=result.mIoU, mAcc=result.mAcc, aAcc=result.aAcc, **step_figures(session, config))
                session.keep_best(result.mIoU)
            if interrupt.asked or any(
                is_due(done, n, config.steps) for n in (config.save_every, config.evaluation.every)
            ):
                session.tally = log.tally
                session.save(done)
                log.meter.restart()
            if interrupt.asked and done < config.steps:
                interrupt.leave(
                    f"stopped after step {done} of {config.steps}; the same command with --resume continues"
                )
    log.close()
    if result is None:  # resumed when nothing was left to do
        result = score(session, config, config.steps)
    return Trained(run.path, result, session.best, time.perf_counter() - began)


def crop_loss(logits: Tensor, labels: Tensor, session: Session, config: TrainConfig) -> Tensor:
    """The recipe's cross-entropy of patch logits (B, K, h, w) against labels (B, H, W)."""
    stride = session.model.stride
    return upsampled_cross_entropy(
        logits,
        labels,
        padded_size=(logits.shape[-2] * stride, logits.shape[-1] * stride),
        ignore_index=session.model.labels.ignore,
        normalize=config.loss.normalize,
        weight=session.weight,
        label_smoothing=config.loss.label_smoothing,
    )


def is_due(done: int, every: int, steps: int) -> bool:
    """After each `every` steps (0: never) and after the last."""
    return done == steps or (every > 0 and done % every == 0)


def refuse_nonfinite(run: RunFolder, step: int, what: str, value: Tensor | None, batch: Batch) -> None:
    """Stop before a loss or gradient that is not finite reaches the weights, and keep the batch that made it."""
    if value is None or torch.isfinite(value):
        return
    kept = run.keep_batch(step, *batch)
    last = run.checkpoint("last")
    weights = f"last good weights in {last}" if last.exists() else "no checkpoint was written yet"
    raise RunError(
        f"step {step}: the {what} is {value.item()}; stopped before the weights took it in. Batch kept in {kept}, "
        f"{weights}; lower optimizer.lr, set optimizer.clip_norm, or use precision fp32"
    )


class Log:
    """Figures of the steps, to metrics.jsonl and TensorBoard."""

    def __init__(self, run: RunFolder, tally: tuple[float, int]) -> None:
        self.run, self.board, self.meter = run, SummaryWriter(str(run.path)), Meter()
        self.tally = tally

    def add(self, loss: Tensor, images: int) -> None:
        """Count one forward pass."""
        self.tally = (self.tally[0] + loss.item(), self.tally[1] + 1)
        self.meter.images += images

    def write(self, step: int, rate: float) -> dict[str, float]:
        """Record the means since the last call: loss, learning rate, images per second, share of time waiting."""
        speed, wait = self.meter.read()
        total, count = self.tally
        loss = total / count if count else math.nan
        self.tally = (0.0, 0)
        values = {"loss": loss, "lr": rate, "images_per_second": speed, "data_wait": wait}
        self.record(step, **values)
        return values

    def record(self, step: int, **values: float) -> None:
        """Write figures of a step."""
        self.run.log({"step": step, **values})
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush TensorBoard's file."""
        self.board.close()
