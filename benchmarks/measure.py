"""The package's speed beside the same work in plain PyTorch, in one process.

python benchmarks/measure.py [--only NAME …] [--ade20k DIR] [--device cuda] [--threads N] [--area] [--out DIR]

Times the package and the usual way of doing the same work, in turn within one process, and prints medians, ratios and
memory as Markdown tables. Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from meanshifter.cli.options import echo
from meanshifter.errors import InputError

if TYPE_CHECKING:
    import torch


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these measurements; without it, all")
    parser.add_argument("--ade20k", metavar="DIR", type=Path, help="ADE20K images, for the measurement `samples`")
    parser.add_argument("--device", default="cpu", help="where to run, for example cuda (default: cpu)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the CPU (default: torch's own number)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="also write benchmarks.md and, for --area, area.svg")
    parser.add_argument("--area", action="store_true", help="also time square images from 256 to 2048 pixels")
    args = parser.parse_args(words)
    try:
        measure(args)
    except InputError as error:
        parser.error(str(error))


def measure(args: argparse.Namespace) -> None:
    """Measure what is asked for."""
    import torch
    from speed import cases, report

    from meanshifter.utils import environment

    device = _device(args.device)
    here = [name for name in cases.CASES if device.type == "cpu" or name not in cases.CPU_ONLY]
    names = here if args.only is None else args.only
    unknown = [name for name in names if name not in (*cases.CASES, "samples")]
    if unknown:
        raise InputError(f"--only: {unknown[0]!r}; use {', '.join(cases.CASES)} or samples")
    if device.type != "cpu" and set(names) & set(cases.CPU_ONLY):
        raise InputError(f"--device: {args.device}; {' and '.join(cases.CPU_ONLY)} are measured on the CPU only")
    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads: {args.threads}; it must be at least 1")
    if "samples" in names and args.ade20k is None:
        raise InputError("--ade20k: missing; `samples` reads ADE20K's images from it")
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    parts = [environment.describe()]
    echo(*parts[0].split("\n"))
    for name in names:
        title, case = cases.CASES[name] if name in cases.CASES else cases.samples_case(args.ade20k)
        parts.append(report.table(title, case(device)))
        echo("", *parts[-1].split("\n"))
    if args.area:
        points = cases.area(device)
        parts.append(report.area_table(points))
        echo("", *parts[-1].split("\n"))
        if args.out is not None:
            report.write_plot(points, args.out / "area.svg")
    if args.out is not None:
        report.write(parts, args.out / "benchmarks.md")


def _device(name: str) -> torch.device:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"--device: {name!r} is no device of torch; use cpu or cuda") from None
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device: {name}; measured are cpu and cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"--device: {name}; torch finds {torch.cuda.device_count()} CUDA devices here")
    return device


if __name__ == "__main__":
    main()
