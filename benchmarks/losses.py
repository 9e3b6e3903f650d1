"""Time and memory of every loss beside those of cross-entropy, in one process.

python benchmarks/losses.py [--device cuda] [--crops N] [--rounds N] [--threads N]

Prints a Markdown table for 19 and for 150 classes: forward and backward passes on crops of 512×512 from 32×32 patches,
whose labels follow the logits as those of a trained model do. Ways take turns within one process.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from speed.timing import Measured, compare
from torch import Tensor
from torch.nn.functional import interpolate

import meanshifter as ms
from meanshifter.utils import environment

LOSSES: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "focal": {"cross_entropy": 0.0, "focal": 1.0},
    "Dice": {"cross_entropy": 0.0, "dice": 1.0},
    "Lovász": {"cross_entropy": 0.0, "lovasz": 1.0},
    "cross-entropy, ohem_share 0.25": {"ohem_share": 0.25},
    "cross-entropy, boundary_weight 3": {"boundary_weight": 3.0},
    "cross-entropy + focal": {"focal": 1.0},
    "cross-entropy + Dice": {"dice": 1.0},
    "cross-entropy + Lovász": {"lovasz": 1.0},
    "all of these": {"focal": 1.0, "dice": 1.0, "lovasz": 1.0, "ohem_share": 0.25, "boundary_weight": 3.0},
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", default="cpu", help="where to run, for example cuda (default: cpu)")
    options.add_argument("--crops", type=int, default=8, metavar="N", help="crops of a pass (default: 8)")
    options.add_argument("--rounds", type=int, default=7, metavar="N", help="timed calls of each (default: 7)")
    options.add_argument("--threads", type=int, metavar="N", help="threads of the CPU (default: torch's own number)")
    args = options.parse_args()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    print(environment.describe())
    for K in (19, 150):
        print(f"\n{args.crops}×{K}×32×32 → 512×512:\n")
        print(table(measure(K, args.crops, args.rounds, torch.device(args.device))))


def measure(K: int, crops: int, rounds: int, device: torch.device) -> list[Measured]:
    """One row per loss."""
    logits, labels = drawn(K, crops)
    logits, labels = logits.to(device).requires_grad_(), labels.to(device)

    def run(terms: dict[str, Any]) -> None:
        torch.autograd.grad(ms.ops.upsampled_loss(logits, labels, **terms), logits)

    return compare({name: partial(run, terms) for name, terms in LOSSES.items()}, rounds=rounds, device=device)


def drawn(K: int, crops: int) -> tuple[Tensor, Tensor]:
    """Smooth logits (crops, K, 32, 32), and labels (crops, 512, 512) that follow them; the first rows are ignored."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(crops, K, 6, 6, generator=generator)
    logits = 5 * interpolate(coarse, (32, 32), mode="bicubic")
    noisy = logits + 2 * torch.randn(logits.shape, generator=generator)
    labels = torch.stack([ms.ops.upsampled_argmax(one[None], (512, 512))[0] for one in noisy])
    labels[:, :32] = 255
    return logits, labels


def table(measured: list[Measured]) -> str:
    """Milliseconds, times of cross-entropy, and memory above what was held before."""
    base = measured[0]
    lines = ["| | median ms | range ms | times cross-entropy | extra MB |", "| --- | ---: | ---: | ---: | ---: |"]
    for row in measured:
        memory = "–" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.1f}"
        spread = f"{row.low * 1e3:.0f}–{row.high * 1e3:.0f}"
        lines.append(
            f"| {row.name} | {row.seconds * 1e3:.0f} | {spread} | {row.seconds / base.seconds:.2f} | {memory} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
