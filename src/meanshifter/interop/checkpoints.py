"""Checkpoints of MMSegmentation (0.x and 1.x) and of the Segmenter of its authors, as models of ours.

Sources: `mmseg/models` and the Segmenter configurations of MMSegmentation 1.2.2; `segm/model` and `segm/train.py` of
github.com/rstrudel/segmenter.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.interop.architecture import UNTOLD_STEPS, Notes
from meanshifter.interop.mmsegmentation import describe_mmsegmentation
from meanshifter.interop.naming import MMSEGMENTATION, SEGMENTER, Naming, Unfit, from_foreign
from meanshifter.interop.official import describe_segmenter
from meanshifter.model.building import build
from meanshifter.model.config import ModelConfig
from meanshifter.model.segmenter import Segmenter
from meanshifter.model.stored import load_stored
from meanshifter.pickles import check_tensors, read_pickle

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Tool:
    """A tool whose checkpoints are read."""

    name: str
    naming: Naming
    encoder: str
    """The beginning of its encoder's tensors."""
    decoder: str
    """The beginning of its decoder's."""
    describe: Callable[[Mapping[str, Tensor], Mapping[str, Any], Path], tuple[ModelConfig, LabelSpace, Notes]]
    """Tensors, the whole file and its path → configuration, classes, and what to know of it."""


TOOLS = (
    Tool("MMSegmentation", MMSEGMENTATION, "backbone.", "decode_head.", describe_mmsegmentation),
    Tool("Segmenter", SEGMENTER, "encoder.", "decoder.", describe_segmenter),
)


def read_checkpoint(
    path: str | Path,
    *,
    partial: bool = False,
    mean_shift_layers: int | None = None,
    device: str | torch.device = "cpu",
) -> Segmenter:
    """The model in another tool's checkpoint file.

    Args:
        path: a `.pth` of MMSegmentation, or the `checkpoint.pth` of the authors' Segmenter beside its `variant.yml`.
        partial: also take a file that lacks tensors (they keep their random start) or has more, with a warning.
        mean_shift_layers: L_ms of a MeanShifter, which no tensor tells; None: what the file states, or 1.
        device: where the weights go.

    Returns:
        The model in evaluation mode.

    Raises:
        InputError: a file that is damaged, of no known tool, that wants anything but tensors, or whose tensors are
            not those of the model that they describe; their names are listed.
    """
    path = Path(path)
    whole = read_pickle(path)
    tool, state = _recognise(whole, path)
    check_tensors(state, path)
    config, labels, notes = _described(tool, state, whole, path)
    if mean_shift_layers is not None:
        config = _with_steps(config, mean_shift_layers, path)
        notes.assumed = [note for note in notes.assumed if note != UNTOLD_STEPS]
    try:
        model = build(config, labels, path, tensors=len(state), size=path.stat().st_size)
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    found, unfit = from_foreign(state, model.state_dict(), tool.naming)
    _check(unfit, tool, path, partial=partial)
    load_stored(model, found, strict=False)
    model.carried = {key: state[key].contiguous() for key in state if key.startswith(tool.naming.carried)}
    _note_tensors(model, tool, state, notes)
    if told := str(notes):
        warnings.warn(f"{path}: {told}", stacklevel=2)
    return model.to(device).eval()


def _recognise(whole: Any, path: Path) -> tuple[Tool, dict[str, Tensor]]:
    """The tool that wrote the file, and the tensors of the model."""
    places = [whole] + [whole.get(key) for key in ("state_dict", "model")] if isinstance(whole, dict) else []
    for state in places:
        if not isinstance(state, Mapping):
            continue
        tensors = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
        for tool in TOOLS:
            if all(any(key.startswith(part) for key in tensors) for part in (tool.encoder, tool.decoder)):
                return tool, tensors
    keys = [str(key) for state in places[::-1] if isinstance(state, Mapping) for key in state][:3]
    raise InputError(
        f"{path}: no Segmenter of MMSegmentation or of its authors (it holds {', '.join(keys) or 'no names'}); for the "
        "weights of an encoder alone use `backbone_weights`"
    )


def _described(
    tool: Tool, state: Mapping[str, Tensor], whole: Any, path: Path
) -> tuple[ModelConfig, LabelSpace, Notes]:
    """What the tool's own description says, which may hold anything in any place."""
    try:
        return tool.describe(state, whole, path)
    except InputError as error:
        beside = (str(path), str(path.parent / "variant.yml"))
        raise error if str(error).startswith(beside) else InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{path}: what it says of its model cannot be understood ({reason}); copy it and its configuration again"
        ) from error


def _with_steps(config: ModelConfig, layers: int, path: Path) -> ModelConfig:
    if config.mean_shift is None:
        raise InputError(f"mean_shift_layers: {layers}, but {path} has no mean shift block; leave it out")
    return replace(config, mean_shift=replace(config.mean_shift, layers=layers))


def _note_tensors(model: Segmenter, tool: Tool, state: Mapping[str, Tensor], notes: Notes) -> None:
    """Tensors that are not what the model computes with, besides the classifier that every file of the authors has."""
    parts = sorted({key.partition(".")[0] for key in state if key.startswith(tool.naming.unused)} - {"encoder"})
    notes.otherwise += [f"{part} is not used" for part in parts]
    if torch.float64 in model.kinds.values():
        notes.otherwise.append("float64 is rounded to float32")


def _check(unfit: Unfit, tool: Tool, path: Path, *, partial: bool) -> None:
    kinds = (("lacks", unfit.missing), ("has left over", unfit.left_over), ("has of another shape", unfit.shapes))
    parts = [f"{kind} {len(names)}: {_few(names)}" for kind, names in kinds if names]
    if not parts:
        return
    what = f"{path}, read as a checkpoint of {tool.name}, {'; '.join(parts)}"
    if not partial:
        raise InputError(f"{what}; `partial=True`, or `meanshifter convert {path} OUT --partial`, takes what fits")
    warnings.warn(what, stacklevel=3)


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
