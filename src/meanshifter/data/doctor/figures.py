"""The tables of a report: values, classes and modes of all masks together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from meanshifter.data.balance import class_weights
from meanshifter.data.doctor.examine import Facts
from meanshifter.data.doctor.report import ClassRow, ModeRow, RawRow
from meanshifter.data.doctor.values import MODES, Mapped, Values, told
from meanshifter.data.labels import LabelSpace

BALANCE: Final = 0.5
"""The `class_balance` whose weights are told: that of the recipe for folders."""
Judged = Sequence[tuple[Facts, Mapped | None]]


def raw_rows(judged: Judged, space: LabelSpace | None) -> list[RawRow]:
    """Every value or colour that occurs, with the class it is mapped to, numbers first."""
    pixels: Counter[str] = Counter()
    targets: dict[str, int | None] = {}
    for fact, mapped in judged:
        values = None if fact.mask is None else fact.mask.values
        if mapped is not None:
            pixels.update(mapped.pixels)
            targets |= mapped.targets
        elif values is not None:
            pixels.update(dict(zip(told(values), values.counts.tolist(), strict=True)))
    ordered = sorted(pixels, key=lambda key: (not key.isdecimal(), int(key) if key.isdecimal() else 0, key))
    return [RawRow(key, pixels[key], _target(targets.get(key), space)) for key in ordered]


def _target(target: int | None, space: LabelSpace | None) -> str:
    if target is None or space is None:
        return "" if space is None else "outside"
    return "ignored" if target == space.ignore else space.names[target]


def class_rows(judged: Judged, space: LabelSpace | None, splits: Sequence[str]) -> list[ClassRow]:
    """Every class with its pixels and images by split; the weights are by the first split."""
    if space is None:
        return []
    K = space.num_classes
    pixels = {split: np.zeros(K, np.int64) for split in splits}
    images = {split: np.zeros(K, np.int64) for split in splits}
    for fact, mapped in judged:
        if mapped is not None:
            pixels[fact.split] += mapped.classes
            images[fact.split] += mapped.classes > 0
    taught = pixels[splits[0]].astype(np.float64) if splits else np.zeros(K)
    weights = class_weights(taught, BALANCE) if taught.any() else np.full(K, math.nan)
    return [
        ClassRow(
            name,
            {split: int(pixels[split][k]) for split in splits},
            {split: int(images[split][k]) for split in splits},
            float(weights[k]),
        )
        for k, name in enumerate(space.names)
    ]


def mode_rows(judged: Judged, space: LabelSpace | None) -> list[ModeRow]:
    """How masks are stored and how they are read, the most frequent first."""
    rows: Counter[tuple[str, str]] = Counter()
    for fact, _ in judged:
        if fact.mask is not None:
            words = "16-bit index" if fact.mask.mode.startswith("I;16") else MODES.get(fact.mask.mode, fact.mask.mode)
            rows[f"{words}, {fact.mask.format}", _reading(fact.mask.values, space)] += 1
    return [ModeRow(mode, count, reading) for (mode, reading), count in rows.most_common()]


def _reading(values: Values | None, space: LabelSpace | None) -> str:
    """How the label map reads such a mask, in words."""
    if values is None:
        return "refused"
    if space is None:
        return "not known"
    if values.colored and not space.colors:
        return "refused: no colour map"
    if values.colored:
        return "colours by `colors`"
    if space.colors is not None and space.raw is None:
        return "the colours they are shown in, by `colors`"
    return "values by `raw`" if space.raw is not None else "values are the class numbers"
