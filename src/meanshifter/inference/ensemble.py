"""`Ensemble`: several models whose class probabilities a `Predictor` averages at every pixel.

Each model has its own patch logits, which may differ in grid and stride. They are upsampled, and the logits of
overlapping windows averaged, as for a single model; then `ops.label_map` takes the mean of the softmax over models (and
scales and flips), tile by tile. Source: Lakshminarayanan, Pritzel & Blundell, "Simple and Scalable Predictive
Uncertainty Estimation using Deep Ensembles" (NeurIPS 2017, section 2.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meanshifter.errors import InputError
from meanshifter.inference.protocol import PatchModel
from meanshifter.model.saving import weights_hash
from meanshifter.model.segmenter import Predicting


class Ensemble(Predicting):
    """Several models with the same classes, as one model of a `Predictor`; it has no patch logits of its own.

    Args:
        members: the models; an ensemble among them counts as its members, so that every model has the same weight.

    Raises:
        InputError: no models, other classes, or exports whose built-in precision differs from that of others.
    """

    def __init__(self, members: Sequence[PatchModel]) -> None:
        self.members = tuple(inner for member in members for inner in members_of(member))
        if not self.members:
            raise InputError("model: an ensemble of 0 models; give at least one")
        first = self.members[0]
        self.config, self.label_space = first.config, first.label_space
        for place, member in enumerate(self.members[1:], 1):
            self._check_classes(place, member)
        self.own_precision = self._shared_precision()

    def _check_classes(self, place: int, member: PatchModel) -> None:
        ours, theirs = self.label_space, member.label_space
        if ours.names == theirs.names and ours.ignore == theirs.ignore:
            return
        if ours.num_classes != theirs.num_classes:
            wrong = f"has {theirs.num_classes} classes, and the first {ours.num_classes}"
        elif ours.names != theirs.names:
            k = next(k for k, names in enumerate(zip(ours.names, theirs.names, strict=True)) if names[0] != names[1])
            wrong = f"calls class {k} {theirs.names[k]!r}, and the first {ours.names[k]!r}"
        else:
            wrong = f"ignores the value {theirs.ignore}, and the first {ours.ignore}"
        raise InputError(f"model: number {place + 1} of the ensemble {wrong}; give models with the same classes")

    def _shared_precision(self) -> str | None:
        stated = {member.own_precision for member in self.members}
        if stated == {None}:
            return None
        names = sorted({"fp32" if name is None else name for name in stated})
        if len(names) > 1:
            raise InputError(
                f"precision: the models of the ensemble have {' and '.join(names)} built in; give one kind"
            )
        return names[0]

    def __call__(self, images: Any, mean_shift_layers: int | None = None) -> NoReturn:
        """Raise an InputError; see `logits_at`."""
        self.logits_at(images, [mean_shift_layers])

    def logits_at(self, images: Tensor, layers: Sequence[int | None]) -> NoReturn:
        """Raise an InputError: the mean of probabilities of upsampled logits is not that of any patch logits."""
        raise InputError(
            f"model: an ensemble of {len(self.members)} models has no patch logits, only label maps, confidences and "
            "probabilities from a Predictor; use one of its members"
        )

    @property
    def output_stride(self) -> int:
        """Pixels per logit of the first model; others may differ."""
        return self.members[0].output_stride

    @property
    def device(self) -> torch.device:
        """The device of the first model; a `Predictor` moves all of them there."""
        return self.members[0].device

    @property
    def fastest_device(self) -> str:
        """The best available device that all models can run on."""
        found = {member.fastest_device for member in self.members}
        return found.pop() if len(found) == 1 else "cpu"

    @property
    def heads(self) -> int:
        """The most attention heads per layer."""
        return max(member.heads for member in self.members)

    @property
    def has_steps(self) -> bool:
        """Whether the number of mean shift steps can differ from the trained one, in every model."""
        return all(member.has_steps for member in self.members)

    def steps(self, layers: int | None) -> int:
        """Resolve a number of mean shift steps.

        Raises:
            InputError: a model does not support it, or with None, the models were trained with different numbers.
        """
        found = [member.steps(layers) for member in self.members]
        if len(set(found)) > 1:
            raise InputError(
                f"mean_shift_layers: the models of the ensemble were trained with {', '.join(map(str, found))}; give "
                "one number that all of them support, or models with the same"
            )
        return found[0]

    def normalize(self, images: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        """Normalize as the first model; a `Predictor` normalizes for each on its own."""
        return self.members[0].normalize(images)

    def evaluation_view(self) -> Ensemble:
        """The models in evaluation mode."""
        return Ensemble([member.evaluation_view() for member in self.members])

    def set_attention(self, *, fused: bool) -> None:
        """Choose for all models whether attention runs fused."""
        for member in self.members:
            member.set_attention(fused=fused)

    def to(self, device: Any) -> Ensemble:
        """Move all models in place."""
        for member in self.members:
            member.to(device)
        return self

    def state_dict(self) -> dict[str, Any]:
        """The tensors of all models, with the number of the model before each name."""
        return {
            f"{place}.{name}": t for place, member in enumerate(self.members) for name, t in member.state_dict().items()
        }


def members_of(model: PatchModel) -> tuple[PatchModel, ...]:
    """The models of an ensemble, or a single model."""
    return model.members if isinstance(model, Ensemble) else (model,)


def model_hash(model: PatchModel) -> str:
    """`weights_hash` of a model, or those of the members of an ensemble joined by "+"."""
    return "+".join(weights_hash(member.state_dict()) for member in members_of(model))
