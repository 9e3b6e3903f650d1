"""Optimiser, schedule and running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from meanshifter.model.segmenter import Segmenter
from meanshifter.training.recipe import OptimizerConfig

UNDECAYED = ("bias", "pos_embed", "cls_token", "reg_token", "dist_token", "class_embeddings")
"""How names end that are not decayed whatever their shape: the bias of pixel_shift is a grid of them."""


def create_optimizer(model: Segmenter, config: OptimizerConfig) -> Optimizer:
    """SGD or AdamW over up to four groups: {encoder, head} × {decayed, not decayed}, each with its `base_lr`."""
    groups = []
    head_lr = config.lr if config.head_lr is None else config.head_lr
    for part, lr in (("encoder.", config.lr), ("", head_lr)):
        named = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if name.startswith("encoder.") == (part == "encoder.")
        ]
        for decayed in (True, False):
            parameters = [p for name, p in named if _is_decayed(name, p) == decayed]
            if parameters:
                decay = config.weight_decay if decayed else 0.0
                groups.append({"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay})
    if config.name == "sgd":
        return SGD(groups, lr=config.lr, momentum=config.momentum)
    return AdamW(groups, lr=config.lr, betas=config.betas)


def _is_decayed(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and not name.endswith(UNDECAYED)


def set_learning_rate(optimizer: Optimizer, config: OptimizerConfig, step: int, steps: int) -> float:
    """Set every group to its rate at `step` (from 0) of `steps`; returns the first group's."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, group["base_lr"], step, steps)
    rate: float = optimizer.param_groups[0]["lr"]
    return rate


def learning_rate(config: OptimizerConfig, base: float, step: int, steps: int) -> float:
    """Linear warm-up, then poly (as in DeepLab, arXiv 1606.00915, section 4.1) or cosine decay to `min_lr`."""
    if config.schedule == "poly":
        factor: float = (1 - step / steps) ** config.power
    else:
        factor = 0.5 * (1 + math.cos(math.pi * step / steps))
    rate = config.min_lr + (base - config.min_lr) * factor
    return rate * min(1.0, (step + 1) / (config.warmup + 1))


class WeightAverage:
    """A running average of a model's weights, in another model: average ← d·average + (1 - d)·weights.

    The decay warms up as (1 + n) / (10 + n), so that the random start does not linger.
    """

    def __init__(self, average: Segmenter, decay: float) -> None:
        self.average, self.decay = average, decay

    @torch.no_grad()
    def update(self, weights: Iterable[Tensor], step: int) -> None:
        """Take in the weights after optimiser step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.parameters()), [p.detach() for p in weights], 1 - decay)
