"""`meanshifter convert`: a model from one tool's files to another's."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from meanshifter.cli.arguments import WHOLE_MODEL
from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.model.segmenter import Segmenter

FORMATS = ("meanshifter", "hub", "mmsegmentation", "segmenter", "timm")


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        "Reads a model of ours, a published one by name, a checkpoint of MMSegmentation or the checkpoint.pth of the "
        "Segmenter of its authors, and writes it for us or for them. Pickled files are read with an allow-list."
    )
    parser.add_argument("source", metavar="MODEL", help=WHOLE_MODEL)
    parser.add_argument("out", metavar="OUT", type=Path, help="folder; for mmsegmentation a .pth, for timm a file")
    parser.add_argument("--to", choices=FORMATS, default="meanshifter", help="whose format (default: %(default)s)")
    parser.add_argument("--partial", action="store_true", help="take what fits of a file that lacks or adds tensors")
    parser.add_argument("--mean-shift-layers", type=int, metavar="N", help="trained steps of a foreign MeanShifter")
    parser.add_argument("--results", type=Path, metavar="FILE", help="for the hub: what `evaluate --out` wrote")


def run(args: argparse.Namespace) -> None:
    """Read and write."""
    from meanshifter.interop.loading import load_segmenter

    if args.results is not None and args.to != "hub":
        raise InputError(f"--results: {args.results} is for a model card; add --to hub")
    if args.to in ("meanshifter", "hub", "segmenter") and args.out.is_file():
        raise InputError(f"{args.out}: a file, but {args.to} is written as a folder; name another place")
    model = load_segmenter(args.source, partial=args.partial, mean_shift_layers=args.mean_shift_layers)
    for path in _write(model, args):
        print(path)


def _write(model: Segmenter, args: argparse.Namespace) -> list[Path]:
    from meanshifter.interop.writing import WRITERS

    if args.to == "meanshifter":
        model.save(args.out)
        return [args.out]
    if args.to == "hub":
        model.save_pretrained(args.out, results=() if args.results is None else args.results)
        return [args.out]
    return WRITERS[args.to](model, args.out)
