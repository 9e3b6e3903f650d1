"""What is read from the config.yaml of a run, which an earlier version may have written."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from meanshifter.errors import InputError
from meanshifter.model.config import FORMER, MeanShiftConfig, PixelShiftConfig, TokenMergingConfig
from meanshifter.training.config import TrainConfig
from meanshifter.training.parsing import read_run_config
from meanshifter.training.sections import EvaluationConfig, LoraConfig

BLOCKS: Final = {
    "model.mean_shift": asdict(MeanShiftConfig()),
    "model.pixel_shift": asdict(PixelShiftConfig()),
    "model.token_merging": asdict(TokenMergingConfig()),
    "lora": asdict(LoraConfig()),
}
"""Sections that are null by default, with the defaults of their fields."""
FORMER_FACTOR: Final = 4
"""`model.pixel_shift.factor` before null became its default, which is the same for patches of 16."""


def recipe_reading(path: str | Path) -> dict[str, Any]:
    """The preprocessing of a run's evaluations, as arguments of `Predictor`; empty if `path` is not a run folder."""
    try:
        stored = read_run_config(path)
        reading = {name: stored["evaluation"][name] for name in EvaluationConfig().reading}
    except (InputError, KeyError, TypeError):
        return {}
    for name, value in reading.items():
        if value is not None and not isinstance(value, int):
            raise InputError(f"{path}: evaluation.{name} in config.yaml is {value!r:.40}; expected a number of pixels")
    return reading


def first_save(stored: Mapping[str, Any]) -> float:
    """The step of the first checkpoint of a run with this config.yaml."""
    evaluation = stored.get("evaluation")
    interval = evaluation.get("interval") if isinstance(evaluation, dict) else 0
    every = (stored.get("save_every"), stored.get("steps"), interval)
    return min((count for count in every if isinstance(count, int) and count > 0), default=math.inf)


def crops_per_step(stored: Any) -> int | None:
    """`TrainConfig.crops_per_step` of a config.yaml."""
    with suppress(KeyError, TypeError):
        product: int = stored["batch_size"] * stored["accumulate"]
        for name in ("devices", "num_nodes"):
            product *= 1 if stored.get(name) is None else stored[name]
        return product
    return None


def changed_fields(stored: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """Name, stored value and new value of each field of a configuration that differs.

    A field that the version of either did not have yet counts as its default, which means what that version did.
    """
    defaults = TrainConfig().to_dict()
    return _differences(_completed(stored, defaults), _completed(now, defaults))


def _completed(values: dict[str, Any], defaults: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """`values` with the fields that they lack."""
    own = {**defaults, **FORMER.get(prefix.removeprefix("model.").removesuffix("."), {}), **values}
    for name, value in values.items():
        inner = BLOCKS.get(f"{prefix}{name}", defaults.get(name))
        if isinstance(value, dict) and isinstance(inner, dict) and inner:
            own[name] = _completed(value, inner, f"{prefix}{name}.")
    if prefix == "model.pixel_shift." and own["factor"] is None:
        own["factor"] = FORMER_FACTOR
    return own


def _differences(stored: Any, ours: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Name, stored value and new value of each field that differs."""
    if isinstance(stored, dict) and isinstance(ours, dict):
        return [
            found
            for key in {**stored, **ours}
            for found in _differences(stored.get(key), ours.get(key), f"{prefix}.{key}".lstrip("."))
        ]
    return [] if stored == ours else [(prefix, stored, ours)]
