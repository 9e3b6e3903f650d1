"""How exact the Lovász-Softmax loss is on a histogram instead of a sort, and what the histogram alone costs.

python benchmarks/lovasz.py [--rounds N]

Prints Markdown tables for 19 and 150 classes: loss and gradient with respect to the patch logits of one crop of
512×512 from 32×32 patches, against the sorted definition (Berman et al., CVPR 2018) in float64; then the time of
counting every probability of the crop in its class's histogram beside that of all of `upsampled_cross_entropy`.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any, no_type_check

import numba
import numpy as np
import torch
from losses import drawn
from speed.timing import compare
from torch import Tensor
from torch.nn.functional import interpolate

import meanshifter as ms
from meanshifter.utils import environment


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=7, metavar="N", help="timed calls of each (default: 7)")
    rounds = options.parse_args().rounds
    print(environment.describe())
    for K in (19, 150):
        logits, labels = drawn(K, 1)
        print(
            f"\n1×{K}×32×32 → 512×512:\n\n| bins | error of the loss | error of the gradient |\n| ---: | ---: | ---: |"
        )
        loss, gradient = lovasz(logits, labels, None)
        for bins in (256, 1024, 4096, 1 << 14, 1 << 16):
            found, slope = lovasz(logits, labels, bins)
            off = float((slope - gradient).norm() / gradient.norm())
            print(f"| {bins} | {abs(found - loss) / loss:.1e} | {off:.1e} |", flush=True)
        q = _probabilities(logits.double(), labels)[0].float().numpy()
        histogram = np.zeros((K, 1024), np.int32)
        ways = {"cross-entropy": partial(_cross_entropy, logits, labels), "histogram": partial(_count, q, histogram)}
        base, counted = compare(ways, rounds=rounds, memory=False)
        print(f"\nCounting in 1024 bins takes {counted.seconds / base.seconds:.2f} times as long as cross-entropy.")


def _cross_entropy(logits: Tensor, labels: Tensor) -> None:
    z = logits.requires_grad_()
    torch.autograd.grad(ms.ops.upsampled_cross_entropy(z, labels), z)


def lovasz(logits: Tensor, labels: Tensor, bins: int | None) -> tuple[float, Tensor]:
    """The mean over present classes and its gradient (B, K, h, w); without `bins` from a sort."""
    z = logits.detach().double().requires_grad_()
    q, t = _probabilities(z, labels)
    classes = t.unique().tolist()
    value, slopes = 0.0, torch.zeros_like(q)
    for k in classes:
        own = t == k
        error = torch.where(own, 1 - q[:, k].detach(), q[:, k].detach())
        slope = (_sorted(error, own) if bins is None else _binned(error, own, bins)) / len(classes)
        value += float(error @ slope)
        slopes[:, k] = torch.where(own, -slope, slope)
    return value, torch.autograd.grad(q, z, slopes)[0]


def _probabilities(z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities (n, K) and labels (n,) of the labeled pixels."""
    full = interpolate(z, labels.shape[-2:], mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    return full[labels != 255].softmax(1), labels[labels != 255].long()


def _sorted(error: Tensor, own: Tensor) -> Tensor:
    """The loss's derivative in each error: how much the Jaccard loss grows with that pixel, hardest first."""
    order = error.argsort(descending=True)
    hit = own[order].double()
    jaccard = 1 - (hit.sum() - hit.cumsum(0)) / (hit.sum() + (1 - hit).cumsum(0))
    slope = torch.empty_like(error)
    slope[order] = jaccard.diff(prepend=jaccard.new_zeros(1))
    return slope


def _binned(error: Tensor, own: Tensor, bins: int) -> Tensor:
    """The same with the pixels of a bin in the middle of it, those of the class and the others alike."""
    place = (error * bins).long().clamp(max=bins - 1)
    inside, outside = (torch.bincount(place[some], minlength=bins).double() for some in (own, ~own))
    before = [each.flip(0).cumsum(0).flip(0) - each / 2 for each in (inside, outside)]
    union = inside.sum() + before[1]
    return torch.where(own, (1 / union)[place], ((inside.sum() - before[0]) / union**2)[place])


@no_type_check
@numba.njit
def _count(q: Any, histogram: Any) -> None:
    bins = histogram.shape[1]
    for n in range(q.shape[0]):
        for k in range(q.shape[1]):
            histogram[k, min(int(q[n, k] * bins), bins - 1)] += 1


if __name__ == "__main__":
    main()
