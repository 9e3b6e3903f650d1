"""`meanshifter report`: write a page about a run."""

from __future__ import annotations

import argparse
from pathlib import Path

from meanshifter.cli.options import add_layout_options, echo
from meanshifter.errors import InputError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Write report.html into a finished, stopped or running run: curves, scores of each class, confusions, best "
        "and worst images, training samples, speed, protocol and commands. The page needs no network and no other "
        "file. Scoring takes one pass over the validation images. `meanshifter train` writes the report at its end."
    )
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="run folder, or folder of a cross-validation")
    add(
        "dataset",
        metavar="DATASET",
        nargs="?",
        help="score this dataset: a name listed by `meanshifter data list`, or a folder (default: that of the run)",
    )
    add("--root", metavar="DIR", type=Path, help="folder of the dataset, such as that of the run if it has moved")
    add("--split", help="split of the dataset (default: that of the run, or val of another dataset)")
    add("--limit", type=int, metavar="N", help="score only the first N images (default: as in the run)")
    add("--out", metavar="FILE.html", type=Path, help="the page (default: RUN/report.html)")
    add("--device", help="cpu, cuda, cuda:1, … (default: cuda if available, else cpu)")
    add_layout_options(parser, runs=True)


def run(args: argparse.Namespace) -> None:
    """Write the page, and print its path."""
    from meanshifter.analysis.report import report
    from meanshifter.cli.evaluate import open_scored

    if args.out is not None and args.out.is_dir():
        raise InputError(f"--out: {args.out} is a folder; expected a file, such as {args.out / 'report.html'}")
    dataset, own = None, {"root": args.root, "split": args.split}
    if args.dataset is not None:
        from meanshifter.checkpoints.load import load_segmenter

        args.split = "val" if args.split is None else args.split
        dataset, own = open_scored(args, load_segmenter(args.run).label_space, [str(args.run)]), {}
    else:
        _refuse_layout(args)
    path = report(args.run, dataset, **own, limit=args.limit, out=args.out, device=args.device, progress=True)
    echo(f"report: {path.resolve()}")


def _refuse_layout(args: argparse.Namespace) -> None:
    given = [name for name, value in vars(args).items() if name.startswith("data.") and value is not None]
    if given:
        raise InputError(f"--{given[0]}: only for a DATASET; the run's own dataset has the layout of its config.yaml")
