"""What writing files for other tools shares: tensors under their names, and what is said of differences."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from meanshifter.errors import InputError
from meanshifter.files import write_beside
from meanshifter.interop.naming import Naming, to_foreign
from meanshifter.model.config import MeanShiftConfig
from meanshifter.model.segmenter import Segmenter
from meanshifter.model.stored import stored_state


def foreign_state(model: Segmenter, naming: Naming, tool: str) -> dict[str, Tensor]:
    """A model's tensors under a tool's names, with those that it carries along for it.

    Raises:
        InputError: the tool has no place for one of them.
    """
    own = stored_state(model)
    homeless = [name for name in own if naming.place(name) is None]
    shift = model.config.mean_shift
    if shift is not None and shift != MeanShiftConfig(shift.layers, shift.channels, neighbors=shift.neighbors):
        homeless.append("mean_shift, which is not the published block")
    if homeless:
        raise InputError(f"model: {tool} has no place for {', '.join(homeless[:3])}; write a model folder instead")
    carried = {name: value for name, value in model.carried.items() if name.startswith(naming.carried)}
    return to_foreign(own, naming) | carried


def save_pickle(path: Path, content: Any) -> None:
    """`torch.save`, beside and renamed into place."""
    write_beside(path, lambda file: torch.save(content, file.name))


def tell(tool: str, changed: list[str]) -> None:
    """Warn that the tool computes the model otherwise, if it does."""
    if changed:
        warnings.warn(f"{tool} computes the model a little otherwise: {'; '.join(changed)}", stacklevel=3)


def changed_positions(model: Segmenter, theirs: str) -> list[str]:
    """What is to be said where the tool resamples position embeddings as `theirs` and the model does not."""
    ours = model.config.positions
    if ours == theirs or (theirs == "bicubic" and ours == "bilinear"):  # MMSegmentation can be told either
        return []
    height, width = model.config.image_size
    return [f"position embeddings are resampled {theirs}, not {ours}, in windows of another size than {height}×{width}"]


def norm_eps(model: Segmenter) -> float:
    """ε of the encoder's layer norms."""
    return next(module.eps for module in model.encoder.vit.modules() if isinstance(module, torch.nn.LayerNorm))


def mlp_ratio(model: Segmenter) -> float | int:
    """Width of the encoder's MLPs over that of its tokens."""
    hidden = next(value for key, value in model.state_dict().items() if key.endswith("mlp.fc1.weight")).shape[0]
    ratio = hidden / model.encoder.width
    return int(ratio) if ratio == int(ratio) else ratio
