"""What only the data set as a whole can tell: absent classes, label maps that are off by one, mixed modes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from meanshifter.data.doctor.examine import Facts
from meanshifter.data.doctor.findings import Finding
from meanshifter.data.doctor.pairs import fitting_shift
from meanshifter.data.doctor.report import ClassRow, ModeRow
from meanshifter.data.labels import LabelSpace


def judge_whole(
    facts: Sequence[Facts],
    space: LabelSpace | None,
    splits: Sequence[str],
    modes: Sequence[ModeRow],
    classes: Sequence[ClassRow],
    root: Path,
) -> list[Finding]:
    """Notices about all masks together."""
    findings = []
    if len(modes) > 1:
        listed = ", ".join(f"{row.masks} {row.mode}" for row in modes)
        findings.append(Finding("mixed-modes", f"{root}: masks of {len(modes)} modes: {listed}"))
    for row in classes:
        seen = [split for split in splits if row.images[split]]
        if not seen:
            findings.append(Finding("never", f"{row.name!r} occurs in no mask"))
        elif len(seen) < len(splits):
            lacking = ", ".join(split for split in splits if split not in seen)
            findings.append(Finding("one-split", f"{row.name!r} occurs in {', '.join(seen)} and not in {lacking}"))
    return findings if space is None else [*findings, *_shifted(facts, space, classes)]


def _shifted(facts: Sequence[Facts], space: LabelSpace, classes: Sequence[ClassRow]) -> list[Finding]:
    """One notice where masks fit the label map only when shifted, or fit it with the first class missing."""
    masks = [fact.mask.values for fact in facts if fact.mask is not None and fact.mask.values is not None]
    plain = [values for values in masks if not values.colored]
    shifts = [shift for values in plain if (shift := fitting_shift(values, space)) is not None]
    if shifts:
        words = "one more" if shifts[0] < 0 else "one less"
        text = f"{len(shifts)} of {len(plain)} masks hold values that are {words} than the label map's throughout"
        return [Finding("shift", text)]
    found = {key for values in plain for key in values.keys.tolist()}
    empty = classes[0].name if classes and not any(classes[0].images.values()) else None
    if space.raw is None and space.colors is None and empty is not None and found and space.num_classes - 1 in found:
        text = (
            f"{empty!r}, class 0, never occurs, and the last one does: are the values one more than the class numbers?"
        )
        return [Finding("shift", text)]
    return []
