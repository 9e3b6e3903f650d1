"""The validation score of a run, and what its mean shift steps do."""

from __future__ import annotations

import math

from meanshifter.evaluation.diagnosis import diagnose_model
from meanshifter.evaluation.evaluate import evaluate
from meanshifter.evaluation.result import Result
from meanshifter.inference.predictor import Predictor
from meanshifter.training.recipe import TrainConfig
from meanshifter.training.session import Session


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


def score(session: Session, config: TrainConfig) -> Result:
    """The scores on the validation split, as the recipe reads images out."""
    return evaluate(
        reader(session, config), session.val_set, limit=config.evaluation.limit, processes=session.processes
    )
