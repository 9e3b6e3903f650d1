"""What the doctor has found out about a data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meanshifter import __version__
from meanshifter.data.doctor.findings import KINDS, Finding
from meanshifter.data.doctor.ignored import Question
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.data.listing import Pair


@dataclass(frozen=True)
class RawRow:
    """A value or colour of the masks, and the class it is mapped to."""

    value: str
    pixels: int
    target: str
    """A class name, "ignored" or "outside"."""


@dataclass(frozen=True)
class ClassRow:
    """A class after the mapping."""

    name: str
    pixels: Mapping[str, int]
    """Split → pixels."""
    images: Mapping[str, int]
    """Split → images in which it occurs."""
    weight: float
    """Of the loss with `class_balance` 0.5, by the pixels of the first split; nan where that has none."""


@dataclass(frozen=True)
class ModeRow:
    """Masks that are stored alike."""

    mode: str
    masks: int
    reading: str


@dataclass(frozen=True)
class Report:
    """Findings and figures of one check."""

    source: str
    """Name of the data set, or its folder."""
    root: Path
    space: LabelSpace | None
    """None where the classes could not be told."""
    pairs: Mapping[str, Sequence[Pair]]
    """Split → its pairs, sound or not."""
    findings: Sequence[Finding]
    """Faults first, in the order of `KINDS`."""
    raw: Sequence[RawRow]
    classes: Sequence[ClassRow]
    modes: Sequence[ModeRow]
    ignored: int
    """Pixels of all masks that are ignored."""
    named_by: str = ""
    """Where the classes are from, as `Dataset.named_by`."""
    question: Question | None = None
    """Whether the ignored value is a class."""
    paints: Mapping[Color, int] = field(default_factory=dict)
    """Colour → pixels of palette masks that number their colours differently."""

    @property
    def ignored_share(self) -> float:
        """Of all pixels that the label map covers; 0 without any."""
        total = self.ignored + sum(sum(row.pixels.values()) for row in self.classes)
        return self.ignored / total if total else 0.0

    @property
    def faults(self) -> list[Finding]:
        """The findings that are more than notices."""
        return [finding for finding in self.findings if finding.fault]

    @property
    def by_kind(self) -> dict[str, list[Finding]]:
        """Findings by kind, in the order of `KINDS`."""
        return {kind: found for kind in KINDS if (found := [f for f in self.findings if f.kind == kind])}

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        counts = Counter(finding.kind for finding in self.findings)
        return {
            "format_version": 1,
            "meanshifter_version": __version__,
            "source": self.source,
            "root": str(self.root),
            "pairs": {split: len(pairs) for split, pairs in self.pairs.items()},
            "faults": len(self.faults),
            "notices": len(self.findings) - len(self.faults),
            "kinds": {kind: counts[kind] for kind in KINDS if counts[kind]},
            "findings": [finding.to_dict() for finding in self.findings],
            "labels": None if self.space is None else self.space.to_dict(),
            "raw": [{"value": row.value, "pixels": row.pixels, "class": row.target} for row in self.raw],
            "classes": [
                {
                    "name": row.name,
                    "pixels": dict(row.pixels),
                    "images": dict(row.images),
                    "weight": None if row.weight != row.weight else row.weight,
                }
                for row in self.classes
            ],
            "modes": [{"mode": row.mode, "masks": row.masks, "reading": row.reading} for row in self.modes],
            "ignored_pixels": self.ignored,
            "classes_from": self.named_by,
        }
