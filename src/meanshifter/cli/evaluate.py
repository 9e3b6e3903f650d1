"""`meanshifter evaluate`: scores of a model on a data set."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meanshifter.cli import MODEL_HELP
from meanshifter.cli.layout import add_layout_options, layout_of
from meanshifter.cli.printing import echo
from meanshifter.cli.processes import add_process_options, start_processes
from meanshifter.cli.reading import add_reading_options, load_predictor
from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.data.datasets import Dataset
    from meanshifter.data.labels import LabelSpace
    from meanshifter.evaluation.result import Result
    from meanshifter.processes import Processes


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        "Prints IoU and accuracy of every class, aAcc, mAcc and mIoU as MMSegmentation defines them, and the "
        "protocol they were measured under."
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    add_dataset(parser)
    parser.add_argument("--predictions", metavar="DIR", type=Path, help="score the label maps in DIR, without a MODEL")
    parser.add_argument("--first-id", type=int, default=0, metavar="N", help="their value of class 0 (default: 0)")
    parser.add_argument("--partial", action="store_true", help="score the label maps that are there")
    add_reading_options(parser)
    parser.add_argument(
        "--mean-shift-layers",
        type=int,
        nargs="+",
        metavar="N",
        help="mean shift steps, several for a score at each in one pass (default: as trained)",
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="also write the scores as JSON")
    add_process_options(parser)


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """The arguments that say what is scored; `open_scored` reads them."""
    parser.add_argument(
        "dataset", metavar="DATASET", help="a name that `meanshifter data list` prints, or a folder of images and masks"
    )
    parser.add_argument("--root", metavar="DIR", type=Path, help="folder of the data set; shapes needs none")
    parser.add_argument("--split", default="val", help="which part of the data set (default: %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="score the first N images only")
    add_layout_options(parser, runs=True)


def run(args: argparse.Namespace) -> None:
    """Evaluate and print."""
    from meanshifter.evaluation import save_results

    if args.out is not None and args.out.is_dir():
        raise InputError(f"--out: {args.out} is a folder; name a file, such as {args.out / 'result.json'}")
    if args.predictions is not None:
        _score_predictions(args)
        return
    for option, given in (("first-id", args.first_id != 0), ("partial", args.partial)):
        if given:
            raise InputError(f"--{option}: is for label maps; add --predictions DIR, or leave it out")
    if args.model is None:
        raise InputError("MODEL: missing; name a model, or a folder of label maps with --predictions")
    processes = start_processes(args)
    results = _scores(args, processes)
    if not processes.first:
        return
    echo(*"\n\n".join(result.table() for result in results).split("\n"))
    if len(results) > 1:
        echo("", "mean-shift layers   mIoU")
        for result in results:
            echo(f"{result.protocol.mean_shift_layers:>17}  {result.mIoU:5.2f}")
    if args.out is not None:
        save_results(args.out, results)
        echo(f"written to {args.out}")


def _scores(args: argparse.Namespace, processes: Processes) -> list[Result]:
    from meanshifter.evaluation import evaluate

    predictor = processes.together(lambda: load_predictor(args.model, args))
    dataset = processes.together(lambda: open_scored(args, predictor.model.labels, [args.model]))
    asked = [None] if args.mean_shift_layers is None else args.mean_shift_layers
    results = evaluate(
        predictor, dataset, mean_shift_layers=asked, progress=True, limit=args.limit, processes=processes
    )
    return list(results.values())


def _score_predictions(args: argparse.Namespace) -> None:
    from meanshifter.evaluation import save_results
    from meanshifter.evaluation.predictions import evaluate_predictions
    from meanshifter.interop.runtime import READING

    if args.model is not None:
        raise InputError(f"--predictions: given beside the model {args.model}; leave one of the two out")
    untold = [name for name in ("mean_shift_layers", "device") if getattr(args, name) is not None]
    given = [name for name in READING if hasattr(args, name)] + untold  # of which None, for `none`, is one too
    if given:
        raise InputError(
            f"--{given[0].replace('_', '-')}: for a model that reads images; leave it out with --predictions"
        )
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit: {args.limit}; score at least 1 image")
    dataset = open_scored(args, None)
    result = evaluate_predictions(
        args.predictions, dataset, first=args.first_id, partial=args.partial, limit=args.limit
    )
    echo(*result.table().split("\n"))
    if args.out is not None:
        save_results(args.out, [result])
        echo(f"written to {args.out}")


def open_scored(args: argparse.Namespace, labels: LabelSpace | None, models: Sequence[str] = ()) -> Dataset:
    """The data set; a folder that does not describe its classes is read with those of the model.

    A folder on which one of `models` was trained is laid out, and divided, as that run has it.
    """
    from meanshifter.data.catalog import HOMES, open_dataset
    from meanshifter.data.datasets import Folder

    name, root, split = args.dataset, args.root, args.split
    if name not in HOMES and root is None and Path(name).is_dir():
        name, root = "folder", Path(name)
    if root is None and name in HOMES and name != "shapes":
        raise InputError(f"--root: missing; {name} is read from a folder")
    if name == "folder" and root is not None:
        described = any((root / file).is_file() for file in ("labels.json", "classes.txt"))
        return Folder(root, split, labels=None if described else labels, layout=layout_of(args, root, models))
    return open_dataset(name, root, split, layout_of(args, None))
