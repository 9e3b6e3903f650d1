"""`meanshifter study`: train and evaluate everything that a study compares."""

from __future__ import annotations

import argparse
from functools import partial

from meanshifter.cli.options import echo


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command, which also takes every field of the recipe."""
    parser.set_defaults(takes_fields=True)
    parser.allow_abbrev = False  # --seed is a field, not an abbreviation of --seeds
    add = parser.add_argument
    add("study", nargs="?", help="name of a study, or YAML file")
    add("--out", metavar="DIR", help="output folder (default: runs/studies/NAME)")
    add("--jobs", type=int, default=1, metavar="N", help="concurrent training runs (default: 1)")
    add("--recipe", metavar="RECIPE", help="name or file of a recipe, in place of the study's")
    add("--seeds", type=int, nargs="+", metavar="N", help="seeds of all rows, in place of the study's")
    add("--depths", type=int, nargs="*", metavar="N", help="additional mean shift steps to evaluate")
    add("--splits", nargs="+", metavar="SPLIT", help="splits of the dataset to evaluate, or held_out")
    add("--rows", nargs="+", metavar="ROW", help="train only these rows: names, or patterns with *")
    add("--only-table", type=int, choices=(1, 2), help="1: only the trained number of steps; 2: only rows over L'_ms")
    add("--dry-run", action="store_true", help="print the plan and its cost on this machine, and exit")
    add("--list", action="store_true", help="list the studies and exit")
    parser.epilog = (
        "Train each row of the study with each seed, evaluate it at several depths and write table.md, table.csv, "
        "study.json, table_1 and table_2 (.md, .csv, .json, .tex) and plots. If interrupted, the same command resumes. "
        "Fields of the recipe, such as --data.root DIR, apply to all training runs."
    )


def run(args: argparse.Namespace) -> int | None:
    """Run the study, print its cost, or list the studies."""
    from meanshifter.analysis.study_plan import study_names, study_summary
    from meanshifter.errors import InputError

    if args.list:
        width = max(map(len, study_names()))
        echo(*(f"{name:{width}}  {study_summary(name)}" for name in study_names()))
        return 0
    if args.study is None:
        raise InputError(f"study: missing; give a YAML file or one of {', '.join(study_names())}")
    choices = {name: getattr(args, name) for name in ("recipe", "seeds", "depths", "splits", "rows", "only_table")}
    if args.dry_run:
        from meanshifter.analysis.study_cost import estimate_study

        estimate = estimate_study(args.study, args.out, fields=args.fields, jobs=args.jobs, **choices)
        echo(*str(estimate).split("\n"))
        return 0
    from meanshifter.analysis.study import run_study

    say = partial(echo, error=True)
    folder = run_study(args.study, args.out, fields=args.fields, jobs=args.jobs, say=say, **choices)
    echo(*(folder / "table.md").read_text("utf-8").rstrip("\n").split("\n"))
    return 0
