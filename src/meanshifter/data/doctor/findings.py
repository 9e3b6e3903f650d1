"""The kinds of findings about a dataset, single findings, and the report of a check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isnan
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from meanshifter import __version__
from meanshifter.data.doctor.examine import Mapped
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.data.layout import Pair
from meanshifter.data.masks import labels_json


@dataclass(frozen=True)
class Kind:
    """A kind of finding."""

    title: str
    remedy: str
    fault: bool = True
    """Whether it stops or spoils a training or a score; other kinds are notices for the user to judge."""


_PAIRED: Final = "an image and its mask have the same name up to the extension"
_SAY_VALUE: Final = "say in labels.json what the value means"
KINDS: Final = {
    "label-file": Kind("label file that cannot be used", "correct it; docs/data.md shows the format"),
    "no-classes": Kind(
        "classes that cannot be derived from the masks",
        "write labels.json into the folder; --write-labels starts one with the values that occur",
    ),
    "blended": Kind(
        "values that are blended edges, not classes",
        "export masks without smoothing, resize them with nearest-neighbor interpolation",
    ),
    "ignored-class": Kind("class that may be the ignored value", _SAY_VALUE),
    "unreadable-split": Kind("split that cannot be listed", "add the missing folder or files"),
    "unreadable-image": Kind("image that cannot be read", "copy or export it again"),
    "unreadable-mask": Kind("mask that cannot be read", "copy or export it again"),
    "image-without-mask": Kind("image without a mask", _PAIRED),
    "mask-without-image": Kind("mask without an image", _PAIRED),
    "same-name": Kind("two files with the same name", "keep one of them"),
    "size": Kind("mask of a different size than its image", "export the mask at the size of its image"),
    "orientation": Kind("EXIF orientation that the mask lacks", "turn the mask too, or remove the tag from the image"),
    "lossy-mask": Kind("mask with lossy compression", "export it as PNG: class numbers are no longer exact"),
    "mask-mode": Kind("mask whose mode the label map does not cover", "store class numbers, or add `colors`"),
    "renumbered": Kind(
        "palettes that number the colors differently",
        "read the masks by their colors: --write-labels writes a labels.json with `colors`",
    ),
    "palettes": Kind(
        "palettes that contradict each other",
        "export all masks with the same palette, or write class numbers with --fix",
    ),
    "outside": Kind("values outside the label map", "correct the mask, or add them to labels.json"),
    "all-ignored": Kind("mask that is ignored everywhere", "label it, or remove the pair"),
    "copy-across": Kind("the same image in two splits", "remove it from one: training data would leak into the score"),
    "ignored-class-unsure": Kind("classes of which one may be the ignored value", _SAY_VALUE, fault=False),
    "copy-within": Kind("the same image twice in a split", "keep one, unless it is meant to count twice", fault=False),
    "near-copy": Kind("nearly the same image in two splits", "check whether one was made from the other", fault=False),
    "blank-image": Kind("blank image", "check whether the export went wrong", fault=False),
    "skipped": Kind("skipped files", "check whether images or masks are among them", fault=False),
    "orientation-unsure": Kind(
        "EXIF orientation that sizes cannot confirm",
        "remove the tag if the mask was drawn on the image as stored",
        fault=False,
    ),
    "mixed-modes": Kind("masks of several modes", "check that all were exported the same way", fault=False),
    "never": Kind("class that never occurs", "check the label map", fault=False),
    "one-split": Kind("class in some splits only", "check how the splits were drawn", fault=False),
    "shift": Kind("label map that may be off by one", "compare the values with the list of classes", fault=False),
}
"""Kind of finding → its title and what to do about it; faults come first, in the order of reports."""


@dataclass(frozen=True)
class Finding:
    """One problem in a dataset."""

    kind: str
    """A key of `KINDS`."""
    message: str
    """One line that names the file or class."""
    split: str = ""
    name: str = ""
    """Name of the pair, if the finding is about one."""
    files: tuple[Path, ...] = ()
    values: Mapping[str, int] = field(default_factory=dict)
    """Mask value or color → pixels, if the values are what is wrong."""

    @property
    def fault(self) -> bool:
        """Whether it is a fault rather than a notice."""
        return KINDS[self.kind].fault

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return {
            "kind": self.kind,
            "fault": self.fault,
            "split": self.split,
            "name": self.name,
            "message": self.message,
            "files": [str(file) for file in self.files],
            "values": dict(self.values),
        }


SHARE: Final = 0.1
"""If at least this share of the masks is stored in a second way, it is not an accident."""
LONG: Final = 400
"""Longest labels.json, in characters, that a message quotes."""


@dataclass(frozen=True)
class Question:
    """The question whether the ignored value is a class."""

    message: str
    """One line, with the labels.json to write for either answer."""
    strong: bool
    """Whether it stops a training; otherwise the user may judge."""
    values: tuple[str, ...]
    """The ignored values of the masks."""
    target: int
    """The class that the value is likely to be."""

    def finding(self, root: Path) -> Finding:
        """The question as a finding about the dataset in `root`."""
        return Finding("ignored-class" if self.strong else "ignored-class-unsure", f"{root}: {self.message}")


def question_ignored(masks: Sequence[Mapped], label_space: LabelSpace, *, assumed: bool) -> Question | None:
    """The question whether the ignored value is a class; None if the masks do not raise it.

    A class that never occurs while the ignored value does may be that value, unless the label map states explicitly
    both the value of the class and what is ignored. Even if all classes occur, some of the masks may have been stored
    differently: these hold the ignored value together with a single class, and never the other classes. Border pixels
    and unlabeled areas, in contrast, occur together with several classes in at least one mask.

    Args:
        masks: the counts of all masks that are known.
        label_space: the label map by which they were counted.
        assumed: the value is ignored by convention only; the user has not said so.
    """
    if not any(mask.ignored for mask in masks):
        return None
    present = np.array([mask.classes > 0 for mask in masks])
    absent = np.flatnonzero(~present.any(0)).tolist()
    if not assumed:
        reached = {*(label_space.raw or {}).values(), *(label_space.colors or {}).values()}
        absent = [k for k in absent if reached and k not in reached]
    ignoring = np.array([mask.ignored > 0 for mask in masks])
    if absent:
        strong = len(absent) == 1 or 2 * len(absent) >= label_space.num_classes or _with_one_class(present[ignoring])
        text = f"{_names(label_space, absent)} never occur{'s'[: len(absent) == 1]} in the masks, but VALUE does"
        return _ask(masks, label_space, absent, strong, text)
    if not assumed or not _with_one_class(present[ignoring]):
        return None
    labeled = ignoring & present.any(1)
    together, elsewhere = present[labeled].any(0), present[~ignoring].any(0)
    others = np.flatnonzero(elsewhere & ~together).tolist()
    if np.count_nonzero(together) != 1 or not others:
        return None
    count = int(np.count_nonzero(labeled))
    known = repr(label_space.names[int(np.argmax(together))])
    without = _names(label_space, others)
    text = f"{count} of {len(masks)} masks hold VALUE together with {known} only, never with {without}"
    return _ask(masks, label_space, others, count >= max(2, SHARE * len(masks)), text)


def _with_one_class(present: npt.NDArray[np.bool_]) -> bool:
    """Whether no mask (row) has several classes, and at least one has one."""
    return bool(present.any()) and int(present.sum(1).max()) == 1


def _names(label_space: LabelSpace, classes: Sequence[int]) -> str:
    named = ", ".join(repr(label_space.names[k]) for k in classes[:3])
    return named + (f" and {len(classes) - 3} more classes" if len(classes) > 3 else "")


def _ask(
    masks: Sequence[Mapped], label_space: LabelSpace, candidates: Sequence[int], strong: bool, text: str
) -> Question:
    found = sorted({key for mask in masks for key, target in mask.targets.items() if target == label_space.ignore})
    value, name = " and ".join(found), repr(label_space.names[candidates[0]])
    share = sum(mask.ignored for mask in masks) / max(sum(sum(mask.pixels.values()) for mask in masks), 1)
    message = (
        f"{text.replace('VALUE', value)}; it is ignored ({share:.1%} of all pixels). Is {value} the class {name}? "
        f"{_remedy(masks, label_space, found, candidates[0])}"
    )
    return Question(message, strong, tuple(found), candidates[0])


def _remedy(masks: Sequence[Mapped], label_space: LabelSpace, values: Sequence[str], target: int) -> str:
    """The labels.json to write; or the command that writes it, if it is long or other values are in question too."""
    write = "`meanshifter data check DIR --write-labels` writes a labels.json with the values that occur"
    if len(values) != 1 or not values[0].isdecimal() or any(mask.outside for mask in masks):
        return write
    raw = {k: k for k in range(label_space.num_classes)} if label_space.raw is None else dict(label_space.raw)
    value = int(values[0])
    yes, no = (labels_json(label_space.names, {**raw, value: meaning}) for meaning in (target, label_space.ignore))
    if len(yes) > LONG:
        return write
    if target not in raw.values():
        name = label_space.names[target]
        return f"If so, write labels.json: {yes}; if not, give {name!r} a value or remove it from the names"
    return f"If so, write labels.json: {yes}; if it should be ignored: {no}"


@dataclass(frozen=True)
class RawRow:
    """A value or color of the masks and the class that it is mapped to."""

    value: str
    pixels: int
    target: str
    """A class name, "ignored" or "outside"."""


@dataclass(frozen=True)
class ClassRow:
    """A class and how often it occurs."""

    name: str
    pixels: Mapping[str, int]
    """Split → pixels."""
    images: Mapping[str, int]
    """Split → images in which it occurs."""
    weight: float
    """Loss weight with `class_weight_power` 0.5, by the pixels of the first split; NaN if that has none."""


@dataclass(frozen=True)
class ModeRow:
    """Masks that are stored in the same way."""

    mode: str
    masks: int
    reading: str


@dataclass(frozen=True)
class Report:
    """The findings and statistics of one check."""

    source: str
    """Name of the dataset, or "folder"."""
    root: Path
    label_space: LabelSpace | None
    """None if the classes could not be derived."""
    pairs: Mapping[str, Sequence[Pair]]
    """Split → its pairs, including faulty ones."""
    findings: Sequence[Finding]
    """Faults first, in the order of `KINDS`."""
    raw: Sequence[RawRow]
    classes: Sequence[ClassRow]
    modes: Sequence[ModeRow]
    ignored: int
    """Ignored pixels of all masks."""
    named_by: str = ""
    """Where the classes come from, as `Dataset.named_by`."""
    question: Question | None = None
    """The question whether the ignored value is a class."""
    paints: Mapping[Color, int] = field(default_factory=dict)
    """Color → pixels, if palette masks number their colors differently."""

    @property
    def ignored_share(self) -> float:
        """Share of ignored pixels among those that the label map covers; 0 if there are none."""
        total = self.ignored + sum(sum(row.pixels.values()) for row in self.classes)
        return self.ignored / total if total else 0.0

    @property
    def faults(self) -> list[Finding]:
        """The findings that are not mere notices."""
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
            "labels": None if self.label_space is None else self.label_space.to_dict(),
            "raw": [{"value": row.value, "pixels": row.pixels, "class": row.target} for row in self.raw],
            "classes": [asdict(row) | {"weight": None if isnan(row.weight) else row.weight} for row in self.classes],
            "modes": [asdict(row) for row in self.modes],
            "ignored_pixels": self.ignored,
            "classes_from": self.named_by,
        }
