"""Stochastic depth whose draws belong to the crops of a step, however these are split into passes and processes.

Source: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016; scaling as in timm's `DropPath`.
"""

from __future__ import annotations

from typing import Final

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from meanshifter.model.segmenter import Segmenter

SPREAD: Final = 0x9E3779B1
"""2³² over the golden ratio, odd: the steps of different seeds lie far apart (Knuth, TAOCP vol. 3, section 6.4)."""


class DrawnPath(nn.Module):
    """Drops a branch of those samples for which `keep` says so; must be told before each pass."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keep = torch.ones(1)

    def forward(self, branch: Tensor) -> Tensor:
        """`branch` (B, N, D) with whole samples zeroed and the others scaled up."""
        if not self.training:
            return branch
        factor = self.keep.to(branch.dtype) / (1 - self.rate)
        return branch * factor[:, None, None]


def step_seed(seed: int, step: int) -> int:
    """The generator's seed at a step of a run, of 32 bits: torch's generator of the CPU looks at no more of it."""
    return (step + seed * SPREAD) % 2**32


class StochasticDepth:
    """The draws of all branches of a model, in which it replaces timm's modules."""

    def __init__(self, model: Segmenter) -> None:
        self.paths: list[DrawnPath] = []
        self.drawn: list[Tensor] = []
        for block in model.encoder.vit.blocks.children():
            for name in ("drop_path1", "drop_path2"):
                path = getattr(block, name, None)
                if isinstance(path, DropPath) and path.drop_prob > 0:
                    self.paths.append(DrawnPath(float(path.drop_prob)))
                    setattr(block, name, self.paths[-1])

    def draw(self, crops: int) -> None:
        """Draw for all crops of a step, from torch's generator of the host."""
        self.drawn = [torch.empty(crops).bernoulli_(1 - path.rate) for path in self.paths]

    def use(self, crops: slice, device: torch.device) -> None:
        """Take the draws of these crops of the step for the next pass."""
        for path, drawn in zip(self.paths, self.drawn, strict=True):
            path.keep = drawn[crops].to(device, non_blocking=True)
