"""The kinds of numbers in which files hold a model's tensors; it computes in float32, whatever they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from meanshifter.model.segmenter import Segmenter


def load_stored(model: Segmenter, state: Mapping[str, Tensor], *, strict: bool = True) -> None:
    """Load a file's tensors, and remember those that are not float32 in `model.kinds`."""
    model.load_state_dict(state, strict=strict)
    model.kinds = {name: value.dtype for name, value in state.items() if value.dtype != torch.float32}


def stored_state(model: Segmenter) -> dict[str, Tensor]:
    """The model's tensors in the kinds that `model.kinds` remembers, except where that would change a value.

    Weights that were trained on since they were read stay float32 for that reason.
    """
    return {name: _as_kind(value, model.kinds.get(name, value.dtype)) for name, value in model.state_dict().items()}


def _as_kind(value: Tensor, kind: torch.dtype) -> Tensor:
    cast = value.to(kind)
    return cast if torch.equal(cast.to(value.dtype), value) else value
