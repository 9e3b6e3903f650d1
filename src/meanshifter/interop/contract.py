"""What reading images out needs from a model: a `Segmenter` has it, and so has a program in another runtime.

Glossary: B batch, K classes, H W pixels, h w the grid of the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.model.config import ModelConfig
from meanshifter.model.segmenter import Segmenter


class PatchModel(Protocol):
    """From images to patch logits."""

    config: ModelConfig
    labels: LabelSpace

    def __call__(self, images: Any, mean_shift_layers: int | None = None) -> Any:
        """Patch logits (B, K, h, w) of normalised images (B, 3, H, W)."""

    @property
    def stride(self) -> int:
        """Side in pixels of what one logit stands for."""

    @property
    def device(self) -> torch.device:
        """Where it runs."""

    @property
    def fastest_device(self) -> str:
        """The best device that it can run on here."""

    @property
    def own_precision(self) -> str | None:
        """The arithmetic that is built in; None where the reader chooses it."""

    @property
    def heads(self) -> int:
        """Attention heads of a layer, for the memory that attention takes where it is not fused."""

    @property
    def has_steps(self) -> bool:
        """Whether another number of mean shift steps than the trained one can be asked for."""

    def steps(self, layers: int | None) -> int:
        """The number of mean shift steps that `layers` stands for; raises InputError for one that cannot be had."""

    def normalize(self, images: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        """uint8 RGB (B, H, W, 3) to normalised floats (B, 3, H, W) on the device."""

    def logits_at(self, images: Tensor, layers: Sequence[int | None]) -> list[Tensor]:
        """Patch logits (B, K, h, w) after each of several numbers of mean shift steps."""

    def evaluation_view(self) -> PatchModel:
        """The model in evaluation mode, with a mode and an attention of its own; weights are shared."""

    def set_attention(self, *, fused: bool) -> None:
        """Whether attention runs fused, where there is a choice."""

    def to(self, device: Any) -> Any:
        """Move it, for good."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors that tell the model from every other, for the hash beside scores."""


def as_segmenter(model: PatchModel) -> Segmenter:
    """`model` itself, where it is one whose encodings can be looked into.

    Raises:
        InputError: it is an export, which ends in logits.
    """
    if isinstance(model, Segmenter):
        return model
    raise InputError(
        f"{getattr(model, 'folder', 'model')}: an export, whose patch encodings and block are not to be had; give the "
        "model that it was made from"
    )
