"""`meanshifter demo`: two small models trained from scratch on generated images, and a page that shows them."""

from __future__ import annotations

import argparse
from pathlib import Path

from meanshifter.cli.printing import echo


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.epilog = "Started again after any stop, it goes on where it was."
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("runs/demo"), help="where to write (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="training steps of each model (default: as the recipe says)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in the folder")
    parser.add_argument("--open", action="store_true", help="open the page in the browser at the end")


def run(args: argparse.Namespace) -> int | None:
    """Train, print the scores and say where the page is."""
    from meanshifter.study.demo import next_commands, run_demo, score_table

    demo = run_demo(args.out, steps=args.steps, overwrite=args.overwrite)
    header, rows = score_table(demo)
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    echo("")
    for row in (header, *rows):
        echo("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip())
    whole = all(entry.seconds is not None for entry in demo.entries)
    minutes = f"{demo.seconds / 60:.1f} minutes {'in all' if whole else 'since it was started again'}"
    echo("", f"{demo.entries[0].result.protocol.images} held-out images, {minutes}")
    echo(f"page: {demo.page.resolve()}")
    for command in next_commands(demo):
        echo(f"next: {command}")
    if args.open:
        import webbrowser

        webbrowser.open(demo.page.resolve().as_uri())
    return 0
