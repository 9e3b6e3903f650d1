"""What commands print. Names of files, classes and models may hold anything, and a terminal obeys some of it."""

from __future__ import annotations

import sys

from meanshifter.errors import one_line, printable


def echo(*lines: str, error: bool = False) -> None:
    """Lines on standard output, or on standard error, each of printable characters whatever names are in it."""
    for line in lines:
        print(printable(line), file=sys.stderr if error else sys.stdout, flush=True)


def say(message: str) -> None:
    """One line on standard error."""
    echo(f"meanshifter: {one_line(message)}", error=True)
