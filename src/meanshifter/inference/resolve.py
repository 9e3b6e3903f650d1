"""What `Predictor` accepts as a model: objects, wrapped ones, names and lists, with merged tokens or another engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from torch import nn

from meanshifter.errors import InputError
from meanshifter.inference.ensemble import Ensemble, members_of
from meanshifter.inference.preprocess import Preprocess
from meanshifter.inference.protocol import PatchModel
from meanshifter.model.config import ModelConfig
from meanshifter.model.segmenter import Segmenter

if TYPE_CHECKING:
    from meanshifter.export.engines import Choice

Model = PatchModel | nn.Module | str | Path
"""A model, or a name that `load_model` accepts."""
Engine = Literal["torch", "auto", "openvino", "onnx"]
"""What computes patch logits."""
WRAPPERS = ("_orig_mod", "module")
"""Attributes in which torch.compile, and DDP and Fabric, keep the wrapped module."""


def resolve_model(model: Model | Sequence[Model]) -> PatchModel:
    """Load a model by name, or unwrap it from torch.compile, DDP and Fabric; several become an ensemble.

    Raises:
        InputError: it is no model.
    """
    if isinstance(model, list | tuple):
        return Ensemble([resolve_model(member) for member in model])
    if isinstance(model, str | Path):
        from meanshifter.checkpoints.load import load_model  # names are resolved above: docs/architecture.md

        return load_model(model)
    inner: Any = model
    while not hasattr(type(inner), "logits_at"):
        wrapped = next((part for name in WRAPPERS if (part := getattr(inner, name, None)) is not None), None)
        if wrapped is None:
            break
        inner = wrapped
    if not hasattr(inner, "logits_at"):
        raise InputError(f"model: {type(inner).__name__}; expected a Segmenter, an export, or the name of a model")
    found: PatchModel = inner
    return found


def with_merging(model: PatchModel, share: float | None) -> PatchModel:
    """The model, or the members of an ensemble, with this share of uniform windows merged; None: as it is.

    Raises:
        InputError: a share outside 0 to 1, an export, or an encoder that cannot merge tokens.
    """
    if share is None:
        return model
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise InputError(f"merge_tokens: {share!r}; it must be a share of the windows from 0 to 1")
    if isinstance(model, Ensemble):
        return Ensemble([with_merging(member, share) for member in model.members])
    if not isinstance(model, Segmenter):
        raise InputError(
            f"merge_tokens: {share}, but the model is an export, whose tokens are fixed; give the model that was "
            "exported, or export it with model.token_merging"
        )
    return model.merging_view(float(share))


def with_engine(
    model: PatchModel,
    engine: Engine,
    *,
    layers: int,
    precision: str,
    shape: Callable[[PatchModel], tuple[int, int, int, int]],
) -> tuple[PatchModel, tuple[Choice, ...]]:
    """The model, or the members of an ensemble, computed by an engine, and which engine that is.

    `shape`: the windows of one forward pass of a model, (windows, 3, height, width).

    Raises:
        InputError: an unknown engine, an export, or as `export.engines.with_engine`.
    """
    if engine == "torch":
        return model, ()
    if engine not in get_args(Engine):
        raise InputError(f"engine: {engine!r}; use one of {', '.join(get_args(Engine))}")
    from meanshifter.export import engines  # exports are above: docs/architecture.md

    found: list[tuple[PatchModel, Choice]] = []
    for member in members_of(model):
        if not isinstance(member, Segmenter):
            raise InputError(
                f"engine: {engine}, but the model is an export, which has its own; leave it out, or give the model "
                "that was exported"
            )
        found.append(engines.with_engine(member, engine, layers=layers, precision=precision, shape=shape(member)))
    members, choices = zip(*found, strict=True)
    return Ensemble(members) if isinstance(model, Ensemble) else members[0], choices


def preprocess_for(compat: str | Preprocess | None, config: ModelConfig) -> Preprocess:
    """The preprocessing of a model's configuration, or of another tool.

    Raises:
        InputError: an unknown tool.
    """
    if compat is None:
        return Preprocess.of(config)
    if isinstance(compat, Preprocess):
        return compat
    from meanshifter.checkpoints.compat import preprocess_of  # names are resolved above: docs/architecture.md

    return preprocess_of(compat, config)


def shared_preprocess(several: list[Preprocess]) -> Preprocess:
    """The preprocessing that all models of an ensemble have; an InputError with the fields that differ."""
    names = [field.name for field in dataclasses.fields(Preprocess)]
    values = {name: [getattr(entry, name) for entry in several] for name in names}
    differing = [f"{name} is {', '.join(map(str, found))}" for name, found in values.items() if len(set(found)) > 1]
    if differing:
        raise InputError(
            f"model: the models of the ensemble differ in preprocessing ({'; '.join(differing)}); set these fields for "
            "all of them, or give models with the same"
        )
    return several[0]
