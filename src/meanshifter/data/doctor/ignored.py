"""Whether the ignored value of the masks is a class that nobody has said is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from meanshifter.data.ambiguity import labels_json
from meanshifter.data.doctor.findings import Finding
from meanshifter.data.doctor.values import Mapped
from meanshifter.data.labels import LabelSpace

SHARE: Final = 0.1
"""Share of the masks from which on a second way of storing them is no slip."""
LONG: Final = 400
"""Characters of a labels.json that a message still quotes."""


@dataclass(frozen=True)
class Question:
    """Is the ignored value a class?"""

    message: str
    """One line, with the labels.json to write for either answer."""
    strong: bool
    """Strong enough to stop a training; else a person may judge."""
    values: tuple[str, ...]
    """The ignored values of the masks."""
    target: int
    """The class that the value is likely to be."""


def question_ignored(masks: Sequence[Mapped], space: LabelSpace, *, assumed: bool) -> Question | None:
    """The question that the masks raise, None where there is none.

    A class that never occurs while the ignored value does may be that value, unless the label map says explicitly both
    what the class is and what is ignored. Where all occur, a part of the masks may still have been stored otherwise:
    they hold the ignored value beside one class alone, and the others never do. Border pixels and unlabelled areas
    lie beside several classes in some mask at least.

    Args:
        masks: the counts of all masks that are known.
        space: the label map that they were counted by.
        assumed: the value is ignored by custom; nobody has said so.
    """
    if not any(mask.ignored for mask in masks):
        return None
    present = np.array([mask.classes > 0 for mask in masks])
    absent = np.flatnonzero(~present.any(0)).tolist()
    if not assumed:
        reached = {*(space.raw or {}).values(), *(space.colors or {}).values()}
        absent = [k for k in absent if reached and k not in reached]
    ignoring = np.array([mask.ignored > 0 for mask in masks])
    if absent:
        strong = len(absent) == 1 or 2 * len(absent) >= space.num_classes or _beside_one(present[ignoring])
        return _ask(masks, space, absent, strong, _never_occurs(space, absent))
    if not assumed or not _beside_one(present[ignoring]):
        return None
    labeled = ignoring & present.any(1)
    beside, elsewhere = present[labeled].any(0), present[~ignoring].any(0)
    others = np.flatnonzero(elsewhere & ~beside).tolist()
    if np.count_nonzero(beside) != 1 or not others:
        return None
    count = int(np.count_nonzero(labeled))
    known = repr(space.names[int(np.argmax(beside))])
    text = f"{count} of {len(masks)} masks hold VALUE beside {known} alone, and {_names(space, others)} only without it"
    return _ask(masks, space, others, count >= max(2, SHARE * len(masks)), text)


def question_finding(question: Question, root: Path) -> Finding:
    """The question as a case of a report."""
    kind = "ignored-class" if question.strong else "ignored-class-unsure"
    return Finding(kind, f"{root}: {question.message}")


def _beside_one(present: npt.NDArray[np.bool_]) -> bool:
    """Whether no mask has several classes, and some have one; rows are masks."""
    return bool(present.any()) and int(present.sum(1).max()) == 1


def _never_occurs(space: LabelSpace, absent: Sequence[int]) -> str:
    return f"{_names(space, absent)} never occur{'s'[: len(absent) == 1]} in the masks, and VALUE does"


def _names(space: LabelSpace, classes: Sequence[int]) -> str:
    named = ", ".join(repr(space.names[k]) for k in classes[:3])
    return named + (f" and {len(classes) - 3} more classes" if len(classes) > 3 else "")


def _ask(masks: Sequence[Mapped], space: LabelSpace, candidates: Sequence[int], strong: bool, text: str) -> Question:
    found = sorted({key for mask in masks for key, target in mask.targets.items() if target == space.ignore})
    value, name = " and ".join(found), repr(space.names[candidates[0]])
    share = sum(mask.ignored for mask in masks) / max(sum(sum(mask.pixels.values()) for mask in masks), 1)
    message = (
        f"{text.replace('VALUE', value)}, but is ignored, {share:.1%} of all pixels: is {value} the {name}? "
        f"{_remedy(masks, space, found, candidates[0])}"
    )
    return Question(message, strong, tuple(found), candidates[0])


def _remedy(masks: Sequence[Mapped], space: LabelSpace, values: Sequence[str], target: int) -> str:
    """What to write into labels.json; left to the command where other values are in question too, or for its length."""
    write = "`meanshifter data check DIR --write-labels` writes a labels.json with the values that occur"
    if len(values) != 1 or not values[0].isdecimal() or any(mask.outside for mask in masks):
        return write
    raw = {k: k for k in range(space.num_classes)} if space.raw is None else dict(space.raw)
    value = int(values[0])
    yes, no = (labels_json(space.names, {**raw, value: meaning}) for meaning in (target, space.ignore))
    if len(yes) > LONG:
        return write
    if target not in raw.values():
        return f"If so, write labels.json: {yes}; else give {space.names[target]!r} a value, or take it off the names"
    return f"If so, write labels.json: {yes}; if it is to be ignored: {no}"
