"""Load checkpoints of MMSegmentation (0.x and 1.x) and of the official Segmenter.

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

from meanshifter.checkpoints.mmsegmentation import describe_mmsegmentation
from meanshifter.checkpoints.naming import (
    ASSUMED_STEPS,
    MMSEGMENTATION,
    SEGMENTER,
    KeyMismatch,
    Naming,
    Notes,
    from_foreign,
)
from meanshifter.checkpoints.segmenter_official import describe_segmenter
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError, summarize_error
from meanshifter.model.config import ModelConfig
from meanshifter.model.encoder_weights import check_tensors
from meanshifter.model.saving import FileState, build, dtypes_of
from meanshifter.model.segmenter import Segmenter
from meanshifter.utils.safe_pickle import read_pickle

SUFFIXES = (".pth", ".pt", ".ckpt", ".bin")


@dataclass(frozen=True)
class Tool:
    """A tool whose checkpoints can be loaded."""

    name: str
    naming: Naming
    encoder: str
    """Prefix of its encoder's tensors."""
    decoder: str
    """Prefix of its decoder's tensors."""
    describe: Callable[[Mapping[str, Tensor], Mapping[str, Any], Path], tuple[ModelConfig, LabelSpace, Notes]]
    """Tensors, content of the file and its path → configuration, classes and notes for the user."""


TOOLS = (
    Tool("MMSegmentation", MMSEGMENTATION, "backbone.", "decode_head.", describe_mmsegmentation),
    Tool("the official Segmenter", SEGMENTER, "encoder.", "decoder.", describe_segmenter),
)


def read_checkpoint(
    path: str | Path,
    *,
    allow_missing: bool = False,
    mean_shift_layers: int | None = None,
    device: str | torch.device = "cpu",
) -> Segmenter:
    """Load the model in another tool's checkpoint file: `read_with_state` without the file's state."""
    return read_with_state(path, allow_missing=allow_missing, mean_shift_layers=mean_shift_layers, device=device)[0]


def read_with_state(
    path: str | Path,
    *,
    allow_missing: bool = False,
    mean_shift_layers: int | None = None,
    device: str | torch.device = "cpu",
) -> tuple[Segmenter, FileState]:
    """Load the model in another tool's checkpoint file, along with the rest of the file's state.

    Args:
        path: a `.pth` of MMSegmentation, or a `checkpoint.pth` of the official Segmenter next to its `variant.yml`.
        allow_missing: only warn about missing tensors (they keep their random initialization) and unexpected ones.
        mean_shift_layers: L_ms of a MeanShifter, which no tensor shows; None: the file's value, or 1.
        device: where the weights go.

    Returns:
        The model in evaluation mode, and the file's extra tensors and data types.

    Raises:
        InputError: the file is damaged, of no known tool or unsafe, or its tensors do not match the model that they
            describe; the message names them.
    """
    path = Path(path)
    content = read_pickle(path)
    tool, state = _recognize(content, path)
    check_tensors(state, path)
    config, labels, notes = _described(tool, state, content, path)
    if mean_shift_layers is not None:
        if config.mean_shift is None:
            raise InputError(
                f"mean_shift_layers: {mean_shift_layers}, but {path} has no mean shift block; leave it out"
            )
        config = replace(config, mean_shift=replace(config.mean_shift, layers=mean_shift_layers))
        notes.assumed = [note for note in notes.assumed if note != ASSUMED_STEPS]
    try:
        model = build(config, labels, path, tensors=len(state), size=path.stat().st_size)
    except InputError as error:
        raise error if str(path) in str(error) else InputError(f"{path}: {error}") from error
    found, mismatch = from_foreign(state, model.state_dict(), tool.naming)
    _check(mismatch, tool, path, allow_missing=allow_missing)
    model.load_state_dict(found, strict=False)
    extra = {key: state[key].contiguous() for key in state if key.startswith(tool.naming.unused)}
    held = FileState(extra, dtypes_of(found))
    # every official file has an ImageNet classifier in its encoder, which nobody expects to be used
    unused = sorted({key.partition(".")[0] for key in extra} - {"encoder"})
    notes.ignored += [f"{part} is not used" for part in unused]
    if torch.float64 in held.dtypes.values():
        notes.ignored.append("float64 is rounded to float32")
    if text := str(notes):
        warnings.warn(f"{path}: {text}", stacklevel=2)
    return model.to(device).eval(), held


def _recognize(content: Any, path: Path) -> tuple[Tool, dict[str, Tensor]]:
    """The tool that wrote the file, and the tensors of the model."""
    places = [content] + [content.get(key) for key in ("state_dict", "model")] if isinstance(content, dict) else []
    for state in places:
        if not isinstance(state, Mapping):
            continue
        tensors = {str(key).removeprefix("module."): value for key, value in state.items() if isinstance(value, Tensor)}
        for tool in TOOLS:
            if all(any(key.startswith(part) for key in tensors) for part in (tool.encoder, tool.decoder)):
                return tool, tensors
    keys = [str(key) for state in places[::-1] if isinstance(state, Mapping) for key in state][:3]
    raise InputError(
        f"{path}: not a Segmenter of MMSegmentation or of the official code (it has {', '.join(keys) or 'no names'}); "
        "for the weights of an encoder alone use `encoder_weights`"
    )


def _described(
    tool: Tool, state: Mapping[str, Tensor], content: Any, path: Path
) -> tuple[ModelConfig, LabelSpace, Notes]:
    """`tool.describe`, with an `InputError` for any error: the file may hold any value in any place."""
    try:
        return tool.describe(state, content, path)
    except InputError as error:
        files = (str(path), str(path.parent / "variant.yml"))
        raise error if str(error).startswith(files) else InputError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError) as error:
        reason = summarize_error(error)
        raise InputError(
            f"{path}: its configuration cannot be interpreted ({reason}); copy it and its configuration again"
        ) from error


def _check(mismatch: KeyMismatch, tool: Tool, path: Path, *, allow_missing: bool) -> None:
    kinds = {"missing": mismatch.missing, "unexpected": mismatch.unexpected, "of another shape": mismatch.shapes}
    parts = [
        f"{len(names)} {kind}: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}"
        for kind, names in kinds.items()
        if names
    ]
    if not parts:
        return
    text = f"{path}: tensors do not match, read as a checkpoint of {tool.name}: {'; '.join(parts)}"
    if not allow_missing:
        raise InputError(
            f"{text}; to load those that match, pass `allow_missing=True` or run `meanshifter convert {path} OUT "
            "--allow-missing`"
        )
    warnings.warn(text, stacklevel=3)
