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
    if args.recipe is None:
        raise InputError(f"recipe: missing; give a folder, a YAML file or one of {', '.join(recipes.recipe_names())}")
    config = parsing.parse_recipe(args.recipe, args.fields)
    if args.print_config:
        import yaml

        yaml.safe_dump(config.to_dict(), sys.stdout, sort_keys=False)
        return 0

    from meanshifter.training.loop import train

    trained = train(config, resume=args.resume)
    if not trained.is_main_process:
        return 0
    echo(*trained.result.table().split("\n"))
    echo("", f"{trained.path}: best mIoU {trained.best:.2f}, {trained.seconds / 60:.1f} minutes")
    echo(f"next: meanshifter predict {trained.path} IMAGE… --out DIR")
    return 0
