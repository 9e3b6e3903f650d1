"""`meanshifter train`: train a model from a recipe."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from meanshifter.cli.options import echo, say
from meanshifter.errors import InputError, counted

if TYPE_CHECKING:
    from meanshifter.training.config import TrainConfig


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, which also takes every field of the recipe."""
    parser.set_defaults(takes_fields=True)
    add = parser.add_argument
    add("recipe", nargs="?", help="name of a recipe, YAML file, or folder with images/ and masks/")
    add("--resume", action="store_true", help="continue the run in the run folder")
    add("--list", action="store_true", help="list the recipes with their costs, and exit")
    add("--list-options", action="store_true", help="list all fields of a recipe with their meaning, and exit")
    add("--print-config", action="store_true", help="print the resolved recipe as YAML and exit")
    add("--preview", metavar="FILE.png", help="draw the first augmented samples with their labels into FILE and exit")
    add("--num-images", type=int, metavar="N", help="samples of --preview (default: 16)")
    add("--overwrite", action="store_true", help="replace an earlier file of --preview")
    add("--no-report", action="store_true", help="do not write report.html, which takes one pass over the val images")
    folds = parser.add_argument_group(
        "cross-validation",
        "Trains one model per fold, each in a run folder in OUT, and scores it on the fold that it was not trained on. "
        "OUT itself is then a model: the ensemble of all folds.",
    )
    folds.add_argument("--folds", metavar="K", help="divide the training images into K folds (data.folds)")
    folds.add_argument(
        "--fold-groups",
        metavar="REGEX",
        help="keep images in one fold whose names have the same text in the group of REGEX (data.fold_groups)",
    )
    parser.epilog = (
        "Any field can be set, such as --data.root DIR --model.mean_shift.layers 2 --steps 1000 --out DIR. "
        "--minutes 30 trains as many steps as fit in that time, --size 256 sets crops, windows and sides together."
    )


def run(args: argparse.Namespace) -> int | None:
    """Train, or print the requested list."""
    from meanshifter.training import fields, parsing, recipes

    if args.list:
        echo(*recipes.list_recipes())
        return 0
    if args.list_options:
        echo(*fields.field_help().split("\n"))
        return 0
    _check_preview(args)
    if args.recipe is None:
        raise InputError(f"recipe: missing; give a folder, a YAML file or one of {', '.join(recipes.recipe_names())}")
    config = parsing.parse_recipe(args.recipe, [*args.fields, *_fold_fields(args)])
    if args.print_config:
        import yaml

        yaml.safe_dump(config.to_dict(), sys.stdout, sort_keys=False)
        return 0
    if args.preview is not None:
        from meanshifter.analysis.preview import preview

        number = 16 if args.num_images is None else args.num_images
        echo(f"{preview(config, args.preview, number, overwrite=args.overwrite)}: {counted(number, 'training sample')}")
        return 0

    if config.data.folds is not None and config.data.fold is None:
        return _cross_validate(config, resume=args.resume, with_report=not args.no_report)
    from meanshifter.training.loop import train

    trained = train(config, resume=args.resume)
    if not trained.is_main_process:
        return 0
    echo(*trained.result.table().split("\n"))
    echo("", f"{trained.path}: best mIoU {trained.best:.2f}, {trained.seconds / 60:.1f} minutes")
    if not args.no_report:
        _write_report(trained.path)
    echo(f"next: meanshifter predict {trained.path} IMAGE… --out DIR")
    return 0


def _check_preview(args: argparse.Namespace) -> None:
    """Refuse options of --preview without it, and what contradicts it."""
    given = {"--num-images": args.num_images is not None, "--overwrite": args.overwrite}
    if args.preview is None and any(given.values()):
        option = next(option for option in given if given[option])
        raise InputError(f"{option}: only for --preview FILE.png; leave it out, or add --preview")
    if args.preview is not None and args.resume:
        raise InputError("--preview: conflicts with --resume, since nothing is trained; leave one out")


def _fold_fields(args: argparse.Namespace) -> list[str]:
    """The options of cross-validation as fields of the recipe."""
    given = {"folds": args.folds, "fold_groups": args.fold_groups}
    fields = {f"--data.{name}": value for name, value in given.items() if value is not None}
    both = [word for word in args.fields if word.partition("=")[0].replace("-", "_").replace("__", "--", 1) in fields]
    if both:
        raise InputError(f"{both[0]}: also given as a shorter option; give one of the two")
    return [word for field in fields.items() for word in field]


def _write_report(path: Path) -> None:
    """Write the report of a complete run; whatever stops that is a line of its own, as the training has succeeded."""
    from meanshifter.errors import summarize_error

    try:
        from meanshifter.analysis.report import report

        echo(f"report: {report(path, progress=True)}")
    except (Exception, KeyboardInterrupt) as error:
        why = "interrupted" if isinstance(error, KeyboardInterrupt) else summarize_error(error)
        say(
            f"{path}: training is complete, but its report is not written ({why}); write it with `meanshifter report "
            f"{shlex.quote(str(path))}`, or leave it out with --no-report"
        )


def _cross_validate(config: TrainConfig, *, resume: bool, with_report: bool) -> int:
    from meanshifter.training.folds import cross_validate

    done = cross_validate(config, resume=resume)
    if not done.is_main_process:
        return 0
    echo(*done.table().split("\n"))
    echo("", f"{done.path}: pooled mIoU {done.pooled.mIoU:.2f}, {done.seconds / 60:.1f} minutes")
    if with_report:
        _write_report(done.path)
    echo(f"next: meanshifter predict {done.path} IMAGE… --out DIR, with the ensemble of all folds")
    return 0
