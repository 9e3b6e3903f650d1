"""`meanshifter compare`: show where models differ on the images of a dataset."""

from __future__ import annotations

import argparse
from pathlib import Path

from meanshifter.cli import MODEL_HELP
from meanshifter.cli.evaluate import add_dataset, open_scored
from meanshifter.cli.options import add_reading_options, echo, echo_table, load_predictor
from meanshifter.errors import InputError


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.description = (
        "Evaluate every image with each model and show the images where the last model gains most over the first, "
        "the median ones, and those where it gains least or loses: image, labels, predictions and error maps, and for "
        "models with a mean shift block the predictions after several numbers of steps. A single model with a mean "
        "shift block is compared with itself after these numbers of steps. Write the self-contained page "
        "compare.html, compare.json with the scores of all images, a PNG of each image shown, and figures as PNG and "
        "PDF: images where the last model is better than the first, images where it is worse, and the steps. For "
        "figures of images without labels, use `meanshifter predict --sheet`."
    )
    add = parser.add_argument
    add("models", metavar="MODEL", nargs="+", help=f"{MODEL_HELP}; two or more, or one with a mean shift block")
    add_dataset(parser)
    add("--out", metavar="DIR", type=Path, required=True, help="output folder")
    add("--overwrite", action="store_true", help="replace an earlier comparison in the folder")
    add("--names", metavar="NAME", nargs="+", help="names of the models in the figures")
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument(
        "--num-images", type=int, metavar="N", default=3, help="images per group and figure (default: %(default)s)"
    )
    shown.add_argument("--images", metavar="NAME", nargs="+", default=[], help="show these images instead")
    add("--mean-shift-layers", type=int, nargs="+", metavar="N", help="mean shift steps to show (default: 0 1 2 3)")
    add_reading_options(parser)


def run(args: argparse.Namespace) -> None:
    """Compare the models, and print the scores and the path of the page."""
    from meanshifter.analysis.compare import DEPTHS, PAGE, describe_sheets, run_comparison, score_table, summary
    from meanshifter.analysis.image_scores import describe

    paths: list[str] = args.models
    predictors = dict(zip(_names(args.names, paths), [load_predictor(path, args) for path in paths], strict=True))
    models = [predictor.model for predictor in predictors.values()]
    if args.mean_shift_layers is not None and not any(model.has_steps for model in models):
        raise InputError("--mean-shift-layers: none of the models has a mean shift block; leave it out")
    comparison = run_comparison(
        predictors,
        open_scored(args, models[0].label_space, paths),
        args.out,
        num_images=args.num_images,
        images=args.images,
        depths=DEPTHS if args.mean_shift_layers is None else args.mean_shift_layers,
        limit=args.limit,
        overwrite=args.overwrite,
        progress=True,
    )
    echo_table(*score_table(comparison))
    echo("", summary(comparison))
    for model in comparison.models:
        echo(f"{model.name}: {model.result.protocol}")
    for choice in comparison.choices:
        echo(f"{choice.title}: {comparison.dataset.names[choice.index]}, {describe(comparison, choice.index)}")
    echo(*describe_sheets(comparison))
    echo(f"page: {(args.out / PAGE).resolve()}")


def _names(given: list[str] | None, paths: list[str]) -> list[str]:
    """The names of the models; raises InputError unless there is one different name per model."""
    from meanshifter.analysis.compare import short_names

    if given is None:
        return short_names(paths)
    if len(given) != len(paths) or len(set(given)) != len(given):
        raise InputError(f"--names: {' '.join(given)}; expected {len(paths)} different names, one per model")
    return given
