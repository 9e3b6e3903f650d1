"""A training against one written out here: dense float64 logits, one batch a step, of ours only model and crops."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

import meanshifter as ms
from meanshifter.data.catalog import open_dataset
from meanshifter.data.datasets import Dataset, Subset
from meanshifter.training.config import TrainConfig
from meanshifter.training.loop import train
from meanshifter.training.sections import LossConfig, OptimizerConfig
from meanshifter.training.setup import build_model
from meanshifter.training.stream import SampleStream

STEPS, CROPS, SMOOTHING, EMA, CLIP = 5, 4, 0.1, 0.4, 0.9
OPTIMIZER = OptimizerConfig(lr=0.1, head_lr=0.3, momentum=0.8, weight_decay=0.1, clip_norm=CLIP, warmup=2, min_lr=0.01)


class Drop(nn.Module):
    """Stochastic depth as the paper has it: a branch is dropped, or divided by the chance that it is kept."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate, self.keep = rate, torch.ones(0)

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.keep.to(branch)[:, None, None] / (1 - self.rate)


class Reference:
    """Model, momentum and running average in float64."""

    def __init__(self, config: TrainConfig, data: Dataset) -> None:
        self.config = config
        self.model = build_model(config, data.label_space).double()
        self.average = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        self.momentum = {name: torch.zeros_like(value) for name, value in self.average.items()}
        self.weight = self.class_weights(data)
        self.paths = []
        rates = torch.linspace(0, config.model.drop_path, len(self.model.encoder.vit.blocks)).tolist()
        for block, rate in zip(self.model.encoder.vit.blocks.children(), rates, strict=True):
            for name in ("drop_path1", "drop_path2"):
                if rate > 0:
                    self.paths.append(Drop(rate))
                    setattr(block, name, self.paths[-1])
        matrix = (nn.Linear, nn.Conv2d)
        self.decayed = {f"{name}.weight" for name, module in self.model.named_modules() if isinstance(module, matrix)}

    def class_weights(self, data: Dataset) -> Tensor:
        labels = torch.stack([torch.from_numpy(data[i].labels).long() for i in range(len(data))])
        counts = torch.bincount(labels[labels != 255], minlength=data.label_space.num_classes).double()
        share = counts.clamp(min=float(counts[counts > 0].min())) / counts.sum()
        weights = share**-0.5
        return weights / ((weights * counts).sum() / counts.sum())

    def rate(self, step: int, base: float) -> float:
        o = self.config.optimizer
        left = math.pow(1 - step / STEPS, 0.9)
        return (o.min_lr + (base - o.min_lr) * left) * min(1.0, (step + 1) / (o.warmup + 1))

    def step(self, number: int, images: Tensor, labels: Tensor) -> float:
        torch.manual_seed((number + self.config.seed * 0x9E3779B1) % 2**32)
        for path in self.paths:
            path.keep = torch.empty(CROPS).bernoulli_(1 - path.rate)
        logits = F.interpolate(self.model(images.double()), scale_factor=16.0, mode="bilinear")[..., :56, :72]
        summed = F.cross_entropy(
            logits, labels, self.weight, ignore_index=255, label_smoothing=SMOOTHING, reduction="sum"
        )
        valid = labels != 255
        loss = summed / (
            self.weight[labels[valid]].sum() if self.config.loss.reduction == "mean_valid" else labels.numel()
        )
        self.model.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in self.model.parameters() if p.grad is not None))
        decay = min(EMA, (1 + number) / (10 + number))
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                assert p.grad is not None
                gradient = p.grad * min(1.0, CLIP / norm) + (0.1 if name in self.decayed else 0.0) * p
                self.momentum[name] = 0.8 * self.momentum[name] + gradient
                p.sub_(self.rate(number, 0.1 if name.startswith("encoder.") else 0.3) * self.momentum[name])
                self.average[name] = decay * self.average[name] + (1 - decay) * p
        return loss.item()


@pytest.mark.parametrize(("reduction", "batch_size", "accumulate"), [("mean_valid", 2, 2), ("mean_all", 4, 1)])
def test_a_training_is_the_one_written_out(tiny: TrainConfig, reduction: Any, batch_size: int, accumulate: int) -> None:
    config = dataclasses.replace(
        tiny,
        optimizer=OPTIMIZER,
        loss=LossConfig(reduction=reduction, class_weight_power=0.5, label_smoothing=SMOOTHING),
        ema=EMA,
        steps=STEPS,
        augment=dataclasses.replace(tiny.augment, crop=(56, 72)),
        model=dataclasses.replace(tiny.model, drop_path=0.3),  # not one half, whose opposite is itself
        seed=3,
        batch_size=batch_size,
        accumulate=accumulate,
        log_every=2,
    )
    config.evaluation.interval = 0
    data = Subset(open_dataset("shapes", None, "train"), "*[2-9]*", matching=False)
    reference = Reference(config, data)
    mean = reference.model.config
    stream = SampleStream(data, config.augment, config.seed, mean=mean.mean, std=mean.std)
    losses = []
    for number in range(STEPS):
        images, labels, _ = zip(*(stream.sample(number * CROPS + k) for k in range(CROPS)), strict=True)
        losses.append(reference.step(number, torch.stack(images), torch.stack(labels).long()))

    run = train(config, quiet=True).path
    state = load_file(run / "checkpoints" / "last" / "training.safetensors")
    scored = load_file(run / "checkpoints" / "last" / "model.safetensors")
    start = {key: value.detach() for key, value in build_model(config, data.label_space).named_parameters()}
    for name, weights in reference.model.named_parameters():
        for ours, theirs in (
            (state[f"model.{name}"], weights.detach()),
            (state[f"average.{name}"], reference.average[name]),
            (scored[name], reference.average[name]),
        ):
            moved = float((theirs - start[name]).abs().max())
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-4, atol=1e-6 + 1e-3 * moved, msg=name)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line for line in lines if "loss" in line}
    assert list(logged) == [2, 4, 5], "every second step and the last"
    for step, since in ((2, 0), (4, 2), (5, 4)):
        assert logged[step]["loss"] == pytest.approx(sum(losses[since:step]) / (step - since), rel=1e-4)
        assert logged[step]["lr"] == pytest.approx(reference.rate(step - 1, 0.1), rel=1e-9)
    assert isinstance(ms.load_model(run), ms.Segmenter)
