"""The mean shift block: moves tokens towards the modes of their own density.

Source: the thesis that introduced MeanShifter (University of Crete, 2022). Each step, from the current z:
R = z E_r, S = softmax(R Rᵀ / sqrt(d_ms)) row by row, z ← S z. There is no residual, no normalisation and no
projection of the values. Glossary: B batch, N tokens, D token width, C = `channels` = d_ms, L = `layers`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from meanshifter.errors import InputError


class MeanShift(nn.Module):
    """`layers` steps of mean shift with one linear layer E_r (width → channels, with bias) shared by all."""

    def __init__(self, width: int, layers: int = 1, channels: int | None = None) -> None:
        super().__init__()
        channels = width if channels is None else channels
        if channels < 1:
            raise InputError(f"mean_shift.channels: {channels}; it must be at least 1")
        self.layers = check_layers(layers, "mean_shift.layers")
        self.channels = channels
        self.project = nn.Linear(width, channels)
        nn.init.trunc_normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)

    def forward(self, tokens: Float[Tensor, "B N D"], layers: int | None = None) -> Float[Tensor, "B N D"]:
        """The tokens after `layers` steps (None: the trained number; 0: unchanged). Holds no N × N matrix."""
        for _ in range(self.layers if layers is None else check_layers(layers, "layers")):
            tokens = self.step(tokens)
        return tokens

    def step(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """One step z ← S z.

        Fused attention keeps no N × N matrix only where queries and values have one width (on the CPU, else it
        silently builds the matrix), so the narrower of the two is padded with zero channels, which change
        neither the scores nor the mean; the scale stays that of the unpadded channels.
        """
        r = self.project(tokens)
        shared = _round_up(max(r.shape[-1], tokens.shape[-1]), 8)
        r = F.pad(r, (0, shared - r.shape[-1])).unsqueeze(1)
        values = F.pad(tokens, (0, shared - tokens.shape[-1])).unsqueeze(1).to(r.dtype)
        shifted = F.scaled_dot_product_attention(r, r, values, scale=1 / math.sqrt(self.channels))
        moved: Tensor = shifted.squeeze(1).narrow(-1, 0, tokens.shape[-1])
        return moved

    def weights(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N N"]:
        """S of one step from `tokens`: every row sums to 1, and S is not symmetric. For analysis: it is N × N."""
        r: Tensor = self.project(tokens)
        return (r @ r.mT / math.sqrt(self.channels)).softmax(-1)

    def trajectory(self, tokens: Float[Tensor, "B N D"], layers: int | None = None) -> Float[Tensor, "steps B N D"]:
        """The tokens after 0, 1, …, `layers` steps (None: the trained number): (layers + 1, B, N, D)."""
        states = [tokens]
        for _ in range(self.layers if layers is None else check_layers(layers, "layers")):
            states.append(self.step(states[-1]))
        return torch.stack([state.to(states[-1].dtype) for state in states])


def check_layers(layers: int, name: str) -> int:
    """`layers`, if it is a whole number from 0 on."""
    if layers < 0 or int(layers) != layers:
        raise InputError(f"{name}: {layers}; the number of mean shift steps is a whole number from 0 on")
    return int(layers)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
