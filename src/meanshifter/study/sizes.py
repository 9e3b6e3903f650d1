"""Parameters and cost of any model, counted on one without storage."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from meanshifter.model.checkpoint import read_model_config
from meanshifter.model.cost import Size
from meanshifter.model.segmenter import Segmenter


def size_of_folder(folder: Path) -> Size:
    """The parameters and multiply-adds of a saved model at the `image_size` of its configuration."""
    config, labels = read_model_config(folder)
    with torch.device("meta"):
        model = Segmenter(config, labels)
    return count(model, config.image_size)


def count(model: Segmenter, image_size: tuple[int, int]) -> Size:
    """Of a model on the meta device, and an image of (height, width)."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, *image_size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(parameters, counter.get_total_flops() // 2)
