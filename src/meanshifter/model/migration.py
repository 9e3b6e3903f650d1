"""Migrate files of format 1 (`config.json`, `config.yaml`, weights), whose fields, presets and tensors were renamed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

from meanshifter.errors import InputError

FORMER, CURRENT = 1, 2
"""Versions of `config.json` and `config.yaml`."""
Value = TypeVar("Value")

MEAN_SHIFT = {"neighbors": "init_neighbors", "spatial": "spatial_sigma", "beside": "residual_readout"}
PIXEL_SHIFT = {"spatial": "spatial_sigma"}
MODEL = {"backbone": "encoder", "backbone_args": "encoder_args", "stride": "window_stride"}
RUNTIME = {"stride": "output_stride"}
READING = {"stride": "window_stride", "protocol": "compat"}
RECIPE: Mapping[str, Mapping[str, str]] = {
    "data": {"hold_out": "val_pattern", "on_device": "gpu_cache"},
    "model": {**MODEL, "start": "init_from", "backbone_weights": "encoder_weights"},
    "augment": {"base": "resize_base", "distortion": "photometric_distortion"},
    "loss": {"normalize": "reduction", "class_balance": "class_weight_power"},
    "evaluation": {"every": "interval", "stride": "window_stride"},
}
REDUCTIONS = {"valid": "mean_valid", "pixels": "mean_all"}
PRESETS = {"jointshifter": "meanshifter-joint", "pixelshifter": "meanshifter-pixel"}
TENSORS = {"mean_shift.beside.": "mean_shift.residual_readout.", "pixel_shift.look.": "pixel_shift.pixel_features."}


def migrate_description(described: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Convert a `config.json` of format 1 to format 2.

    Raises:
        InputError: the model has the option `restore`, which no longer exists.
    """
    found = {**described, "format_version": CURRENT}
    if "labels" in found:
        found["label_space"] = found.pop("labels")
    if isinstance(found.get("model"), Mapping):
        found["model"] = _migrate_blocks(_renamed(found["model"], MODEL), source)
    if isinstance(found.get("runtime"), Mapping):
        found["runtime"] = _renamed(found["runtime"], RUNTIME)
        if isinstance(found["runtime"].get("reading"), Mapping):
            found["runtime"]["reading"] = _renamed(found["runtime"]["reading"], READING)
    return found


def migrate_recipe(values: Mapping[str, Any], source: object) -> dict[str, Any]:
    """Convert a recipe, or the `config.yaml` of a run, from format 1 to format 2.

    Raises:
        InputError: a block has the option `restore`, which no longer exists.
    """
    found = {**values, "format_version": CURRENT}
    for section, names in RECIPE.items():
        if isinstance(found.get(section), Mapping):
            found[section] = _renamed(found[section], names)
    if isinstance(model := found.get("model"), dict):
        found["model"] = _migrate_blocks(model, source)
        if isinstance(preset := model.get("preset"), str):
            found["model"]["preset"] = re.sub(r"^\w+", lambda part: PRESETS.get(part[0], part[0]), preset)
    if isinstance(loss := found.get("loss"), dict) and isinstance(loss.get("reduction"), str):
        found["loss"]["reduction"] = REDUCTIONS.get(loss["reduction"], loss["reduction"])
    return found


def migrate_tensors(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Rename tensors of format 1; current names are kept."""
    found = dict(tensors)
    for former, current in TENSORS.items():
        found = {name.replace(former, current): value for name, value in found.items()}
    return found


def _migrate_blocks(model: Mapping[str, Any], source: object) -> dict[str, Any]:
    found = dict(model)
    for block, names in (("mean_shift", MEAN_SHIFT), ("pixel_shift", PIXEL_SHIFT)):
        if isinstance(found.get(block), Mapping):
            found[block] = _renamed(found[block], names)
            if found[block].pop("restore", False):
                raise InputError(
                    f"{source}: mean_shift.restore is true, but this option was removed; use a release that has it"
                )
    return found


def _renamed(section: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in section.items()}
