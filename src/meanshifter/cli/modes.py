"""`meanshifter modes`: where the patch encodings of an image go, and the segments that the modes they reach make."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from meanshifter.cli import SEGMENTER_HELP
from meanshifter.cli.printing import echo
from meanshifter.cli.reading import add_resizing_options, load_predictor
from meanshifter.errors import InputError
from meanshifter.packages import install_hint


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        "Follows the patch encodings of a whole image through the steps of the model's mean shift block and writes "
        "DIR/modes.html, which needs no network, with its pictures as PNG and its numbers as modes.json beside it: "
        "trajectories, modes, the segments these make, diagnostics, and classical mean shift for comparison. "
        f"Needs the extra study: {install_hint('study')}."
    )
    parser.add_argument("image", metavar="IMAGE", type=Path, help="image file")
    parser.add_argument("--model", metavar="MODEL", required=True, help=SEGMENTER_HELP)
    parser.add_argument("--layers", type=int, default=8, metavar="N", help="steps to follow (default: %(default)s)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.1,
        metavar="PART",
        help="encodings closer than this part of their spread at the start are of one mode (default: %(default)s)",
    )
    parser.add_argument(
        "--labels", metavar="MASK", type=Path, help="mask of the image: figures of classes and boundaries are added"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder (default: runs/modes/NAME of the image)")
    group = parser.add_argument_group(
        "how the image is read", "Resized as the run's recipe says, or for other models into 512 × 2048 pixels."
    )
    add_resizing_options(group)
    group.add_argument("--device", help="cpu, cuda, cuda:1, … (default: cuda where there is one, else cpu)")


def run(args: argparse.Namespace) -> None:
    """Follow the encodings, print the modes per step and say where the page is."""
    from meanshifter.study.modes import find_modes, mode_counts, require_libraries
    from meanshifter.study.modes_page import write_modes

    out = Path("runs/modes") / args.image.stem if args.out is None else args.out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; name a folder")
    require_libraries()
    predictor = load_predictor(args.model, args)
    modes = find_modes(
        predictor,
        args.image,
        layers=args.layers,
        tolerance=args.tolerance,
        labels=args.labels,
        say=lambda line: echo(line, error=True),
    )
    page = write_modes(modes, out, image=args.image, model=args.model, command=["meanshifter", *sys.argv[1:]])
    echo("step  modes  of one patch  largest")
    for step in range(modes.layers + 1):
        counts = mode_counts(modes.sizes(step))
        echo(f"{step:>4}  {counts['modes']:>5}  {counts['single']:>12}  {counts['largest']:>7}")
    for reference in modes.references:
        bandwidth = f"bandwidth {reference.bandwidth:.3g}, quantile {reference.quantile:g}"
        echo(f"scikit-learn, {bandwidth}: clusters {reference.clusters}")
    echo(f"page: {page.resolve()}")
