"""The kinds of error that end a command, and how memory that ran out is told from other errors."""

import errno
import re


class InputError(ValueError):
    """Input that is wrong, said in one line that names the file or field, the value, the rule and the remedy.

    The command prints the line on standard error and leaves with status 2; anything else that is raised
    is a bug and leaves with status 1.
    """


class RunError(RuntimeError):
    """A run that cannot go on though its input was right; the command says why in one line, with status 1."""


class OtherProcessError(RuntimeError):
    """Another process of the same work has failed and has said why; nothing is left to say here."""


def one_line(text: str) -> str:
    """`text` as a single line of printable characters, whatever names of files are in it.

    Line breaks become spaces; control characters, marks that turn the direction of writing, and bytes that are no
    UTF-8 are spelt as escapes, so that no name of a file can forge a line or move a terminal's cursor.
    """
    return printable(re.sub(r"\s*\n\s*", " ", text.strip()))


def printable(text: str) -> str:
    """`text` with escapes in place of all that `one_line` spells so, line breaks too."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape", "surrogatepass").decode("ascii") for sign in text
    )


def is_out_of_files(error: BaseException) -> bool:
    """Whether no more files could be opened, which an error, or one that it came from, says."""
    while True:
        if getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE) or "Too many open files" in str(error):
            return True
        cause = error.__cause__ or error.__context__
        if cause is None:
            return False
        error = cause


_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|failed to allocate memory|bad[ _]alloc|ALLOC_FAILED", re.I
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, of the host or of a device, whichever library says so.

    torch's CPU allocator, ONNX Runtime and OpenVINO have no class for it, so that their words must tell.
    """
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    foreign = isinstance(error, Exception) and not isinstance(error, InputError | RunError)
    return foreign and bool(_NO_MEMORY.search(str(error)))
