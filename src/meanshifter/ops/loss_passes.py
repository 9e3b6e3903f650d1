"""What the two passes of `ops.loss_terms` read and return, on whatever device.

Glossary: as in `ops.loss_terms`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from jaxtyping import Bool, Float, Integer
from torch import Tensor

from meanshifter.ops.upsampling import Axes

BINS: Final = 1024
"""Bins of the histogram of errors, of which those of a class are in the middle of their bin."""


class Pixels(NamedTuple):
    """Logits, labels, and how often each pixel counts."""

    logits: Float[Tensor, "B K h w"]
    labels: Integer[Tensor, "B H W"]
    axes: Axes
    ignore_index: int
    near: Bool[Tensor, "B H W"] | None
    """Pixels that count `near_weight` times; None: none."""
    near_weight: float


class Sums(NamedTuple):
    """What the first pass collects."""

    losses: Float[Tensor, "B H W"]
    """-log q_t, at least 0, of labeled pixels; empty unless requested."""
    overlap: Float[Tensor, "3 K"]
    """Per class, over labeled pixels: sum of q_k [t = k], sum of q_k, number of pixels [t = k]; else empty."""
    errors: Float[Tensor, "2 K bins"] | None
    """How many labeled pixels have an error in each of equal bins of 0..1: 1 - q_k of those with [t = k], then q_k of
    the others; None unless requested."""
    logsums: Float[Tensor, "B H W"] | None
    """log sum_k e^logit, which spares the CPU kernels a part of the second pass; None: compute it again."""


@dataclass(frozen=True)
class Recipe:
    """What the second pass adds up, and the factors of the gradient."""

    weight: Float[Tensor, " K"]
    smoothing: float
    cross_entropy: Float[Tensor, ""]
    """Factor of the cross-entropy of a pixel."""
    focal: Float[Tensor, ""]
    """Factor of the focal loss of a pixel."""
    gamma: float
    hard: Float[Tensor, "B H W"] | None
    """Share of each pixel that cross-entropy counts; None: all of it."""
    region: Float[Tensor, "2 K"] | None
    """The derivatives of the other terms in a probability q_k: a_k + b_k [t = k]; None: there are none."""
    slopes: Float[Tensor, "2 K bins"] | None
    """What the Lovász loss adds for each error, by class and bin as in `Sums.errors`; None: nothing."""
    logsums: Float[Tensor, "B H W"] | None
    """As in `Sums`."""
