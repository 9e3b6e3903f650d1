"""`PatchModel`, the interface that prediction needs: a `Segmenter` has it, and so does an export to another runtime.

Glossary: B batch, K classes, H W pixels, h w the grid of the logits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.model.config import ModelConfig
from meanshifter.model.segmenter import Segmenter

if TYPE_CHECKING:
    from meanshifter.evaluation.result import Result
    from meanshifter.inference.segmentation import Segmentation


class PatchModel(Protocol):
    """A model from images to patch logits."""

    config: ModelConfig
    label_space: LabelSpace

    def __call__(self, images: Any, mean_shift_layers: int | None = None) -> Any:
        """Patch logits (B, K, h, w) of normalized images (B, 3, H, W)."""

    @property
    def output_stride(self) -> int:
        """Pixels per logit along each axis."""

    @property
    def device(self) -> torch.device:
        """The device that it runs on."""

    @property
    def fastest_device(self) -> str:
        """The best available device that it can run on."""

    @property
    def own_precision(self) -> str | None:
        """The precision that is built in; None if the caller chooses it."""

    @property
    def heads(self) -> int:
        """Attention heads per layer, which determine the memory of attention that is not fused."""

    @property
    def has_steps(self) -> bool:
        """Whether the number of mean shift steps can differ from the trained one."""

    def steps(self, layers: int | None) -> int:
        """Resolve a number of mean shift steps; raises InputError for one that is not supported."""

    def normalize(self, images: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        """Convert uint8 RGB (B, H, W, 3) to normalized floats (B, 3, H, W) on the device."""

    def logits_at(self, images: Tensor, layers: Sequence[int | None]) -> list[Tensor]:
        """Patch logits (B, K, h, w) after each of several numbers of mean shift steps."""

    def evaluation_view(self) -> PatchModel:
        """The model in evaluation mode: the mode and the attention backend are its own, the weights are shared."""

    def set_attention(self, *, fused: bool) -> None:
        """Choose whether attention runs fused, if there is a choice."""

    def to(self, device: Any) -> Any:
        """Move the model in place."""

    def state_dict(self) -> Mapping[str, Any]:
        """Tensors that identify the model, for the weights hash in a score's protocol."""

    def predict(self, image: Any, **settings: Any) -> Segmentation:
        """Return `Predictor(self, **settings)(image)`."""

    def evaluate(self, dataset: Any, **settings: Any) -> Result:
        """Return `evaluate(Predictor(self, **settings), dataset)`."""


def as_segmenter(model: PatchModel) -> Segmenter:
    """Return `model` if its encodings are accessible.

    Raises:
        InputError: the model is an export, which returns logits only, or an ensemble.
    """
    inner = getattr(model, "segmenter", model)  # of a model that another engine computes
    if isinstance(inner, Segmenter):
        return inner
    raise InputError(
        f"{getattr(model, 'folder', 'model')}: an export or an ensemble, which has no access to patch encodings and "
        "the mean shift block; give the model that was exported, or one member of the ensemble"
    )
