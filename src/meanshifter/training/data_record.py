"""The record of a run's data, by which resuming notices changes: classes, mask values, and names in order.

A sample is a function of (seed, position) over the ordered list of names, so a run cannot resume with another list.
The content of the files is not compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from meanshifter.data.datasets import Dataset
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.utils.files import parse_json, read_text

RECORD: Final = "data.json"


RECORD_VERSION: Final = 1


LARGEST: Final = 2**30
"""Bytes; ten million names."""


DAMAGED: Final = "restore it from a copy, or remove it to resume without comparing the data"


@dataclass(frozen=True)
class SplitRecord:
    """One split: its label space, and its sample names in reading order."""

    label_space: LabelSpace
    names: tuple[str, ...]


@dataclass(frozen=True)
class DataRecord:
    """The training and validation data of a run."""

    train: SplitRecord
    val: SplitRecord

    @classmethod
    def of(cls, train_set: Dataset, val_set: Dataset) -> DataRecord:
        """The record of two datasets; reads no samples."""
        train, val = (SplitRecord(data.label_space, tuple(data.names)) for data in (train_set, val_set))
        return cls(train, val)

    def to_json(self) -> str:
        """The format of `read`; without the colors of label maps, which do not affect weights."""
        splits = {"train": _plain(self.train), "val": _plain(self.val)}
        return json.dumps({"format_version": RECORD_VERSION, **splits}) + "\n"

    @classmethod
    def read(cls, path: Path) -> DataRecord:
        """The inverse of `to_json`; an InputError if the file is missing, damaged, or of another version."""
        stored = parse_json(read_text(path, LARGEST), path)
        try:
            version = stored["format_version"]
            splits = [_split(stored[name]) for name in ("train", "val")] if version == RECORD_VERSION else []
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise InputError(f"{path}: not a record of a run's data ({error}); {DAMAGED}") from error
        if not splits:
            raise InputError(
                f"{path}: format_version {version!r:.20}; this version of meanshifter reads {RECORD_VERSION}; {DAMAGED}"
            )
        return cls(*splits)

    def changes(self, now: DataRecord) -> list[str]:
        """The differences of `now`, one phrase each; empty if the data are the same."""
        labels = [
            *_label_changes(self.train.label_space, now.train.label_space),
            *_label_changes(self.val.label_space, now.val.label_space),
        ]
        return [
            *dict.fromkeys(labels),  # both splits usually have the same classes
            *_name_changes("train", self.train.names, now.train.names),
            *_name_changes("val", self.val.names, now.val.names),
        ]


def _plain(split: SplitRecord) -> dict[str, Any]:
    labels = {key: value for key, value in split.label_space.to_dict().items() if key != "palette"}
    return {"labels": labels, "names": split.names}


def _split(stored: Any) -> SplitRecord:
    names = stored["names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("names are not a list of strings")
    return SplitRecord(LabelSpace.from_dict({**stored["labels"], "palette": ()}), tuple(names))


def _label_changes(then: LabelSpace, now: LabelSpace) -> Iterator[str]:
    for k, (old, new) in enumerate(zip_longest(then.names, now.names)):
        if old is None:
            yield f"class {k}, {new!r}, is new"
        elif new is None:
            yield f"class {k}, {old!r}, is gone"
        elif old != new:
            yield f"class {k} was {old!r} and is {new!r}"
    if then.ignore != now.ignore:
        yield f"the ignored train id was {then.ignore} and is {now.ignore}"
    was, is_now = _meanings(then), _meanings(now)
    for source in {**was, **is_now}:
        old, new = was.get(source, "no class"), is_now.get(source, "no class")
        if old != new:
            yield f"{source} was {old} and is {new}"


def _meanings(label_space: LabelSpace) -> dict[str, str]:
    """The meaning of each mask value and color; masks without `raw` hold train ids."""
    ignore, ids = label_space.ignore, range(label_space.num_classes)
    raw = {**{k: k for k in ids}, ignore: ignore} if label_space.raw is None else label_space.raw
    sources = {f"mask value {value}": k for value, k in raw.items()}
    sources |= {f"mask color {color}": k for color, k in (label_space.colors or {}).items()}
    return {source: "ignored" if k == ignore else repr(label_space.names[k]) for source, k in sources.items()}


def _name_changes(split: str, then: Sequence[str], now: Sequence[str]) -> Iterator[str]:
    if then == now:
        return
    before, after = set(then), set(now)
    for names, others, what in ((now, before, "new"), (then, after, "gone")):
        if other := [name for name in names if name not in others]:
            yield f"{len(other):,} {split} image{'' if len(other) == 1 else 's'} {what}, such as {other[0]!r}"
    if before == after:
        place, pair = next((k, pair) for k, pair in enumerate(zip_longest(then, now)) if pair[0] != pair[1])
        yield f"{split} images are in a different order: number {place} was {pair[0]!r} and is {pair[1]!r}"
