"""How alike two tokens are: the channels whose products are the exponents of the kernel, and its bandwidth.

An exponent that is not a product becomes one with a few channels more, so that every kernel runs through one fused
attention call. Whatever depends on the query alone cancels in the softmax over keys.
Glossary: B batch, N queries, M keys, C = `channels`, h w the grid of the tokens, σ in patches.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from meanshifter.errors import InputError

Grid = tuple[int, int]


def key_and_query_channels(
    r: Float[Tensor, "B N C"],
    s: Float[Tensor, "B M C"],
    *,
    kernel: str,
    spatial: float | None,
    grid: Grid | None,
    scale: float,
) -> tuple[Float[Tensor, "B N Q"], Float[Tensor, "B M Q"]]:
    """Queries and keys, whose products times `scale` are the exponents of the kernel up to a term of the query.

    dot: r_i·s_j, as the thesis has it. gaussian: -‖r_i - s_j‖²/2, less the term in r_i, by one key channel -‖s_j‖²/2.
    spatial: -‖p_i - p_j‖²/2σ² more, by two channels p/σ and its share of that key channel (the joint domain of
    Comaniciu & Meer, PAMI 2002, section 4).
    """
    if kernel == "dot" and spatial is None:
        return r, s
    queries, keys = r, s
    bias = s.new_zeros(*s.shape[:-1], 1)
    if kernel == "gaussian":
        middle = s.mean(1, keepdim=True)  # distances do not change, and the squares stay small
        queries, keys = r - middle, s - middle
        bias = -0.5 * keys.square().sum(-1, keepdim=True)
    if spatial is not None:
        p = _places(grid, s) / (spatial * math.sqrt(scale))
        p = p.expand(s.shape[0], -1, -1)
        queries, keys = torch.cat([queries, p], -1), torch.cat([keys, p], -1)
        bias = bias - 0.5 * p.square().sum(-1, keepdim=True)
    return torch.cat([queries, torch.ones_like(queries[..., :1])], -1), torch.cat([keys, bias], -1)


def _places(grid: Grid | None, like: Tensor) -> Float[Tensor, "M 2"]:
    """Row and column of each token, from the middle of the grid."""
    if grid is None or math.prod(grid) != like.shape[1]:
        raise InputError(f"grid: {grid}; a spatial bandwidth needs the rows and columns of the {like.shape[1]} tokens")
    h, w = (torch.arange(1 - n, n, 2, device=like.device, dtype=like.dtype) / 2 for n in grid)
    return torch.cartesian_prod(h, w)


def effective_neighbors(weights: Float[Tensor, "*rows M"]) -> Float[Tensor, "*rows"]:
    """exp of the entropy of each row of S: over how many tokens a mean is taken."""
    entropy: Tensor = torch.special.entr(weights).sum(-1)
    return entropy.exp()
