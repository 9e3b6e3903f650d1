"""Properties that all presets share, and golden numbers of each; a new family adds one line to GOLDEN."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import meanshifter as ms
from meanshifter.data import Shapes

ENCODER = {"depth": 2, "embed_dim": 24, "num_heads": 3, "patch_size": 8}
K = 5
GOLDEN: dict[str, tuple[float, ...]] = {
    "segmenter-ti16": (0.19802, 0.269948, 0.191529, 0.195682, 0.1981),
    "segmenter-mask-ti16": (0.0848559, 0.205619, -0.166139, -0.166137, -0.166136),
    "meanshifter-ti16": (-0.0244558, 0.365676, -0.269365, -0.269365, -0.269365),
    "meanshifter-mask-ti16": (0.071528, 0.143667, 0.210971, 0.210971, 0.210971),
    "meanshifter-joint-ti16": (-0.187043, 0.277826, -0.218942, -0.222913, -0.225026),
    "meanshifter-joint-mask-ti16": (-0.0214296, 0.122289, 0.15858, 0.158582, 0.158582),
    "meanshifter-pixel-ti16": (-0.154025, 0.301224, -0.262052, -0.262332, -0.262528),
    "meanshifter-pixel-mask-ti16": (0.0153437, 0.149309, 0.229419, 0.229419, 0.229419),
}
"""Of the logits of `image` with the weights of `made`: mean, standard deviation, and the first three."""
PRESETS = sorted(GOLDEN)


def make(preset: str) -> ms.Segmenter:
    return ms.create_model(
        preset, K, image_size=32, drop_path=0.0, encoder="vit_tiny_patch16_224", encoder_args=ENCODER
    )


def made(preset: str) -> ms.Segmenter:
    """A model whose weights follow a formula, since random numbers may change between releases of torch."""
    model = make(preset).eval()
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            places = torch.arange(parameter.numel(), dtype=torch.float64).view(parameter.shape)
            parameter.add_((0.2 * torch.sin(0.7 * places + k)).to(parameter.dtype) - parameter)
    return model


def image(height: int = 32, width: int = 32) -> torch.Tensor:
    places = torch.arange(3 * height * width, dtype=torch.float64).view(1, 3, height, width)
    return torch.cos(0.013 * places).float()


def test_every_family_is_here_with_both_decoders() -> None:
    assert {name.rpartition("-")[0] for name in PRESETS} == {name.rpartition("-")[0] for name in ms.list_models()}


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_logits_equal_the_golden_ones(preset: str) -> None:
    logits = made(preset)(image()).double()
    found = [logits.mean().item(), logits.std().item(), *logits.flatten()[:3].tolist()]
    assert found == pytest.approx(GOLDEN[preset], rel=2e-4, abs=2e-5)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("size", [(32, 32), (29, 43), (8, 56)])
@torch.no_grad()
def test_logits_cover_images_of_any_size(preset: str, size: tuple[int, int]) -> None:
    model = made(preset)
    logits = model(image(*size))
    assert logits.shape == (1, K, *(math.ceil(side / model.output_stride) for side in size))
    assert logits.isfinite().all()


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_several_step_counts_equal_separate_passes(preset: str) -> None:
    model = made(preset)
    if not model.has_steps:
        with pytest.raises(ms.InputError, match="mean_shift_layers: 2"):
            model(image(), mean_shift_layers=2)
        return
    together = model.logits_at(image(), [0, 1, None, 3])
    apart = [model(image(), mean_shift_layers=layers) for layers in (0, 1, model.steps(None), 3)]
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("preset", PRESETS)
def test_every_weight_learns(preset: str) -> None:
    model = made(preset).train()
    labels = torch.arange(32 * 32).view(1, 32, 32) % (K + 1)
    labels[labels == K] = model.label_space.ignore
    loss = model.loss(image(), labels)
    loss.backward()
    assert loss.isfinite()
    still = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.isfinite().all()]
    assert not still


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_a_saved_model_is_unchanged(preset: str, tmp_path: Path) -> None:
    model = made(preset)
    model.save(tmp_path)
    again = ms.load_model(tmp_path)
    assert isinstance(again, ms.Segmenter)
    assert again.config == model.config
    assert torch.equal(again(image()), model(image()))


@pytest.mark.parametrize("preset", PRESETS)
def test_it_predicts_and_can_be_fine_tuned(preset: str, tmp_path: Path) -> None:
    model = made(preset)
    seg = model.predict(Shapes(length=1)[0].image, window=32, window_stride=24, short_side=None)
    assert seg.labels.shape == Shapes(length=1)[0].labels.shape
    assert np.asarray(seg).max() < K
    model.save(tmp_path)
    tuned: Any = ms.load_model(tmp_path, 2)
    assert tuned(image()).shape[1] == 2
