"""Training with a module of one's own as encoder: recorded in the run, resumable, and loaded with such a module."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn

import meanshifter as ms
from meanshifter.training import loop
from meanshifter.training.config import TrainConfig
from meanshifter.training.loop import train


class Patches(nn.Module):
    """A convolution and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_size, self.embed_dim = 8, 12
        self.project, self.mix = nn.Conv2d(3, 12, 8, 8), nn.Linear(12, 12)

    def forward(self, images: Tensor) -> Tensor:
        """Compute tokens of the patches."""
        tokens: Tensor = self.mix(self.project(images).flatten(2).mT.tanh())
        return tokens


def made() -> Patches:
    torch.manual_seed(1)
    return Patches()


def test_a_module_is_trained_resumed_exactly_and_loaded(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    module = made()
    whole = train(tiny, quiet=True, encoder=module).path
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), made().parameters(), strict=True))  # a copy
    stored = yaml.safe_load((whole / "config.yaml").read_text())["model"]
    assert (stored["encoder"], stored["encoder_args"], stored["drop_path"]) == ("module:Patches", {}, 0.0)

    cut, take = replace(tiny, out=str(whole.parent / "cut")), loop.take_step
    taken: list[Any] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        if len(taken) == 5:
            raise KeyboardInterrupt
        taken.append(take(*args, **kwargs))
        return taken[-1]

    monkeypatch.setattr(loop, "take_step", counted)
    with pytest.raises(KeyboardInterrupt):
        train(cut, quiet=True, encoder=made())
    monkeypatch.undo()
    with pytest.raises(ms.InputError, match=r"model\.encoder is 'vit_tiny_patch16_224', but was"):
        train(cut, quiet=True, resume=True)
    resumed = train(cut, quiet=True, resume=True, encoder=made()).path
    ours: Any = ms.load_model(whole, encoder=made())
    again: Any = ms.load_model(resumed, encoder=made())
    for name, value in ours.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(ours.encoder.vit.project.weight, module.project.weight)
    with pytest.raises(ms.InputError, match="encoder: a module of one's own, 'Patches'"):
        ms.load_model(whole)


class Normed(Patches):
    """Patches with a batch norm, and attributes whose names timm uses in another sense."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.blocks, self.num_heads = nn.BatchNorm1d(12), 3, (2, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Compute normalized tokens."""
        tokens: Tensor = self.norm(super().forward(images).mT).mT
        return tokens


def test_the_average_of_the_weights_has_the_statistics_of_batch_norms(tiny: TrainConfig) -> None:
    path = train(replace(tiny, ema=0.5), quiet=True, encoder=Normed()).path
    trained = load_file(path / "checkpoints" / "last" / "training.safetensors")
    saved = load_file(path / "checkpoints" / "last" / "model.safetensors")
    name = "encoder.vit.norm.running_mean"
    assert trained[f"model.{name}"].any()
    assert torch.equal(saved[name], trained[f"model.{name}"])
    averaged = ms.load_model(path, encoder=Normed())
    assert (averaged.heads, averaged.device.type) == (1, "cpu")


def test_a_module_beside_a_model_to_start_from_is_refused(tiny: TrainConfig) -> None:
    started = replace(tiny, model=replace(tiny.model, init_from="runs/other"))
    with pytest.raises(ms.InputError, match=r"encoder: given with model\.init_from"):
        train(started, quiet=True, encoder=made())
