"""What each step of mean shift does to the tokens of one image, in a few numbers."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from meanshifter.model.affinity import Grid, effective_neighbors
from meanshifter.model.mean_shift import MeanShift
from meanshifter.model.modes import count_modes, spread

MERGED = 0.1
"""Tokens closer than this part of the spread at the start are of one mode."""


def diagnose(
    block: MeanShift | None,
    tokens: Float[Tensor, "1 M D"],
    layers: int,
    grid: Grid | None = None,
    labels: Int[Tensor, " N"] | None = None,
    ignore: int = 255,
) -> list[dict[str, float]]:
    """Figures of the tokens after 0, 1, …, `layers` steps, computed in float64 so that a collapse can be told apart.

    spread: root mean square distance from the mean token; relative_spread: that over the root mean square norm;
    variance: the square of spread over that of the start; rank: exp of the entropy of the squared singular values
    of the centred tokens (effective rank, Roy & Vetterli 2007). From the first step on, neighbors: exp of the
    entropy of the weights, the mean over tokens; shift: root mean square way of the step over the spread before it.
    modes: groups of tokens that hops of a tenth of the spread at the start connect. With labels, separation: variance
    between classes over that within them. Where M is above h·w, the tokens end in class embeddings that shift along:
    all figures are of the h·w patches then, and class_weight is the part of their means that comes from classes.
    """
    N = tokens.shape[1] if grid is None else math.prod(grid)
    if block is None:
        z = tokens.double()[0, :N]
        return [_state(z, labels, ignore, MERGED * spread(z))]
    exact = in_double(block)
    states = list(exact.states(tokens.double(), layers, grid))
    radius = MERGED * spread(states[0][0, :N])
    start = _state(states[0][0, :N], labels, ignore, radius)
    figures: list[dict[str, float]] = []
    for n, z in enumerate(states):
        row = start if n == 0 else _state(z[0, :N], labels, ignore, radius)
        row["variance"] = (row["spread"] / start["spread"]) ** 2 if start["spread"] > 0 else math.nan
        if n > 0:
            before = states[n - 1]
            weights = exact.weights(before, grid, states[0])[0, :N]
            row["neighbors"] = effective_neighbors(weights).mean().item()
            if tokens.shape[1] > N:
                row["class_weight"] = weights[:, N:].sum(1).mean().item()
            way = (z - before)[:, :N].square().sum(-1).mean().sqrt().item()
            before_it = figures[-1]["spread"]
            row["shift"] = way / before_it if before_it > 0 else math.nan
        figures.append(row)
    return figures


def in_double(block: MeanShift) -> MeanShift:
    """A copy of the block with float64 weights that take no gradient."""
    copy = MeanShift(block.project.in_features, block.config).double().to(block.project.weight.device)
    copy.load_state_dict(block.state_dict())
    return copy.requires_grad_(False)


def _state(z: Float[Tensor, "N D"], labels: Tensor | None, ignore: int, radius: float) -> dict[str, float]:
    centered, wide = z - z.mean(0), spread(z)
    norm = z.square().sum(-1).mean().sqrt().item()
    energy = torch.linalg.svdvals(centered).square()
    share = energy / energy.sum().clamp(min=torch.finfo(z.dtype).tiny)
    figures = {"spread": wide, "relative_spread": wide / norm if norm > 0 else math.nan}
    figures["rank"] = torch.special.entr(share).sum().exp().item()
    figures["modes"] = float(count_modes(z, radius))
    if labels is not None:
        figures["separation"] = _separation(z, labels.to(z.device), ignore)
    return figures


def _separation(z: Tensor, labels: Tensor, ignore: int) -> float:
    """Sum of squares between the class means over that within the classes."""
    z, labels = z[labels != ignore], labels[labels != ignore]
    classes, place = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        return math.nan
    count = torch.bincount(place).to(z.dtype)[:, None]
    means = z.new_zeros(len(classes), z.shape[1]).index_add_(0, place, z) / count
    between = (count * (means - z.mean(0)).square()).sum()
    within = (z - means[place]).square().sum()
    return (between / within).item() if within > 0 else math.inf
