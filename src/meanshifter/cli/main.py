"""`meanshifter COMMAND …`: run a command, and turn its errors into an exit status."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from types import FrameType

from meanshifter import __version__
from meanshifter.cli.options import say
from meanshifter.errors import (
    InputError,
    OtherProcessError,
    RunError,
    did_you_mean,
    is_out_of_files,
    is_out_of_memory,
    summarize_error,
)

COMMANDS = {
    "demo": "train a small Segmenter and two small MeanShifters on generated images, and show the results",
    "train": "train a model from a recipe, or on a folder of images and masks",
    "evaluate": "evaluate a model on a dataset",
    "calibrate": "calibrate the confidence of a model by temperature scaling",
    "predict": "write the label maps of images",
    "explore": "serve a local page that shows label maps, mean shift steps and patches of images",
    "compare": "show where models differ on the images of a dataset",
    "report": "write a page about a run: curves, scores, confusions, pictures",
    "export": "write a model for other runtimes: ONNX, OpenVINO, torch.export",
    "models": "list the presets with their parameters and cost",
    "convert": "convert models from and to the formats of other tools",
    "study": "train and evaluate everything that a study compares, and write its tables",
    "modes": "show where mean shift moves the patch encodings of an image, and the resulting segments",
    "data": "list, download or check datasets",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    0: done; 2: invalid input or command line; 130 and 143: Ctrl-C and SIGTERM; 1: anything else.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    status = _run([word for word in words if word != "--debug"], debug="--debug" in words)
    return 0 if _is_helper() and status != 1 else status


def _run(words: list[str], *, debug: bool) -> int:
    _set_up()
    try:
        return _dispatch(words)
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, _Terminated) or getattr(stop, "signal", signal.SIGINT) == signal.SIGTERM
        status = 143 if terminated else 130
        return status if getattr(stop, "said", False) else _fail(str(stop) or "interrupted", status, debug)
    except Exception as error:
        return _report(error, debug)


def _report(error: Exception, debug: bool) -> int:
    """Print an error in one line, and return the exit status."""
    match error:
        case OtherProcessError():
            return 2
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        case _ if is_out_of_files(error):
            what = "too many open files; raise the limit, as in `ulimit -n 4096`, or use fewer workers and threads"
            return _fail(what, 1, debug)
        case InputError() | RunError():
            return _fail(str(error), 2 if isinstance(error, InputError) else 1, debug)
        case OSError(filename=None):
            return _fail(f"{summarize_error(error)}; free some space or choose another place", 1, debug)
        case OSError():
            what = f"{error.filename}: {summarize_error(error)}; check the path, its permissions and the free space"
            return _fail(what, 2, debug)
        case _ if is_out_of_memory(error):
            return _fail("out of memory; use smaller windows, batches or images, or another device", 1, debug)
    return _fail(f"internal error, please report it with --debug: {type(error).__name__}: {error}", 1, debug)


def _is_helper() -> bool:
    """Whether Fabric, not torchrun, started this process; the exit status of the main process then counts for both.

    A nonzero status would make Fabric's watcher kill the main process, which may still be saving.
    """
    return os.environ.get("LOCAL_RANK", "0") != "0" and "LOCAL_WORLD_SIZE" not in os.environ


def _set_up() -> None:
    """Set up signals, warnings and the encoding of output for the process."""
    signal.signal(signal.SIGTERM, _terminate)
    warnings.showwarning = lambda message, *_, **__: say(str(message))
    warnings.filterwarnings("ignore", module=r"PIL\b")  # about broken files, which it does not name
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _dispatch(words: list[str]) -> int:
    if not words or words[0].startswith("-"):
        return _top_level(words)
    command, *rest = words
    if command not in COMMANDS:
        hint = did_you_mean(command, COMMANDS, f"commands are {', '.join(COMMANDS)}")
        raise InputError(f"{command}: no such command; {hint}")
    module = import_module(f"meanshifter.cli.{command}")
    parser = _Parser(
        prog=f"meanshifter {command}", description=COMMANDS[command][0].upper() + COMMANDS[command][1:] + "."
    )
    module.configure(parser)
    arguments, fields = parser.parse_known_args(rest)
    if fields and not parser.get_default("takes_fields"):
        raise InputError(f"{fields[0]}: unknown argument; see `meanshifter {command} --help`")
    arguments.fields = fields
    status: int | None = module.run(arguments)
    return 0 if status is None else status


def _top_level(words: list[str]) -> int:
    width = max(map(len, COMMANDS))
    parser = _Parser(
        prog="meanshifter",
        usage="meanshifter COMMAND …",
        description="Semantic segmentation with plain vision transformers.",
        epilog="\n".join(["commands:", *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())])
        + "\n\nSee `meanshifter COMMAND --help` for each command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"meanshifter {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    parser.parse_args(words)
    parser.print_help()
    return 0


class _Parser(argparse.ArgumentParser):
    """Reports errors in one line, without the usage."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise InputError(f"{message}; see `{self.prog} --help`")


class _Terminated(KeyboardInterrupt):
    pass


def _terminate(_number: int, _frame: FrameType | None) -> None:
    raise _Terminated("terminated")


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    say(message)
    return status


if __name__ == "__main__":
    sys.exit(main())
