from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import meanshifter as ms

ModelFactory = Callable[..., ms.Segmenter]


@pytest.fixture(scope="session")
def tiny_model() -> ModelFactory:
    """Makes small random models, with logits far enough apart that rounding decides few pixels."""

    def make(preset: str = "meanshifter-ti16", num_classes: int = 7, patch: int = 8, **mean_shift: Any) -> ms.Segmenter:
        torch.manual_seed(0)
        model = ms.create_model(
            preset,
            num_classes=num_classes,
            image_size=32,
            mean_shift=mean_shift or None,
            drop_path=0.0,
            backbone="vit_tiny_patch16_224",
            backbone_args={"depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": patch},
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            if model.mean_shift is not None:  # a narrow kernel, under which tokens do not all become their mean
                model.mean_shift.project.weight.mul_(4)
        return model

    return make
