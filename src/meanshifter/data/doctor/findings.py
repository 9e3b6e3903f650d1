"""What can be wrong with a data set, and how one case of it is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final


@dataclass(frozen=True)
class Kind:
    """A kind of finding."""

    title: str
    remedy: str
    fault: bool = True
    """A fault stops or spoils a training or a score; a notice is for a person to judge."""


KINDS: Final = {
    "label-file": Kind("label file that cannot be used", "correct it; docs/data.md shows the format"),
    "no-classes": Kind(
        "classes that cannot be told",
        "write labels.json into the folder; --write-labels begins one with the values that occur",
    ),
    "blended": Kind(
        "values that are edges and no classes", "export masks unsmoothed, resize them by the nearest pixel"
    ),
    "ignored-class": Kind("class that may be the ignored value", "say in labels.json what the value is"),
    "unreadable-split": Kind("split that cannot be listed", "add the folder or the files it lacks"),
    "unreadable-image": Kind("image that cannot be read", "copy or export it again"),
    "unreadable-mask": Kind("mask that cannot be read", "copy or export it again"),
    "image-without-mask": Kind("image without a mask", "an image and its mask share their name up to the extension"),
    "mask-without-image": Kind("mask without an image", "an image and its mask share their name up to the extension"),
    "same-name": Kind("two files of one name", "keep one of them"),
    "size": Kind("mask of another size than its image", "export the mask at the size of its image"),
    "orientation": Kind("EXIF turn that the mask lacks", "turn the mask likewise, or remove the tag from the image"),
    "lossy-mask": Kind("mask with lossy compression", "export it as PNG: class numbers are no longer exact"),
    "mask-mode": Kind("mask whose mode the label map does not cover", "store class numbers, or add `colors`"),
    "renumbered": Kind(
        "palettes that number the colours differently",
        "have the masks read by their colours: --write-labels writes a labels.json with `colors`",
    ),
    "palettes": Kind(
        "palettes that contradict each other", "export all masks alike, or have --fix write class numbers"
    ),
    "outside": Kind("values outside the label map", "correct the mask, or add them to labels.json"),
    "all-ignored": Kind("mask that is ignored everywhere", "label it, or take the pair out"),
    "copy-across": Kind("the same image in two splits", "take it out of one: the score would count what was taught"),
    "ignored-class-unsure": Kind(
        "classes of which one may be the ignored value", "say in labels.json what the value is", fault=False
    ),
    "copy-within": Kind("the same image twice in a split", "keep one, unless it is meant to count twice", fault=False),
    "near-copy": Kind("nearly the same image in two splits", "look whether one was made from the other", fault=False),
    "blank-image": Kind("blank image", "look whether it was exported wrongly", fault=False),
    "passed-over": Kind("files passed over", "look whether images or masks are among them", fault=False),
    "orientation-unsure": Kind(
        "EXIF turn that sizes cannot confirm", "remove the tag if the mask was drawn on the image as stored", False
    ),
    "mixed-modes": Kind("masks of several modes", "check that all were exported alike", fault=False),
    "never": Kind("class that never occurs", "check the label map", fault=False),
    "one-split": Kind("class in some splits only", "check how the splits were drawn", fault=False),
    "shift": Kind("label map that may be off by one", "compare the values with the list of classes", fault=False),
}
"""Kind of finding → what it is called and what to do, faults first, in the order of reports."""


@dataclass(frozen=True)
class Finding:
    """One case."""

    kind: str
    """A key of `KINDS`."""
    message: str
    """One line, which names the file or class."""
    split: str = ""
    name: str = ""
    """The pair's name, where the finding is about one."""
    files: tuple[Path, ...] = ()
    values: Mapping[str, int] = field(default_factory=dict)
    """Mask value or colour → pixels, where values are what is wrong."""

    @property
    def fault(self) -> bool:
        """Whether it is more than a notice."""
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
