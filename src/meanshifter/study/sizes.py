"""Parameters and cost of models, counted on models without storage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from meanshifter.model.checkpoint import read_model_config
from meanshifter.model.presets import PRESETS, create_model
from meanshifter.model.segmenter import Segmenter


class Size(NamedTuple):
    """What a model holds and computes."""

    parameters: int
    multiply_adds: int
    """Of one image, matrix products and attention counted."""


def size_of(preset: str, *, num_classes: int, image_size: int, mean_shift: Mapping[str, Any] | None = None) -> Size:
    """Count the parameters and multiply-adds of a preset, without allocating its weights."""
    with torch.device("meta"):
        model = create_model(preset, num_classes=num_classes, image_size=image_size, mean_shift=mean_shift)
    return _count(model, (image_size, image_size))


def size_of_folder(folder: Path) -> Size:
    """The same of a saved model at the `image_size` of its configuration."""
    config, labels = read_model_config(folder)
    with torch.device("meta"):
        model = Segmenter(config, labels)
    return _count(model, config.image_size)


def _count(model: Segmenter, image_size: tuple[int, int]) -> Size:
    """Of a model on the meta device, and an image of (height, width)."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, *image_size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(parameters, counter.get_total_flops() // 2)


def preset_sizes(num_classes: int, image_size: int) -> dict[str, Size]:
    """The size of every preset."""
    return {preset: size_of(preset, num_classes=num_classes, image_size=image_size) for preset in PRESETS}
