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
from meanshifter.interop.mmsegmentation import describe_mmsegmentation
from meanshifter.interop.naming import MMSEGMENTATION, SEGMENTER, Naming, Unfit, from_foreign
from meanshifter.interop.official import describe_segmenter
from meanshifter.model.config import ModelConfig
from meanshifter.model.segmenter import Segmenter
from meanshifter.pickles import read_pickle

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Tool:
    """A tool whose checkpoints are read."""

    name: str
    naming: Naming
    encoder: str
    """The beginning of its encoder's tensors."""
    describe: Callable[[Mapping[str, Tensor], Mapping[str, Any], Path], tuple[ModelConfig, LabelSpace, list[str]]]
    """Tensors, the whole file and its path → configuration, classes, and what had to be assumed."""


TOOLS = (
    Tool("MMSegmentation", MMSEGMENTATION, "backbone.", describe_mmsegmentation),
    Tool("Segmenter", SEGMENTER, "encoder.", describe_segmenter),
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
    config, labels, assumed = tool.describe(state, whole, path)
    if mean_shift_layers is not None:
        config = _with_steps(config, mean_shift_layers, path)
        assumed = [entry for entry in assumed if "mean_shift_layers" not in entry]
    model = Segmenter(config, labels)
    found, unfit = from_foreign(state, model.state_dict(), tool.naming)
    _check(unfit, tool, path, partial=partial)
    model.load_state_dict(found, strict=False)
    model.unused = {name: value for name, value in state.items() if name.startswith(tool.naming.unused)}
    if assumed:
        warnings.warn(f"{path}: assumed, as the file does not say: {'; '.join(assumed)}", stacklevel=2)
    return model.to(device).eval()


def _recognise(whole: Any, path: Path) -> tuple[Tool, dict[str, Tensor]]:
    """The tool that wrote the file, and the tensors of the model."""
    places = [whole] + [whole.get(key) for key in ("state_dict", "model")] if isinstance(whole, dict) else []
    for state in places:
        if not isinstance(state, Mapping):
            continue
        tensors = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
        for tool in TOOLS:
            decoder = "decode_head." if tool.encoder == "backbone." else "decoder."
            if all(any(key.startswith(part) for key in tensors) for part in (tool.encoder, decoder)):
                return tool, tensors
    keys = [str(key) for state in places[::-1] if isinstance(state, Mapping) for key in state][:3]
    raise InputError(
        f"{path}: no Segmenter of MMSegmentation or of its authors (it holds {', '.join(keys) or 'no names'}); for the "
        "weights of an encoder alone use `backbone_weights`"
    )


def _with_steps(config: ModelConfig, layers: int, path: Path) -> ModelConfig:
    if config.mean_shift is None:
        raise InputError(f"mean_shift_layers: {layers}, but {path} has no mean shift block; leave it out")
    return replace(config, mean_shift=replace(config.mean_shift, layers=layers))


def _check(unfit: Unfit, tool: Tool, path: Path, *, partial: bool) -> None:
    kinds = (("lacks", unfit.missing), ("has left over", unfit.left_over), ("has of another shape", unfit.shapes))
    parts = [f"{kind} {len(names)}: {_few(names)}" for kind, names in kinds if names]
    if not parts:
        return
    what = f"{path}, read as a checkpoint of {tool.name}, {'; '.join(parts)}"
    if not partial:
        raise InputError(f"{what}; `partial` (--partial) takes what fits")
    warnings.warn(what, stacklevel=3)


def _few(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
