"""`meanshifter study NAME`."""

from __future__ import annotations

import argparse

from meanshifter.cli.printing import echo


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command; every field of the recipe is one more."""
    parser.set_defaults(takes_fields=True)
    parser.allow_abbrev = False  # --seed is a field, and no short form of --seeds
    parser.add_argument("study", nargs="?", help="a study's name, or a YAML file")
    parser.add_argument("--out", metavar="DIR", help="folder; runs/studies/NAME where left out")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (default: 1)")
    parser.add_argument("--recipe", metavar="RECIPE", help="a recipe's name or file, in place of the study's")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="seeds of all rows, in place of the study's")
    parser.add_argument(
        "--depths",
        type=int,
        nargs="*",
        metavar="N",
        help="mean shift steps to read out with, beside the trained number",
    )
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="what is scored: splits of the data set, or held_out"
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="train these rows only: names, or patterns with *")
    parser.add_argument(
        "--only-table",
        type=int,
        choices=(1, 2),
        help="1: no other number of steps than the trained one; 2: only rows of the table over L'_ms",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and what it costs here, and exit")
    parser.add_argument("--list", action="store_true", help="list the studies and leave")
    parser.epilog = (
        "Trains each row of the study once for each seed, scores it at several depths and writes table.md, table.csv, "
        "study.json, table_1 and table_2 (.md, .csv, .json, .tex) and plots. Started again after any stop, it goes on. "
        "Fields of the recipe hold for all trainings, such as --data.root DIR."
    )


def run(args: argparse.Namespace) -> int | None:
    """Run the study, print what it would cost, or list what there is."""
    from meanshifter.errors import InputError
    from meanshifter.study.plan import study_names

    if args.list:
        echo(*study_names())
        return 0
    if args.study is None:
        raise InputError(f"study: none given; give a YAML file or one of {', '.join(study_names())}")
    choices = {name: getattr(args, name) for name in ("recipe", "seeds", "depths", "splits", "rows", "only_table")}
    if args.dry_run:
        from meanshifter.study.estimate import estimate_study

        estimate = estimate_study(args.study, args.out, fields=args.fields, jobs=args.jobs, **choices)
        echo(*str(estimate).split("\n"))
        return 0
    from meanshifter.study.run import run_study

    folder = run_study(
        args.study,
        args.out,
        fields=args.fields,
        jobs=args.jobs,
        say=lambda line: echo(line, error=True),
        **choices,
    )
    echo(*(folder / "table.md").read_text("utf-8").rstrip("\n").split("\n"))
    return 0
