"""`meanshifter modes`: follow the patch encodings of an image to their modes, and show the resulting segments."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

from meanshifter.cli import SEGMENTER_HELP
from meanshifter.cli.options import add_resizing_options, echo, load_predictor
from meanshifter.errors import InputError
from meanshifter.utils.environment import install_hint


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Follow the patch encodings of a whole image through the steps of the model's mean shift block and write "
        "DIR/modes.html, which works offline, next to its images as PNG and its numbers as modes.json: trajectories, "
        "modes, the segments of the modes, diagnostics, and classical mean shift for comparison. "
        f"Requires the extra study: {install_hint('study')}."
    )
    add = parser.add_argument
    add("image", metavar="IMAGE", type=Path, help="image file")
    add("--model", metavar="MODEL", required=True, help=SEGMENTER_HELP)
    add("--layers", type=int, default=8, metavar="N", help="steps to follow (default: %(default)s)")
    add(
        "--tolerance",
        type=float,
        default=0.1,
        metavar="FRACTION",
        help="mode radius / initial spread (default: %(default)s)",
    )
    add("--labels", metavar="MASK", type=Path, help="mask of the image, for diagnostics of classes and boundaries")
    add("--out", metavar="DIR", type=Path, help="output folder (default: runs/modes/NAME, after the image)")
    group = parser.add_argument_group(
        "preprocessing",
        "Default: as in the run's recipe, or for other models resized to fit 512 × 2048 pixels.",
        argument_default=argparse.SUPPRESS,
    )
    add_resizing_options(group)
    group.add_argument("--device", default=None, help="cpu, cuda, cuda:1, … (default: cuda if available, else cpu)")


def run(args: argparse.Namespace) -> None:
    """Follow the encodings, and print the modes per step and the path of the page."""
    from meanshifter.analysis.modes import find_modes, mode_counts, require_libraries
    from meanshifter.analysis.modes_page import write_modes

    out = Path("runs/modes") / args.image.stem if args.out is None else args.out
    if out.exists() and not out.is_dir():
        raise InputError(f"--out: {out} is a file; expected a folder")
    require_libraries()
    predictor = load_predictor(args.model, args)
    modes = find_modes(
        predictor,
        args.image,
        layers=args.layers,
        tolerance=args.tolerance,
        labels=args.labels,
        say=partial(echo, error=True),
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
