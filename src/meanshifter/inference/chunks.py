"""An archive cut into chunks, where it is listed: on whatever machine Ray chooses. Nothing here imports torch."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from meanshifter.data.walk import PassedOver
from meanshifter.errors import InputError, RunError
from meanshifter.inference.listing import Entry, Unit, entries
from meanshifter.inference.manifest import Known


@dataclass(frozen=True)
class Chunk:
    """Some images of one unit on their way to a worker."""

    entries: tuple[Entry, ...]
    skipped: int
    """Images passed over since the last chunk."""
    listed: int | None = None
    """In the last chunk of a unit, how many images it has in all."""
    passed: PassedOver = field(default_factory=PassedOver)
    """In the last chunk of a unit, what else lay there."""
    problem: InputError | RunError | None = None
    """Why the run cannot go on."""


def list_unit(batch: Any, out: str, shared: Any, size: int) -> Iterator[dict[str, list[bytes]]]:
    """The chunks of one unit; runs on a worker, and is halted by Ray where nobody takes them."""
    import ray

    try:
        for chunk in chunks(pickle.loads(batch["unit"][0]), out, ray.get(shared), size):
            yield {"chunk": [pickle.dumps(chunk)]}
    except Exception as error:
        yield {"chunk": [pickle.dumps(Chunk((), 0, problem=told(error)))]}


def chunks(unit: Unit, out: str, known: Known, size: int) -> Iterator[Chunk]:
    """The images of a unit that are not known, `size` at a time; the last chunk may be empty."""
    waiting: list[Entry] = []
    skipped, listed, passed = 0, 0, PassedOver()
    for entry in entries(unit, out, known, passed):
        listed += 1
        if entry is None:
            skipped += 1
        else:
            waiting.append(entry)
        if len(waiting) == size:
            yield Chunk(tuple(waiting), skipped)
            waiting, skipped = [], 0
    yield Chunk(tuple(waiting), skipped, listed, passed=passed)


def told(error: Exception) -> InputError | RunError:
    """An error that Ray would only try again, for the process that leads."""
    if isinstance(error, InputError):
        return InputError(str(error))
    return RunError(f"on a worker: {type(error).__name__}: {error}")
