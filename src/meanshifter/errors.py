"""Errors that end a command with a one-line message, and helpers to recognize and format errors."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Invalid input. The message is one line with the file or field, the value, the rule and the remedy.

    The command prints the line on standard error and exits with status 2; any other exception is a bug, with status 1.
    """


class RunError(RuntimeError):
    """A run that cannot continue although its input is valid; the command prints the reason, with status 1."""


class OtherProcessError(RuntimeError):
    """Another process of the same work has failed and reported the reason."""


def one_line(text: str) -> str:
    """`text` as a single line of printable characters, even if it contains file names.

    Line breaks become spaces. Control characters, marks that change the writing direction, and bytes that are not UTF-8
    are escaped, so that no file name can forge a line or move the cursor of a terminal.
    """
    return printable(re.sub(r"\s*\n\s*", " ", text.strip()))


def counted(count: int, noun: str) -> str:
    """A number and its noun, which ends in s unless the number is 1: "1 image", "2,500 images"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def summarize_error(error: object, limit: int = 200) -> str:
    """The reason of an error in one line: the system's text for an `OSError`, else its message, or its class name.

    Messages of other libraries are cut after `limit` characters.
    """
    reason = getattr(error, "strerror", None)
    text = " ".join(str(reason if isinstance(reason, str) else error).split())
    if not text:
        return type(error).__name__
    return text if len(text) <= limit or isinstance(error, InputError | RunError) else f"{text[:limit].rstrip()}…"


def did_you_mean(name: str, names: Iterable[str], otherwise: str, cutoff: float = 0.6) -> str:
    """A question that suggests the most similar name of `names`, or `otherwise` if there is none."""
    near = get_close_matches(name, list(names), n=1, cutoff=cutoff)
    return f"did you mean {near[0]!r}?" if near else otherwise


def printable(text: str) -> str:
    """`text` with the same escapes as `one_line`, also for line breaks."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode("ascii") for sign in text
    )


def is_out_of_files(error: BaseException) -> bool:
    """Whether an error, or one of its causes, says that too many files are open."""
    while True:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(error):
            return True
        cause = error.__cause__ or error.__context__
        if cause is None:
            return False
        error = cause


_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|failed to allocate memory|bad[ _]alloc|ALLOC_FAILED"
    r"|could not create a (primitive|memory object)",  # oneDNN's words
    re.I,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the host or a device ran out, in any library.

    torch's CPU allocator, ONNX Runtime and OpenVINO have no exception class for it, so their messages are matched.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    foreign = isinstance(error, Exception) and not isinstance(error, InputError | RunError)
    return foreign and bool(_NO_MEMORY.search(str(error)))
