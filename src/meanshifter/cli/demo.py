"""`meanshifter demo`: train three small models from scratch on generated images, and show them on a page."""

from __future__ import annotations

import argparse
from pathlib import Path

from meanshifter.cli.options import echo, echo_table


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    parser.epilog = "If interrupted, the same command resumes."
    add = parser.add_argument
    add("--out", metavar="DIR", type=Path, default=Path("runs/demo"), help="output folder (default: %(default)s)")
    add("--steps", type=int, metavar="N", help="training steps per model (default: as in the recipe)")
    add("--overwrite", action="store_true", help="replace an earlier demo in the folder")
    add("--open", action="store_true", help="open the page in a browser")


def run(args: argparse.Namespace) -> int | None:
    """Train, and print the scores and the path of the page."""
    from meanshifter.analysis.demo import next_commands, run_demo, score_table

    demo = run_demo(args.out, steps=args.steps, overwrite=args.overwrite)
    echo("")
    echo_table(*score_table(demo))
    whole = all(entry.seconds is not None for entry in demo.entries)
    minutes = f"{demo.seconds / 60:.1f} minutes {'in total' if whole else 'since the demo was resumed'}"
    echo("", f"{demo.entries[0].result.protocol.images} held-out images, {minutes}")
    echo(f"page: {demo.page.resolve()}")
    for command in next_commands(demo):
        echo(f"next: {command}")
    if args.open:
        import webbrowser

        webbrowser.open(demo.page.resolve().as_uri())
    return 0
