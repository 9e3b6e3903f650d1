"""`meanshifter compare`: two or more models on the images of a data set, in pictures."""

from __future__ import annotations

import argparse
from pathlib import Path

from meanshifter.cli import MODEL_HELP
from meanshifter.cli.evaluate import add_dataset, open_scored
from meanshifter.cli.printing import echo
from meanshifter.cli.reading import add_reading_options, load_predictor
from meanshifter.errors import InputError


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        "Scores every image with each model and shows those where the last model has the fewest wrong pixels beside "
        "the first, the middle ones, and those where it gains least or loses: image, truth, predictions and error "
        "maps, and for models with a mean shift block the predictions after several numbers of steps. One model with "
        "a mean shift block is compared with itself after these numbers of steps. Writes compare.html, which needs "
        "nothing beside it, compare.json with the scores of all images, one PNG for each image shown, and as PNG and "
        "PDF a sheet of the images where the last model is better than the first, one of those where it is worse, "
        "and one of the steps. Sheets of photos without truth: `meanshifter predict --sheet`."
    )
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help=f"{MODEL_HELP}; two or more, or one with a mean shift block"
    )
    add_dataset(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the results")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier comparison in the folder")
    parser.add_argument("--more", metavar="MODEL", nargs="+", default=[], help="further models, after the others")
    parser.add_argument("--names", metavar="NAME", nargs="+", help="what to call the models in the figures")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--pick",
        type=int,
        metavar="N",
        default=3,
        help="images of each kind, and rows of a sheet (default: %(default)s)",
    )
    shown.add_argument("--images", metavar="NAME", nargs="+", default=[], help="show these images instead")
    parser.add_argument(
        "--mean-shift-layers",
        type=int,
        nargs="+",
        metavar="N",
        help="steps at which models with a mean shift block are shown (default: 0 1 2 3)",
    )
    add_reading_options(parser)


def run(args: argparse.Namespace) -> None:
    """Compare, print the scores and say where the page is."""
    from meanshifter.study.comparison import DEPTHS, PAGE, run_comparison
    from meanshifter.study.comparison_page import describe, score_table, summary
    from meanshifter.study.comparison_sheets import describe_sheets

    paths = [*args.models, *args.more]
    predictors = dict(zip(_names(args.names, paths), [load_predictor(path, args) for path in paths], strict=True))
    models = [predictor.model for predictor in predictors.values()]
    if args.mean_shift_layers is not None and not any(model.has_steps for model in models):
        raise InputError("--mean-shift-layers: none of the models has a mean shift block; leave it out")
    comparison = run_comparison(
        predictors,
        open_scored(args, models[0].labels, paths),
        args.out,
        pick=args.pick,
        images=args.images,
        depths=DEPTHS if args.mean_shift_layers is None else args.mean_shift_layers,
        limit=args.limit,
        overwrite=args.overwrite,
        progress=True,
    )
    _print_table(*score_table(comparison))
    echo("", summary(comparison))
    for model in comparison.models:
        echo(f"{model.name}: {model.result.protocol}")
    for choice in comparison.choices:
        echo(f"{choice.title}: {comparison.dataset.names[choice.index]}, {describe(comparison, choice.index)}")
    echo(*describe_sheets(comparison))
    echo(f"page: {(args.out / PAGE).resolve()}")


def _names(given: list[str] | None, paths: list[str]) -> list[str]:
    """What the models are called, one name each.

    Raises:
        InputError: not as many different names as models.
    """
    from meanshifter.study.comparison import short_names

    if given is None:
        return short_names(paths)
    if len(given) != len(paths) or len(set(given)) != len(given):
        raise InputError(f"--names: {' '.join(given)}; give {len(paths)} different names, one for each model")
    return given


def _print_table(header: list[str], rows: list[list[str]]) -> None:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        echo("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip())
