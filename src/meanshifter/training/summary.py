"""What a training is, told before its first step, and what helps where it takes long."""

from __future__ import annotations

from typing import Final

from meanshifter.evaluation.evaluate import count_images
from meanshifter.training.display import spell
from meanshifter.training.recipe import TrainConfig
from meanshifter.training.session import Session

LONG: Final = 30 * 60
"""Seconds from which a training on a CPU is told what shortens it."""
NAMES: Final = 8


def summary(session: Session, config: TrainConfig) -> list[str]:
    """Lines on data, model and training."""
    data, labels = config.data, session.model.labels
    place = data.name if data.root is None else f"{data.name} {data.root}"
    names = ", ".join(labels.names[:NAMES]) + (", …" if labels.num_classes > NAMES else "")
    scored = count_images(session.val_set, config.evaluation.limit)
    model = config.model.preset if config.model.start is None else config.model.start
    parameters = sum(parameter.numel() for parameter in session.model.parameters())
    devices = f"{session.processes.count} × " if session.processes.count > 1 else ""
    height, width = config.augment.crop
    every = config.evaluation.every
    steps = f"{config.steps:,} steps"
    evaluated = f" · evaluated {f'every {every:,} steps and ' if 0 < every < config.steps else ''}after the last"
    if config.minutes is not None:
        steps, evaluated = f"as many steps as fit into {config.minutes:g} minutes,", ""
    return [
        f"data: {place} · {session.images:,} images to learn from, {scored:,} to score on · "
        f"{labels.num_classes} classes ({names}), {session.look.origin}",
        f"model: {model} · {parameters:,} parameters · {devices}{session.model.device.type}, {config.precision}",
        f"training: {steps} of {config.crops_per_step} crops of {height}×{width}{evaluated}",
    ]


def advice(session: Session, config: TrainConfig, seconds: float | None) -> str | None:
    """What shortens a training that will take so long on a CPU; None where nothing has to be said."""
    if seconds is None or seconds < LONG or session.model.device.type != "cpu":
        return None
    smaller = max(config.augment.crop) // 2
    return (
        f"{spell(seconds)} is long, as this trains on a CPU: --minutes 30 trains as many steps as fit into that time, "
        f"--size {smaller} makes crops and images smaller and each step about four times faster (stop with Ctrl-C, and "
        "begin again with another --out)"
    )
