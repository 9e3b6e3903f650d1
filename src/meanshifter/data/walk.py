"""The files below a folder that may be images, and what is passed over on the way to them, counted by its kind."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from meanshifter.errors import InputError

PassedOver = Counter[str]
"""Kind, as a message names it → how many."""
HIDDEN_FILES: Final = "hidden files"
HIDDEN_FOLDERS: Final = "hidden or system folders"
LINKED_TWICE: Final = "linked folders that lead to one already read"
BROKEN_LINKS: Final = "links to nothing"
NO_FILES: Final = "pipes, sockets or devices"
_SYSTEM: Final = ("@eadir", "__macosx", "#recycle", "$recycle.bin", "system volume information", "lost+found")
_KINDS: Final = 6


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is a system's own: .ipynb_checkpoints, ._a.png, __MACOSX, @eaDir."""
    return (name.startswith(".") and name not in (".", "..")) or name.casefold() in _SYSTEM


def ending(name: str) -> str:
    """The kind of a file that is passed over for its ending."""
    return Path(name).suffix.lower() or "files without ending"


def said(passed: PassedOver) -> str:
    """As `7 passed over: .txt (4), hidden files (3)`, the most frequent kinds first."""
    ranked = sorted(passed.items(), key=lambda item: (-item[1], item[0]))
    named = ", ".join(f"{kind} ({count:,})" for kind, count in ranked[:_KINDS])
    more = "" if len(ranked) <= _KINDS else f" and {len(ranked) - _KINDS} more kinds"
    return f"{sum(passed.values()):,} passed over: {named}{more}"


def files_below(
    root: Path, suffixes: Collection[str], passed: PassedOver, *, avoid: Path | None = None
) -> Iterator[Path]:
    """Files of these endings, in any case of letters, folder by folder, each folder sorted; links are followed.

    A linked folder is read where nothing else has led there: after all that lies below `root` itself, once, and never
    one that holds `root`, so that a loop ends and no image comes twice under two names.

    Args:
        root: the folder.
        suffixes: lower case, with the dot.
        passed: what is passed over is added here.
        avoid: a folder that is left out without a word, as that of earlier results.

    Raises:
        InputError: a folder that cannot be listed.
    """
    top, avoided = os.path.realpath(root), None if avoid is None else os.path.realpath(avoid)
    seen: set[str] = set()
    waiting, linked = [root], list[Path]()
    while waiting or linked:
        folder = waiting.pop() if waiting else linked.pop(0)
        real = os.path.realpath(folder)
        if real == avoided and folder != root:
            continue
        if real in seen or (folder != root and f"{top}/".startswith(f"{real.rstrip('/')}/")):
            passed[LINKED_TWICE] += 1
            continue
        seen.add(real)
        inside = list[Path]()
        for path in _listed(folder):
            if path.is_dir():
                if is_hidden(path.name):
                    passed[HIDDEN_FOLDERS] += 1
                else:
                    (linked if path.is_symlink() else inside).append(path)
            elif (kind := _why_not(path, suffixes)) is not None:
                passed[kind] += 1
            else:
                yield path
        waiting += reversed(inside)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed ({error.strerror}); check your access to it") from error


def _why_not(file: Path, suffixes: Collection[str]) -> str | None:
    """The kind under which a file is passed over; None: it is wanted."""
    if is_hidden(file.name):
        return HIDDEN_FILES
    if file.suffix.lower() not in suffixes:
        return ending(file.name)
    if file.is_file():
        return None
    return BROKEN_LINKS if file.is_symlink() and not file.exists() else NO_FILES
