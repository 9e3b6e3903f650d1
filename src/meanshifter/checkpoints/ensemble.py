"""`ensemble.json`: the list of models that a folder holds as an ensemble, with the hashes of their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from meanshifter.errors import InputError
from meanshifter.utils.files import dump_json, parse_json, read_text, write_text

ENSEMBLE: Final = "ensemble.json"
VERSION: Final = 1


@dataclass(frozen=True)
class Member:
    """One model of an ensemble."""

    path: str
    """Its folder, relative to that of the ensemble and inside it."""
    weights: str
    """`weights_hash` of the model."""


def is_ensemble(path: Path) -> bool:
    """Whether a folder holds an ensemble."""
    return (path / ENSEMBLE).is_file()


def write_members(folder: Path, members: Sequence[Member]) -> None:
    """Write `ensemble.json`; an InputError if it cannot be written."""
    document = {"format_version": VERSION, "members": [asdict(member) for member in members]}
    write_text(folder / ENSEMBLE, dump_json(document, indent=2) + "\n")


def read_members(folder: Path) -> list[Member]:
    """Read `ensemble.json`.

    Raises:
        InputError: the file is not a list of folders inside `folder`, or one of them does not exist.
    """
    path = folder / ENSEMBLE
    stored: Any = parse_json(read_text(path), path)
    version = stored.get("format_version") if isinstance(stored, dict) else None
    if version != VERSION:
        raise InputError(f"{path}: format_version is {version!r:.20}; this version of meanshifter reads {VERSION}")
    try:
        members = [Member(str(entry["path"]), str(entry["weights"])) for entry in stored["members"]]
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: not a list of models ({error}); write the ensemble again") from error
    if not members:
        raise InputError(f"{path}: lists 0 models; write the ensemble again")
    for member in members:
        parts = PurePosixPath(member.path)
        if parts.is_absolute() or ".." in parts.parts or not parts.parts:  # nothing outside, and no name of the Hub
            raise InputError(
                f"{path}: member {member.path!r} is not a folder inside {folder}; write the ensemble again"
            )
        if not (folder / member.path).is_dir():
            raise InputError(f"{folder / member.path}: missing, though {path} lists it; copy the complete folder")
        if is_ensemble(folder / member.path):
            raise InputError(f"{folder / member.path}: an ensemble within an ensemble; list its members instead")
    return members
