"""On a CUDA machine: kernels against a reference, and what label maps, losses, predictions and training cost.

python benchmarks/gpu.py [--sizes ti s b] [--compiled ti s b] [--rounds 7] [--out FILE]

The kernels' labels, losses and gradients are compared with those of the CPU in float64, and it exits with 1 if they
differ. The tables of benchmarks/measure.py follow, and training steps of Segmenter-Ti/16, S and B with 8 crops of
512×512 and 150 classes, in float32 and bfloat16, compiled and not, beside forward and backward pass of the encoder
alone, and what 160,000 of them take. Samples are on the device already: reading data is not measured. Where there is no
CUDA device, it says so and exits with 0.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from speed import cases, report
from speed.timing import compare
from torch import Tensor

import meanshifter as ms
from meanshifter.utils.environment import describe
from meanshifter.utils.files import write_text

CASES = ("label-map", "label-map-smooth", "loss", "block", "prediction", "large")
STEPS = 160_000
"""Of the standard recipe."""
TERMS: dict[str, dict[str, Any]] = {
    "cross-entropy": {},
    "cross-entropy of the hardest quarter": {"ohem_share": 0.25},
    "focal": {"cross_entropy": 0.0, "focal": 1.0},
    "Dice": {"cross_entropy": 0.0, "dice": 1.0},
    "Lovász-Softmax": {"cross_entropy": 0.0, "lovasz": 1.0},
}
TOLERANCE = 1e-4
"""Of a loss, relative, and of its gradient, relative to its largest entry."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--sizes", nargs="+", choices=("ti", "s", "b", "l"), default=["ti", "s", "b"])
    options.add_argument(
        "--compiled", nargs="*", choices=("ti", "s", "b", "l"), help="sizes that are also compiled (default: all)"
    )
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--out", type=Path, help="also write the tables to this file")
    args = options.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing was measured")
        return
    device = torch.device("cuda")
    kernels, same = check_kernels(device)
    tables = (report.table(title, case(device)) for title, case in (cases.CASES[name] for name in CASES))
    parts = []
    for part in itertools.chain(
        [describe(), kernels], tables, [training_table(device, args.sizes, args.compiled, rounds=args.rounds)]
    ):
        print(part, end="\n\n", flush=True)
        parts.append(part)
    if args.out is not None:
        write_text(args.out, "\n\n".join(parts) + "\n")
    if not same:
        sys.exit("kernels and reference differ: see the first table")


def check_kernels(device: torch.device, *, classes: int = 150, grid: int = 8, side: int = 128) -> tuple[str, bool]:
    """A table of differences between the device's kernels and the CPU in float64, and whether all are small."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, classes, grid, grid, generator=generator)
    labels = torch.randint(classes, (2, side, side), generator=generator)
    labels[:, : side // 8] = 255
    full = torch.nn.functional.interpolate(z.double(), (side, side), mode="bilinear", align_corners=False)
    best = full.topk(2, 1).values
    clear = best[:, 0] - best[:, 1] > 1e-5
    found = ms.ops.upsampled_argmax(z.to(device), (side, side)).cpu()
    wrong = int((found != full.argmax(1))[clear].sum())
    lines = [
        "### Kernels against the CPU in float64",
        "",
        "| | differs by | of the gradient |",
        "| --- | ---: | ---: |",
    ]
    lines.append(f"| label map: pixels of {int(clear.sum()):,} whose winner leads by 1e-5 | {wrong} | |")
    same = wrong == 0
    for name, terms in TERMS.items():
        (loss, slope), (expected, right) = (gradient(z.to(*place), labels, terms) for place in _places(device))
        far = abs(loss - expected) / abs(expected)
        steep = float((slope - right).abs().max() / right.abs().max())
        same = same and max(far, steep) <= TOLERANCE
        lines.append(f"| {name} | {far:.1e} | {steep:.1e} |")
    return "\n".join(lines), same


def _places(device: torch.device) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    return (device, torch.float32), (torch.device("cpu"), torch.float64)


def gradient(z: Tensor, labels: Tensor, terms: dict[str, Any]) -> tuple[float, Tensor]:
    """A loss of patch logits, and its gradient on the CPU in float64."""
    z = z.requires_grad_()
    loss = ms.ops.upsampled_loss(z, labels.to(z.device), **terms)
    (slope,) = torch.autograd.grad(loss, z)
    return float(loss.detach()), slope.cpu().double()


def training_table(
    device: torch.device,
    sizes: Sequence[str],
    compiled: Sequence[str] | None = None,
    *,
    rounds: int,
    batch: int = 8,
    crop: int = 512,
    classes: int = 150,
    precisions: Sequence[str] = ("fp32", "bf16"),
    **model: Any,
) -> str:
    """Training steps of each size, beside the encoder alone; `model` are further arguments of `create_model`.

    Sizes in `compiled`, by default all, are measured twice.
    """
    lines = [
        f"### Training steps, {batch} crops of {crop}×{crop}, {classes} classes, SGD",
        "",
        f"| | median ms | range ms | images/s | {STEPS:,} steps | MB | encoder alone, ms | MB | memory ÷ encoder's |",
        "| --- |" + " ---: |" * 8,
    ]
    for size, precision, fast in itertools.product(sizes, precisions, (False, True)):
        if fast and compiled is not None and size not in compiled:
            continue
        ways = dict(training(device, size, batch, crop, classes, half=precision == "bf16", compiled=fast, **model))
        step, encoder = compare(ways, rounds=rounds, device=device)
        cells = [f"{step.seconds * 1e3:.1f}", f"{step.low * 1e3:.1f}–{step.high * 1e3:.1f}"]
        cells += [f"{batch / step.seconds:.0f}", f"{STEPS * step.seconds / 60:.0f} min", _megabytes(step.peak_bytes)]
        cells += [f"{encoder.seconds * 1e3:.1f}", _megabytes(encoder.peak_bytes)]
        known = step.peak_bytes is not None and encoder.peak_bytes
        cells.append(f"{step.peak_bytes / encoder.peak_bytes:.2f}" if known else "–")  # type: ignore[operator]
        name = f"Segmenter-{size.capitalize()}/16, {precision}{', compiled' if fast else ''}"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def training(
    device: torch.device, size: str, batch: int, crop: int, classes: int, *, half: bool, compiled: bool, **model: Any
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Name and work of a training step, and of forward and backward pass of the encoder alone."""
    torch.manual_seed(0)
    images = torch.randn(batch, 3, crop, crop, device=device)
    labels = torch.randint(classes, (batch, crop, crop), device=device)
    network = ms.create_model(f"segmenter-{size}16", classes, image_size=crop, **model).to(device).train()
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    whole: Any = torch.compile(network) if compiled else network
    alone: Any = torch.compile(network.encoder) if compiled else network.encoder

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = whole(images, labels=labels).loss
        loss.backward()
        optimizer.step()

    def encode() -> None:
        network.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            tokens, _ = alone(images)
        tokens.float().square().mean().backward()

    yield "step", step
    yield "encoder", encode


def _megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.0f}"


if __name__ == "__main__":
    main()
