"""The modes that tokens have reached: groups of tokens that lie closer together than a radius.

Glossary: N tokens, D token width.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, Int
from torch import Tensor

from meanshifter.errors import InputError

ROWS = 256
"""Tokens whose distances to all others are formed at a time."""


def modes_of(tokens: Float[Tensor, "N D"], radius: float) -> Int[Tensor, " N"]:
    """The mode of each token: tokens are of one mode if hops of at most `radius` lead from one to the other.

    These are the connected components that Comaniciu & Meer (PAMI 2002, section 4.2) and Carreira-Perpiñán (ICML 2006)
    read the modes off with. Modes are numbered from the largest to the smallest, from 0 on; of two equally large ones
    the first is that of the earlier token. N × N bytes are held. Distances have the precision of the tokens.

    Raises:
        InputError: a radius that is no number from 0 on.
    """
    if not 0 <= radius < math.inf:
        raise InputError(f"radius: {radius}; a distance from 0 on")
    near = _near(tokens, radius)
    labels = np.full(len(tokens), -1, np.int64)
    for token in range(len(tokens)):
        if labels[token] >= 0:
            continue
        reached = np.array([token])
        while len(reached) > 0:
            labels[reached] = token
            reached = np.flatnonzero(near[reached].any(0) & (labels < 0))
    return by_size(torch.from_numpy(labels).to(tokens.device))


def _near(tokens: Float[Tensor, "N D"], radius: float) -> npt.NDArray[np.bool_]:
    """(N, N) whether two tokens lie within `radius`."""
    near = np.empty((len(tokens), len(tokens)), np.bool_)
    for start in range(0, len(tokens), ROWS):
        # The quicker way, by products, loses half of the digits, and tokens that all but meet are what this is about.
        rows = torch.cdist(tokens[start : start + ROWS], tokens, compute_mode="donot_use_mm_for_euclid_dist")
        near[start : start + ROWS] = (rows <= radius).cpu().numpy()
    return near


def count_modes(tokens: Float[Tensor, "N D"], radius: float) -> int:
    """How many modes `modes_of` finds."""
    return len(torch.unique(modes_of(tokens, radius)))


def by_size(labels: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """The same groups, numbered from the largest to the smallest; of two equally large ones the earlier token's first.

    Labels are numbers from 0 on.
    """
    N = len(labels)
    _, group, size = torch.unique(labels, return_inverse=True, return_counts=True)
    place = torch.arange(N, device=labels.device)
    first = torch.full_like(size, N).scatter_reduce(0, group, place, "amin")
    order = (size * (N + 1) - first).argsort(descending=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=labels.device)
    return rank[group]


def spread(tokens: Float[Tensor, "N D"]) -> float:
    """Root mean square distance of the tokens from their mean, in which radii are measured."""
    return (tokens - tokens.mean(0)).square().sum(-1).mean().sqrt().item()
