"""Optimizer, learning rate schedule, weight averaging and stochastic depth.

Source of stochastic depth: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016; scaled as in timm's
`DropPath`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Final

import torch
from timm.layers.drop import DropPath
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.optim import Optimizer

from meanshifter.model.segmenter import Segmenter
from meanshifter.training.config import OptimizerConfig

TIMM_NAMES: Final = {"sgd": "momentum", "adamw": "adamw"}  # timm's "sgd" is Nesterov's
UNDECAYED = ("bias", "pos_embed", "cls_token", "reg_token", "dist_token", "class_embeddings")
"""Suffixes of parameter names that are never decayed; the bias of pixel_shift is not a vector."""


def create_optimizer(model: Segmenter, config: OptimizerConfig) -> Optimizer:
    """SGD or AdamW with up to four groups: {encoder, head} × {decayed, not decayed}, each with its `base_lr`."""
    groups = []
    head_lr = config.lr if config.head_lr is None else config.head_lr
    for encoder, lr in ((True, config.lr), (False, head_lr)):
        named = [(name, p) for name, p in model.named_parameters() if name.startswith("encoder.") == encoder]
        for decayed in (True, False):
            parameters = [p for name, p in named if _is_decayed(name, p) == decayed]
            if parameters:
                decay = config.weight_decay if decayed else 0.0
                groups.append({"params": parameters, "lr": lr, "base_lr": lr, "weight_decay": decay})
    options = {"momentum": config.momentum} if config.name == "sgd" else {"betas": config.betas}
    return create_optimizer_v2(groups, TIMM_NAMES[config.name], lr=config.lr, weight_decay=0.0, **options)


def _is_decayed(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and not name.endswith(UNDECAYED)


def set_learning_rate(optimizer: Optimizer, config: OptimizerConfig, step: int, steps: int) -> float:
    """Set each group's learning rate at `step` (from 0) of `steps`; returns that of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, group["base_lr"], step, steps)
    rate: float = optimizer.param_groups[0]["lr"]
    return rate


def learning_rate(config: OptimizerConfig, base: float, step: int, steps: int) -> float:
    """Linear warm-up, then poly (DeepLab, arXiv 1606.00915, section 4.1) or cosine decay to `min_lr`."""
    if config.schedule == "poly":
        factor: float = (1 - step / steps) ** config.power
    else:
        factor = 0.5 * (1 + math.cos(math.pi * step / steps))
    rate = config.min_lr + (base - config.min_lr) * factor
    return rate * min(1.0, (step + 1) / (config.warmup + 1))


class WeightAverage:
    """Exponential moving average of a model's weights in a second model: average ← d·average + (1 - d)·weights.

    The decay d warms up as (1 + n) / (10 + n), so that the random initialization is forgotten quickly.
    """

    def __init__(self, average: Segmenter, decay: float) -> None:
        self.average, self.decay = average, decay

    @torch.no_grad()
    def update(self, weights: Iterable[Tensor], step: int) -> None:
        """Update with the weights after optimizer step `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.parameters()), [p.detach() for p in weights], 1 - decay)


SPREAD: Final = 0x9E3779B1
"""2³² over the golden ratio, odd: it keeps the steps of different seeds apart (Knuth, TAOCP vol. 3, section 6.4)."""


class SampledDropPath(nn.Module):
    """Drops a residual branch for the samples where `keep` is 0; `keep` must be set before each pass."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keep = torch.ones(1)

    def forward(self, branch: Tensor) -> Tensor:
        """`branch` (B·W, …, D), W windows of each sample, with dropped samples set to zero and the others scaled up."""
        if not self.training:
            return branch
        factor = self.keep.to(branch.dtype) / (1 - self.rate)
        if branch.shape[0] != factor.shape[0]:
            factor = factor.repeat_interleave(branch.shape[0] // factor.shape[0])
        return branch * factor.view(-1, *[1] * (branch.ndim - 1))


def step_seed(seed: int, step: int) -> int:
    """Random seed of a step, in 32 bits, since torch's CPU generator ignores all others."""
    return (step + seed * SPREAD) % 2**32


class SampledDropPaths:
    """Stochastic depth drawn for all crops of a step in advance; replaces timm's modules in the model."""

    def __init__(self, model: Segmenter) -> None:
        self.paths: list[SampledDropPath] = []
        self.drawn: list[Tensor] = []
        for parent in list(model.encoder.vit.modules()):
            for name, path in list(parent.named_children()):
                if isinstance(path, DropPath) and path.drop_prob is not None and path.drop_prob > 0:
                    self.paths.append(SampledDropPath(float(path.drop_prob)))
                    setattr(parent, name, self.paths[-1])

    def draw(self, crops: int) -> None:
        """Draw for all crops of a step, from torch's CPU generator."""
        self.drawn = [torch.empty(crops).bernoulli_(1 - path.rate) for path in self.paths]

    def use(self, crops: slice, device: torch.device) -> None:
        """Use the draws of these crops of the step in the next pass."""
        for path, drawn in zip(self.paths, self.drawn, strict=True):
            path.keep = drawn[crops].to(device, non_blocking=True)
