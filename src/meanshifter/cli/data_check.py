"""`meanshifter data check`: all that is wrong with a data set, told at once."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from meanshifter.cli.layout import add_layout_options, layout_of
from meanshifter.cli.printing import echo, say
from meanshifter.documents import dump_json
from meanshifter.errors import InputError

if TYPE_CHECKING:
    from meanshifter.data.doctor import Report


def configure(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.description = (
        "Reads every image and mask of a data set and tells all that is wrong at once. Exit status 0: nothing is "
        "wrong, or notices alone; 2: there are faults."
    )
    parser.add_argument("dataset", metavar="NAME", help="folder of images and masks, or a data set's name with --root")
    parser.add_argument("--root", metavar="DIR", type=Path, help="where the named data set lies")
    parser.add_argument("--split", metavar="SPLIT", nargs="+", help="splits to check (default: all)")
    add_layout_options(parser, runs=False)
    parser.add_argument("--out", metavar="FILE.html", type=Path, help="write a page with pictures of what was found")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all findings and figures as JSON")
    parser.add_argument(
        "--write-labels",
        metavar="FILE",
        nargs="?",
        type=Path,
        const=Path(),
        help="write a labels.json with the values or colors that occur, to name the classes in (default: into the "
        "folder)",
    )
    parser.add_argument("--fix", metavar="DIR", type=Path, help="write a repaired copy into a new folder")
    parser.add_argument(
        "--fix-unknown",
        choices=("leave-out", "ignore"),
        default="leave-out",
        help="in the copy, pairs with values outside the label map are left out, or those pixels are ignored "
        "(default: %(default)s)",
    )
    parser.add_argument("--threads", metavar="N", type=int, help="files read at a time (default: one for each core)")


def run(args: argparse.Namespace) -> int:
    """Check, print, and write what was asked for; 2 where there are faults."""
    from meanshifter.data.doctor import check, repair
    from meanshifter.data.doctor.text import report_lines
    from meanshifter.files import write_text

    if args.threads is not None and args.threads < 1:
        raise InputError(f"--threads {args.threads}: at least 1 file is read at a time")
    with _bar("checking") as advance:
        layout = layout_of(args, None)
        report = check(args.dataset, args.root, args.split, layout=layout, threads=args.threads, advance=advance)
    echo(*report_lines(report))
    if args.json is not None:
        write_text(args.json, dump_json(report.to_dict(), indent=1) + "\n")
        echo("", f"JSON: {args.json.resolve()}")
    if args.write_labels is not None:
        from meanshifter.data.doctor.skeleton import write_skeleton

        target = report.root / "labels.json" if args.write_labels == Path() else args.write_labels
        space = write_skeleton(report, target)
        echo("", f"labels: {target.resolve()}: {len(space.names):,} classes; look at their names, then check again")
        if report.question is not None and report.question.strong:
            echo("the value that was ignored is a class in it; give it 255 there if it is to be ignored")
    if args.out is not None:
        from meanshifter.report.doctor_page import save_page

        save_page(report, args.out)
        echo("", f"page: {args.out.resolve()}")
    if args.fix is not None:
        with _bar("repairing") as advance:
            done = repair(report, args.fix, ignore_unknown=args.fix_unknown == "ignore", advance=advance)
        echo(
            "",
            f"repaired copy: {done.out.resolve()}: {done.kept:,} pairs, {len(done.changed):,} files changed, "
            f"{len(done.left_out):,} left out; repair.json lists them",
        )
    return _conclude(report, args)


def _conclude(report: Report, args: argparse.Namespace) -> int:
    notices = len(report.findings) - len(report.faults)
    if not report.faults:
        echo("", f"no faults, {notices} notice{'s'[: notices != 1]}")
        return 0
    kinds = len({finding.kind for finding in report.faults})
    remedy = "see above" if args.fix is not None else "see above, or write a repaired copy with --fix DIR"
    say(
        f"{report.root}: {len(report.faults):,} fault{'s'[: len(report.faults) != 1]} of {kinds} "
        f"kind{'s'[: kinds != 1]}; {remedy}"
    )
    return 2


@contextmanager
def _bar(text: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(text, total=None)
        yield lambda done, count: progress.update(task, completed=done, total=count)
