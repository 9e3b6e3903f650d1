"""Which pixels a loss counts, and how often: the hardest ones, and those near another class."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn.functional import pad


def hardest(losses: Float[Tensor, "B H W"], valid: Bool[Tensor, "B H W"], share: float) -> Float[Tensor, "B H W"]:
    """Replace losses of at least 0 with the part of each pixel that is among the `share` of largest losses.

    That is 1 above the threshold and 0 below; pixels of exactly the threshold share the places that are left, so that
    the parts add up to `share` times the number of valid pixels. The bits of floats from 0 on are ordered as they are,
    so histograms of 16 bits at a time find the threshold exactly. NaN counts as infinite.
    """
    losses.nan_to_num_(nan=math.inf, posinf=math.inf)  # the bits of some NaN are those of negative numbers
    bits = losses.view(torch.int64 if losses.dtype == torch.float64 else torch.int32)
    width = 8 * losses.element_size()
    places, above, found, tied = share * int(valid.sum()), 0, 0, 1
    if places == 0:
        return losses.zero_()
    for shift in range(width - 16, -1, -16):
        counts = torch.zeros(1 << 16, dtype=torch.int64, device=losses.device)
        for some, counted in zip(bits, valid, strict=True):
            among = counted if shift == width - 16 else counted & (some >> (shift + 16) == found)
            counts += torch.bincount((some[among] >> shift) & 0xFFFF, minlength=1 << 16)
        at_least = counts.flip(0).cumsum(0).flip(0)
        digit = max(int((above + at_least >= places).sum()) - 1, 0)
        tied = int(counts[digit])
        above += int(at_least[digit]) - tied
        found = found << 16 | digit
    part = (places - above) / tied
    for some, kept, counted in zip(bits, losses, valid, strict=True):
        over, same = some > found, some == found
        kept.zero_().masked_fill_(over & counted, 1).masked_fill_(same & counted, part)
    return losses


def boundary_pixels(labels: Integer[Tensor, "B H W"], radius: int, ignore_index: int) -> Bool[Tensor, "B H W"]:
    """Whether a pixel of another class lies within `radius` rows and columns; ignored pixels belong to no class."""
    near = torch.empty(labels.shape, dtype=torch.bool, device=labels.device)
    narrow = torch.int16 if labels.element_size() == 1 else torch.int32
    lowest = torch.iinfo(narrow).min
    for one, out in zip(labels, near, strict=True):
        wide = one.long()  # narrower types cannot hold every `ignore_index`
        ignored, ids = wide == ignore_index, wide.to(narrow)
        both = torch.stack([ids, -ids]).masked_fill_(ignored, lowest)
        high, low = _largest_within(_largest_within(both, radius).mT.contiguous(), radius).mT
        torch.logical_and(~ignored, high != -low, out=out)
    return near


def _largest_within(values: Tensor, radius: int) -> Tensor:
    """The maximum within `radius` places along the last axis, by windows that double."""
    side, span = 2 * radius + 1, 1
    values = pad(values, (radius, radius), value=torch.iinfo(values.dtype).min)
    while span < side:
        step = min(span, side - span)
        values, span = torch.maximum(values[..., :-step], values[..., step:]), span + step
    return values
