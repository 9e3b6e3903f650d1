"""Parameters and cost of models, counted on models without storage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from meanshifter.model.presets import PRESETS, create_model


class Size(NamedTuple):
    """What a model holds and computes."""

    parameters: int
    multiply_adds: int
    """Of one image of `image_size`, matrix products and attention counted."""


def size_of(preset: str, *, num_classes: int, image_size: int, mean_shift: Mapping[str, Any] | None = None) -> Size:
    """Count the parameters and multiply-adds of a preset, without allocating its weights."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model = create_model(preset, num_classes=num_classes, image_size=image_size, mean_shift=mean_shift).eval()
        model(torch.empty(1, 3, image_size, image_size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(parameters, counter.get_total_flops() // 2)


def preset_sizes(num_classes: int, image_size: int) -> dict[str, Size]:
    """The size of every preset."""
    return {preset: size_of(preset, num_classes=num_classes, image_size=image_size) for preset in PRESETS}
