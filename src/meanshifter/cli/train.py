"""`meanshifter train`: train a model from a recipe."""

from __future__ import annotations

import argparse
import sys

from meanshifter.cli.options import echo


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
    parser.epilog = (
        "Any field can be set, such as --data.root DIR --model.mean_shift.layers 2 --steps 1000 --out DIR. "
        "--minutes 30 trains as many steps as fit in that time, --size 256 sets crops, windows and sides together."
    )


def run(args: argparse.Namespace) -> int | None:
    """Train, or print the requested list."""
    from meanshifter.errors import InputError
    from meanshifter.training import parsing, recipes

    if args.list:
        echo(*recipes.list_recipes())
        return 0
    if args.list_options:
        echo(*parsing.field_help().split("\n"))
        return 0
    _check_preview(args)
    if args.recipe is None:
        raise InputError(f"recipe: missing; give a folder, a YAML file or one of {', '.join(recipes.recipe_names())}")
    config = parsing.parse_recipe(args.recipe, args.fields)
    if args.print_config:
        import yaml

        yaml.safe_dump(config.to_dict(), sys.stdout, sort_keys=False)
        return 0
    if args.preview is not None:
        from meanshifter.analysis.preview import preview

        number = 16 if args.num_images is None else args.num_images
        echo(f"{preview(config, args.preview, number, overwrite=args.overwrite)}: {number} training samples")
        return 0

    from meanshifter.training.loop import train

    trained = train(config, resume=args.resume)
    if not trained.is_main_process:
        return 0
    echo(*trained.result.table().split("\n"))
    echo("", f"{trained.path}: best mIoU {trained.best:.2f}, {trained.seconds / 60:.1f} minutes")
    echo(f"next: meanshifter predict {trained.path} IMAGE… --out DIR")
    return 0


def _check_preview(args: argparse.Namespace) -> None:
    """Refuse options of --preview without it, and what contradicts it."""
    from meanshifter.errors import InputError

    given = {"--num-images": args.num_images is not None, "--overwrite": args.overwrite}
    if args.preview is None and any(given.values()):
        option = next(option for option in given if given[option])
        raise InputError(f"{option}: only for --preview FILE.png; leave it out, or add --preview")
    if args.preview is not None and args.resume:
        raise InputError("--preview: conflicts with --resume, since nothing is trained; leave one out")
