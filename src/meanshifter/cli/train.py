"""`meanshifter train RECIPE --field value …`."""

from __future__ import annotations

import argparse
import sys

from meanshifter.cli.printing import echo


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command; every field of the recipe is one more."""
    parser.set_defaults(takes_fields=True)
    parser.add_argument("recipe", nargs="?", help="a recipe's name, a YAML file, or a folder with images/ and masks/")
    parser.add_argument("--resume", action="store_true", help="continue the run in the run folder")
    parser.add_argument("--list", action="store_true", help="list the recipes and leave")
    parser.add_argument(
        "--fields", action="store_true", dest="list_fields", help="list every field with its meaning, and leave"
    )
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe as YAML and leave")
    parser.epilog = (
        "Any field can be set, such as --data.root DIR --model.mean_shift.layers 2 --steps 1000 --out DIR. "
        "--minutes 30 trains as many steps as fit into that time, --size 256 sets crops, windows and sides together."
    )


def run(args: argparse.Namespace) -> int | None:
    """Train, or list what there is."""
    from meanshifter.errors import InputError
    from meanshifter.training import parsing
    from meanshifter.training.fields import field_help

    if args.list:
        echo(*parsing.recipe_names())
        return 0
    if args.list_fields:
        echo(*field_help().split("\n"))
        return 0
    if args.recipe is None:
        raise InputError(
            f"recipe: none given; give a folder, a YAML file or one of {', '.join(parsing.recipe_names())}"
        )
    config = parsing.parse_recipe(args.recipe, args.fields)
    if args.print_config:
        import yaml

        yaml.safe_dump(config.to_dict(), sys.stdout, sort_keys=False)
        return 0

    from meanshifter.training.loop import train

    trained = train(config, resume=args.resume)
    if not trained.first:
        return 0
    echo(*trained.result.table().split("\n"))
    echo("", f"{trained.path}: best mIoU {trained.best:.2f}, {trained.seconds / 60:.1f} minutes")
    echo(f"next: meanshifter predict {trained.path} IMAGE… --out DIR")
    return 0
