"""One optimiser step's gradient: that of all its crops as one batch, however they are split.

Crops are split over processes, over `accumulate` passes, and further where memory runs out. The loss of each part is
divided by what the whole step counts (labelled pixels, or all), so that every split gives the same gradient but for
rounding.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from meanshifter.errors import InputError, RunError, is_out_of_memory
from meanshifter.ops import upsampled_cross_entropy
from meanshifter.ops.cross_entropy import loss_count
from meanshifter.training.batches import Batch
from meanshifter.training.recipe import TrainConfig
from meanshifter.training.session import Session


@dataclass(frozen=True)
class Crops:
    """What one process contributes to a step."""

    parts: list[Batch]
    """A batch for each of `accumulate` passes."""
    total: float
    """What the summed loss of the step is divided by, over all processes."""
    stop: bool
    """Whether any process was asked to stop after this step."""


def next_crops(session: Session, config: TrainConfig, *, asked: bool) -> Crops:
    """The crops of the next step.

    Raises:
        InputError: a sample that cannot be read; where another process met it, `OtherProcessError`.
    """
    parts, count, failure = [], 0.0, None
    try:
        for _ in range(config.accumulate):
            parts.append(next(session.feed))
            count += _count(parts[-1][1], session, config)
    except (InputError, RunError) as error:
        failure = error
    facts = torch.tensor([count, float(asked), float(failure is not None)], dtype=torch.float64)
    total, stop, failed = session.processes.sum(facts).tolist()
    if failed:
        session.processes.agree(failure)
    return Crops(parts, total, stop > 0)


def take_gradient(session: Session, config: TrainConfig, crops: Crops) -> Tensor:
    """Put the gradient of the whole step into the parameters; returns this process's part of the loss.

    Where memory runs out the parts are halved, for the rest of the run, and the step begins again.

    Raises:
        RunError: not even one crop fits.
    """
    session.depth.draw(config.crops_per_step)
    while True:
        loss, failure = None, None
        try:
            loss = _passes(session, config, crops)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            failure = str(error).splitlines()[0]
        short = session.processes.sum(torch.tensor(int(failure is not None)))
        if not short:
            break
        session.optimizer.zero_grad()
        _halve(session, config, failure)
    assert loss is not None  # no process ran out of memory
    session.processes.sum_gradients(session.model.parameters())
    return loss


def _passes(session: Session, config: TrainConfig, crops: Crops) -> Tensor:
    """Forward and backward of this process's crops, part by part; the summed loss."""
    fabric, loss = session.fabric, torch.zeros((), device=session.model.device)
    for part, offset in _parts(session, config, crops):
        images, labels = fabric.to_device(part)
        session.depth.use(slice(offset, offset + len(images)), session.model.device)
        share = 0.0 if crops.total == 0 else _count(part[1], session, config) / crops.total
        with fabric.no_backward_sync(session.network):  # gradients are exchanged once all processes are through
            one = crop_loss(session.network(images), labels, session, config) * share
            fabric.backward(one)
        loss += one.detach()
    return loss


def _parts(session: Session, config: TrainConfig, crops: Crops) -> Iterator[tuple[tuple[Tensor, Tensor], int]]:
    """Images and labels of at most `session.crops_at_once`, and their first crop's place in the step."""
    for number, (images, labels, _) in enumerate(crops.parts):
        place = (number * session.processes.count + session.processes.rank) * config.batch_size
        for start in range(0, len(images), session.crops_at_once):
            some = slice(start, start + session.crops_at_once)
            yield (images[some], labels[some]), place + start


def _halve(session: Session, config: TrainConfig, failure: str | None) -> None:
    if session.model.device.type == "cuda":
        torch.cuda.empty_cache()
    before = session.crops_at_once
    if before == 1:
        reason = "another process" if failure is None else failure
        raise RunError(
            f"out of memory with a single crop of {config.augment.crop} ({reason}); use a smaller augment.crop, "
            "precision bf16, or a device with more memory"
        )
    session.crops_at_once = -(-before // 2)
    if session.processes.first:
        warnings.warn(
            f"out of memory with {before} crops in one pass: going on with {session.crops_at_once} at a time, to the "
            "same gradient",
            stacklevel=2,
        )


def _count(labels: Tensor, session: Session, config: TrainConfig) -> float:
    weight = torch.ones(session.model.labels.num_classes) if session.weight is None else session.weight
    count = loss_count(
        labels, weight.to(labels.device), ignore_index=session.model.labels.ignore, normalize=config.loss.normalize
    )
    return float(count)


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
