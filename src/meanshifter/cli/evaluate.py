"""`meanshifter evaluate`: evaluate a model on a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meanshifter.cli import MODEL_HELP
from meanshifter.cli.options import (
    OF_MODELS,
    add_ensemble_option,
    add_layout_options,
    add_process_options,
    add_reading_options,
    echo,
    layout_of,
    load_predictor,
    one_engine,
    start_processes,
)
from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.data.datasets import Dataset
    from meanshifter.data.labels import LabelSpace
    from meanshifter.evaluation.result import Result
    from meanshifter.utils.distributed import Processes


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Print IoU, accuracy (recall), precision and Dice of every class, aAcc, mAcc, mIoU and mDice as defined by "
        "MMSegmentation, and the evaluation protocol."
    )
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help=MODEL_HELP)
    add_dataset(parser)
    add("--predictions", metavar="DIR", type=Path, help="evaluate the label maps in DIR instead of a MODEL")
    add("--label-offset", type=int, default=0, metavar="N", help="value of class 0 in the label maps (default: 0)")
    add("--allow-missing", action="store_true", help="skip images without a label map")
    add_ensemble_option(parser)
    add_reading_options(parser)
    add("--mean-shift-layers", type=int, nargs="+", metavar="N", help="mean shift steps (default: as trained)")
    add(
        "--detailed",
        action="store_true",
        help="also compute boundary IoU, mIoU near label boundaries and by the area and thickness of regions, and the "
        "expected calibration error",
    )
    add("--out", metavar="FILE", type=Path, help="also write the scores as JSON")
    add(
        "--plot",
        metavar="FILE",
        type=Path,
        help="also draw the confusion matrix and the reliability diagram, as .png, .pdf or .svg; implies --detailed",
    )
    add_process_options(parser)


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that specify the dataset, which `open_scored` reads."""
    add = parser.add_argument
    add("dataset", metavar="DATASET", help="name listed by `meanshifter data list`, or folder of images and masks")
    add("--root", metavar="DIR", type=Path, help="folder of the dataset, except for shapes")
    add("--split", default="val", help="split of the dataset (default: %(default)s)")
    add("--limit", type=int, metavar="N", help="evaluate only the first N images")
    add_layout_options(parser, runs=True)


def run(args: argparse.Namespace) -> None:
    """Evaluate and print the scores."""
    if args.out is not None:
        _check_out(args.out)
    if args.plot is not None:
        _check_plot(args)
    if args.predictions is not None:
        _score_predictions(args)
        return
    for option, given in (("label-offset", args.label_offset != 0), ("allow-missing", args.allow_missing)):
        if given:
            raise InputError(f"--{option}: only applies to label maps; add --predictions DIR, or leave it out")
    if args.model is None:
        raise InputError("MODEL: missing; give a model, or a folder of label maps with --predictions")
    processes = start_processes(args)
    results = _scores(args, processes)
    if not processes.is_main:
        return
    echo(*"\n\n".join(result.table() for result in results).split("\n"))
    if len(results) > 1:
        echo("", "mean-shift layers   mIoU")
        for result in results:
            echo(f"{result.protocol.mean_shift_layers:>17}  {result.mIoU:5.2f}")
    _write(args, results)


def _check_out(out: Path) -> None:
    if out.is_dir():
        raise InputError(f"--out: {out} is a folder; expected a file, such as {out / 'result.json'}")
    if file := next((path for path in out.parents if path.is_file()), None):
        raise InputError(f"--out: {out} would be in {file}, which is a file; choose a folder")


def _check_plot(args: argparse.Namespace) -> None:
    from meanshifter.analysis.score_plots import check_plot

    check_plot(args.plot)
    if args.mean_shift_layers is not None and len(set(args.mean_shift_layers)) > 1:
        steps = " ".join(map(str, args.mean_shift_layers))
        raise InputError(f"--plot: a plot of one result, but --mean-shift-layers has {steps}; give one number of steps")


def _write(args: argparse.Namespace, results: list[Result]) -> None:
    """Write the files that were asked for."""
    from meanshifter.evaluation import save_results

    if args.out is not None:
        save_results(args.out, results)
        echo(f"written to {args.out}")
    if args.plot is not None:
        from meanshifter.analysis.score_plots import save_plot

        save_plot(results[0], args.plot)
        echo(f"plot: {args.plot}")


def _scores(args: argparse.Namespace, processes: Processes) -> list[Result]:
    from meanshifter.evaluation import evaluate

    steps = list(dict.fromkeys(args.mean_shift_layers or ()))
    one_engine(args, steps)
    first = steps[0] if len(steps) == 1 else None
    predictor = processes.run_all(lambda: load_predictor(args.model, args, first, others=args.ensemble))
    dataset = processes.run_all(lambda: open_scored(args, predictor.model.label_space, [args.model, *args.ensemble]))
    asked = [None] if args.mean_shift_layers is None else args.mean_shift_layers
    results = evaluate(
        predictor,
        dataset,
        mean_shift_layers=asked,
        progress=True,
        limit=args.limit,
        processes=processes,
        detailed=args.detailed or args.plot is not None,
    )
    return list(results.values())


def _score_predictions(args: argparse.Namespace) -> None:
    from meanshifter.evaluation.predictions import evaluate_predictions
    from meanshifter.export.runtime import READING

    if args.model is not None:
        raise InputError(f"--predictions: conflicts with the model {args.model}; leave one of them out")
    given = [name for name in (*READING, *OF_MODELS) if hasattr(args, name)]  # even if None, for `none`
    given += [
        name for name in ("mean_shift_layers", "device", "devices", "num_nodes") if getattr(args, name) is not None
    ]
    given += ["ensemble"] if args.ensemble else []
    if given:
        option = given[0].replace("_", "-")
        raise InputError(f"--{option}: only applies to models; leave it out with --predictions")
    if args.limit is not None and args.limit < 1:
        raise InputError(f"--limit: {args.limit}; expected at least 1")
    dataset = open_scored(args, None)
    result = evaluate_predictions(
        args.predictions,
        dataset,
        label_offset=args.label_offset,
        allow_missing=args.allow_missing,
        limit=args.limit,
        detailed=args.detailed or args.plot is not None,
    )
    echo(*result.table().split("\n"))
    _write(args, [result])


def open_scored(args: argparse.Namespace, label_space: LabelSpace | None, models: Sequence[str] = ()) -> Dataset:
    """The dataset of the command line; a folder that does not describe its classes has those of the model.

    A folder on which one of `models` was trained has the layout and split of that run.
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
        return Folder(root, split, label_space=None if described else label_space, layout=layout_of(args, root, models))
    return open_dataset(name, root, split, layout_of(args, None))
