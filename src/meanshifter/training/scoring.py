"""The validation score of a run, and what its mean shift steps do."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from meanshifter.evaluation.confusion import confusion_matrix
from meanshifter.evaluation.diagnosis import RADII, boundary_figures, diagnose_model, near_boundaries
from meanshifter.evaluation.evaluate import check_classes, count_images, image_maps, protocol_of
from meanshifter.evaluation.result import Result
from meanshifter.inference.predictor import Predictor
from meanshifter.processes import Processes
from meanshifter.training.recipe import TrainConfig
from meanshifter.training.session import Session

PROBE = 3
"""Images whose scoring is timed."""


@dataclass(frozen=True)
class Scores:
    """What one evaluation gives."""

    result: Result
    boundary: dict[str, float]
    """boundary_3 and boundary_9: mIoU in percent of the pixels within 3 and 9 of another class."""


def reader(session: Session, config: TrainConfig) -> Predictor:
    """What reads images out as the recipe says."""
    evaluation = config.evaluation
    return Predictor(
        session.scored,
        window=evaluation.window,
        stride=evaluation.stride,
        short_side=evaluation.short_side,
        long_side=evaluation.long_side,
        precision=config.precision,
    )


def step_figures(session: Session, config: TrainConfig) -> dict[str, float]:
    """What the mean shift steps do on two validation images, as step1/neighbors and so on; nothing without steps."""
    if not session.model.has_steps:
        return {}
    predictor = reader(session, config)
    rows = diagnose_model(
        predictor, session.val_set, predictor.mean_shift_layers, images=2, limit=config.evaluation.limit
    )
    named = {f"step{n}/{name}": value for n, row in enumerate(rows) for name, value in row.items()}
    return {name: value for name, value in named.items() if math.isfinite(value)}


def score(session: Session, config: TrainConfig) -> Scores:
    """The scores on the validation split, as the recipe reads images out."""
    return _score(session, config, config.evaluation.limit, session.processes)


def image_seconds(session: Session, config: TrainConfig) -> float:
    """Seconds in which this process, alone, scores an image; the first is not timed."""
    count = min(PROBE, count_images(session.val_set, config.evaluation.limit))
    _score(session, config, 1, Processes())
    began = time.perf_counter()
    _score(session, config, count, Processes())
    return (time.perf_counter() - began) / count


def _score(session: Session, config: TrainConfig, limit: int | None, processes: Processes) -> Scores:
    predictor, dataset = reader(session, config), session.val_set
    check_classes(predictor.model.labels, dataset.labels, f"{dataset.name} {dataset.split}")
    layers, K, ignore = predictor.mean_shift_layers, dataset.labels.num_classes, dataset.labels.ignore

    def of_my_images() -> torch.Tensor:
        totals, ignored = np.zeros((1 + len(RADII), K, K), np.int64), 0
        share = (processes.rank, processes.count)
        for sample, maps in image_maps(predictor, dataset, [layers], limit=limit, share=share):
            totals[0] += confusion_matrix(sample.labels, maps[0], K, ignore=ignore)
            totals[1:] += near_boundaries(sample.labels, maps, K, ignore)[0]
            ignored += int(np.count_nonzero(sample.labels == ignore))
        return torch.from_numpy(np.append(totals, ignored))

    counts = processes.sum(processes.together(of_my_images)).numpy()
    totals = counts[:-1].reshape(-1, K, K)
    protocol = protocol_of(predictor, dataset, limit=limit)
    result = Result(totals[0], dataset.labels.names, protocol, ignored=int(counts[-1]))
    return Scores(result, boundary_figures(totals[1:]))
