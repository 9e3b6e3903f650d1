"""Fields of another tool's description, which may hold anything: the value, None where it is not stated, or a refusal.

`name` is the field's, with the sections that it is in, for the message; its last part is what is looked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meanshifter.errors import InputError

LARGEST = 2**31 - 1


def count(section: Mapping[str, Any], name: str, path: Path) -> int | None:
    """A whole number from 1 on; None where the section does not state it.

    Raises:
        InputError: it states anything else.
    """
    value = section.get(_key(name))
    if value is not None and not (type(value) is int and 1 <= value <= LARGEST):
        raise InputError(f"{path}: {name} is {value!r:.40}; write a whole number from 1 to {LARGEST}")
    return value


def rate(section: Mapping[str, Any], name: str, path: Path) -> float:
    """A part of 1; 0 where the section does not state it.

    Raises:
        InputError: it states no number.
    """
    value = section.get(_key(name))
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        raise InputError(f"{path}: {name} is {value!r:.40}; write a number from 0 to 1")
    return 0.0 if value is None else float(value)


def sides(section: Mapping[str, Any], name: str, path: Path) -> Any:
    """A side, or height and width, in pixels.

    Raises:
        InputError: it states anything else.
    """
    value = section.get(_key(name))
    several = value if isinstance(value, list) else [value]
    if value is not None and not (several and all(type(side) is int and 1 <= side <= LARGEST for side in several)):
        raise InputError(f"{path}: {name} is {value!r:.40}; write height and width in pixels")
    return value


def _key(name: str) -> str:
    return name.rpartition(".")[2]
