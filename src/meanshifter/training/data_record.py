"""What a run learns from, kept in its folder as data.json: its classes, how masks spell them, the names of its samples.

A sample is a function of (seed, position) over the names in their order, so that a run which goes on with other ones
is another run. What is inside the files is not compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

from meanshifter.data.datasets import Dataset
from meanshifter.data.labels import LabelSpace
from meanshifter.documents import parse_json, read_text
from meanshifter.errors import InputError

RECORD: Final = "data.json"
FORMAT_VERSION: Final = 1
LARGEST: Final = 2**30
"""Bytes; ten million names."""
DAMAGED: Final = "restore it from a copy, or remove it to go on without comparing the data"


@dataclass(frozen=True)
class SplitRecord:
    """One split: its label space and the names of its samples in reading order."""

    labels: LabelSpace
    names: tuple[str, ...]


@dataclass(frozen=True)
class DataRecord:
    """The data that a run learns from and is scored on."""

    train: SplitRecord
    val: SplitRecord

    @classmethod
    def of(cls, train_set: Dataset, val_set: Dataset) -> DataRecord:
        """The record of two data sets; no sample is read."""
        train, val = (SplitRecord(data.labels, tuple(data.names)) for data in (train_set, val_set))
        return cls(train, val)

    def to_json(self) -> str:
        """What `read` reads; colors of label maps are left out, since no weight depends on them."""
        splits = {
            name: {
                "labels": {key: value for key, value in split.labels.to_dict().items() if key != "palette"},
                "names": split.names,
            }
            for name, split in (("train", self.train), ("val", self.val))
        }
        return json.dumps({"format_version": FORMAT_VERSION, **splits}) + "\n"

    @classmethod
    def read(cls, path: Path) -> DataRecord:
        """The inverse of `to_json`.

        Raises:
            InputError: no such file, of another version, or damaged.
        """
        stored = parse_json(read_text(path, LARGEST), path)
        try:
            version = stored["format_version"]
            splits = [_split(stored[name]) for name in ("train", "val")] if version == FORMAT_VERSION else []
        except (KeyError, TypeError, ValueError, InputError) as error:
            raise InputError(f"{path}: no record of a run's data ({error}); {DAMAGED}") from error
        if not splits:
            raise InputError(
                f"{path}: format_version {version!r:.20}; this version of meanshifter reads {FORMAT_VERSION}; {DAMAGED}"
            )
        return cls(*splits)

    def changes(self, now: DataRecord) -> list[str]:
        """What is otherwise in `now`, a phrase each; empty where a run goes on with the same data."""
        labels = [
            *_label_changes(self.train.labels, now.train.labels),
            *_label_changes(self.val.labels, now.val.labels),
        ]
        return [
            *dict.fromkeys(labels),  # both splits have the same classes, most often
            *_name_changes("train", self.train.names, now.train.names),
            *_name_changes("val", self.val.names, now.val.names),
        ]


def _split(stored: Any) -> SplitRecord:
    names = stored["names"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("names are no list of texts")
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
    for what, old_map, new_map in (
        ("mask value", _values(then), _values(now)),
        ("mask color", then.colors or {}, now.colors or {}),
    ):
        for source in dict.fromkeys([*old_map, *new_map]):
            old, new = _meaning(source, old_map, then), _meaning(source, new_map, now)
            if old != new:
                yield f"{what} {source} was {old} and is {new}"


def _values(labels: LabelSpace) -> Mapping[int, int]:
    """Mask value → train id, spelled out where masks hold train ids."""
    if labels.raw is not None:
        return labels.raw
    return {**{k: k for k in range(labels.num_classes)}, labels.ignore: labels.ignore}


def _meaning(source: Any, mapping: Mapping[Any, int], labels: LabelSpace) -> str:
    target = mapping.get(source)
    if target is None:
        return "no class"
    return "ignored" if target == labels.ignore else repr(labels.names[target])


def _name_changes(split: str, then: Sequence[str], now: Sequence[str]) -> Iterator[str]:
    if then == now:
        return
    before, after = set(then), set(now)
    for names, others, what in ((now, before, "new"), (then, after, "gone")):
        if other := [name for name in names if name not in others]:
            yield f"{len(other):,} {split} image{'' if len(other) == 1 else 's'} {what}, such as {other[0]!r}"
    if before == after:
        place, pair = next((k, pair) for k, pair in enumerate(zip_longest(then, now)) if pair[0] != pair[1])
        yield f"{split} images come in another order: number {place} was {pair[0]!r} and is {pair[1]!r}"
