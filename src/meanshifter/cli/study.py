"""`meanshifter study NAME`."""

from __future__ import annotations

import argparse

from meanshifter.cli.printing import echo


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command; every field of the recipe is one more."""
    parser.set_defaults(takes_fields=True)
    parser.add_argument("study", nargs="?", help="a study's name, or a YAML file")
    parser.add_argument("--out", metavar="DIR", help="folder; runs/studies/NAME where left out")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trainings at a time (default: 1)")
    parser.add_argument("--list", action="store_true", help="list the studies and leave")
    parser.epilog = (
        "Trains each row of the study once for each seed, scores it at several depths and writes table.md, table.csv, "
        "study.json and plots. Started again after any stop, it goes on. Fields of the recipe hold for all trainings, "
        "such as --data.root DIR."
    )


def run(args: argparse.Namespace) -> int | None:
    """Run the study, or list what there is."""
    from meanshifter.errors import InputError
    from meanshifter.study.plan import study_names

    if args.list:
        echo(*study_names())
        return 0
    if args.study is None:
        raise InputError(f"study: none given; give a YAML file or one of {', '.join(study_names())}")
    from meanshifter.study.run import run_study

    folder = run_study(
        args.study,
        args.out,
        fields=args.fields,
        jobs=args.jobs,
        say=lambda line: echo(line, error=True),
    )
    echo(*(folder / "table.md").read_text("utf-8").rstrip("\n").split("\n"))
    return 0
