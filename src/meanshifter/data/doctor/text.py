"""The tables of a report (values, classes and modes of all masks) and its text."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Final

import numpy as np

from meanshifter.data.doctor.examine import MODES, Facts, Mapped, Values, describe_values
from meanshifter.data.doctor.findings import KINDS, ClassRow, ModeRow, RawRow, Report
from meanshifter.data.labels import LabelSpace
from meanshifter.data.masks import class_weights
from meanshifter.errors import counted, one_line

BALANCE: Final = 0.5
"""The `class_weight_power` of the reported weights: that of the recipe for folders."""
SHOWN: Final = 3
"""Findings of each kind that are printed."""
ROWS: Final = 40
"""Rows of the printed table of values at most; the page has all."""
BAR: Final = 12
Judged = Sequence[tuple[Facts, Mapped | None]]


def raw_rows(judged: Judged, label_space: LabelSpace | None) -> list[RawRow]:
    """Every value or color that occurs, with the class that it is mapped to; numbers come first."""
    pixels: Counter[str] = Counter()
    targets: dict[str, int | None] = {}
    for fact, mapped in judged:
        values = None if fact.mask is None else fact.mask.values
        if mapped is not None:
            pixels.update(mapped.pixels)
            targets |= mapped.targets
        elif values is not None:
            pixels.update(dict(zip(describe_values(values), values.counts.tolist(), strict=True)))
    ordered = sorted(pixels, key=lambda key: (not key.isdecimal(), int(key) if key.isdecimal() else 0, key))
    names: dict[int | None, str] = {}
    if label_space is not None:
        names = {None: "outside", label_space.ignore: "ignored"}
        names.update(enumerate(label_space.names))
    return [RawRow(key, pixels[key], names.get(targets.get(key), "")) for key in ordered]


def class_rows(judged: Judged, label_space: LabelSpace | None, splits: Sequence[str]) -> list[ClassRow]:
    """Every class with its pixels and images per split; the weights depend on the first split."""
    if label_space is None:
        return []
    K = label_space.num_classes
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
        for k, name in enumerate(label_space.names)
    ]


def mode_rows(judged: Judged, label_space: LabelSpace | None) -> list[ModeRow]:
    """How masks are stored and how they are read, the most frequent modes first."""
    rows: Counter[tuple[str, str]] = Counter()
    for fact, _ in judged:
        if fact.mask is not None:
            words = "16-bit index" if fact.mask.mode.startswith("I;16") else MODES.get(fact.mask.mode, fact.mask.mode)
            rows[f"{words}, {fact.mask.format}", _reading(fact.mask.values, label_space)] += 1
    return [ModeRow(mode, count, reading) for (mode, reading), count in rows.most_common()]


def _reading(values: Values | None, label_space: LabelSpace | None) -> str:
    """How the label map reads this mask, in words."""
    if values is None:
        return "rejected"
    if label_space is None:
        return "unknown"
    if values.colored and not label_space.colors:
        return "rejected: no color map"
    if values.colored:
        return "colors by `colors`"
    if label_space.colors is not None and label_space.raw is None:
        return "displayed colors by `colors`"
    return "values by `raw`" if label_space.raw is not None else "values are the class numbers"


def report_lines(report: Report) -> list[str]:
    """The lines of a report: what was checked, the table of values, and the findings by kind."""
    splits = ", ".join(f"{split} {len(pairs):,}" for split, pairs in report.pairs.items())
    lines = [f"{one_line(str(report.root))}: {splits} pairs"]
    lines += [f"{counted(row.masks, 'mask')}: {row.mode}; {row.reading}" for row in report.modes]
    if report.label_space is not None:
        lines.append(summary_line(report, report.label_space))
    lines += ["", *value_lines(report)]
    for kind, found in report.by_kind.items():
        about = KINDS[kind]
        lines += ["", f"{'fault' if about.fault else 'notice'}: {about.title} ({len(found):,}): {about.remedy}"]
        lines += [f"  {one_line(finding.message)}" for finding in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(f"  … and {len(found) - SHOWN:,} more")
    return lines


def summary_line(report: Report, label_space: LabelSpace) -> str:
    """Number of classes, where their names come from, and how much is ignored."""
    return (
        f"{label_space.num_classes} class{'es'[: 2 * (label_space.num_classes != 1)]}, names from "
        f"{report.named_by or f'the dataset {report.source}'}; {report.ignored_share:.1%} of all pixels are ignored"
    )


def value_lines(report: Report) -> list[str]:
    """A table with values on the left and classes on the right, each with its share of all pixels."""
    total = max(sum(row.pixels for row in report.raw), 1)
    table = [("value", "", "pixels", "", "becomes", "", "pixels", "weight")]
    pixels = {row.name: sum(row.pixels.values()) for row in report.classes} | {"ignored": report.ignored}
    weights = {row.name: f"{row.weight:.2f}" for row in report.classes}
    seen = set()
    for row in report.raw:
        again = row.target in seen
        seen.add(row.target)
        mapped = ("", "") if again or row.target not in pixels else _bar(pixels[row.target] / total)
        arrow = "→" if row.target else ""
        table.append((row.value, *_bar(row.pixels / total), arrow, row.target, *mapped, weights.get(row.target, "")))
    table += [
        ("–", "", "", "", row.name, *_bar(0), weights[row.name]) for row in report.classes if row.name not in seen
    ]
    widths = [max(map(len, column)) for column in zip(*table[: ROWS + 1], strict=True)]
    aligned = [
        "  ".join(
            cell.rjust(width) if place in (0, 2, 6, 7) else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table[: ROWS + 1]
    ]
    return [*aligned, *([f"… and {len(table) - ROWS - 1} more rows"] if len(table) > ROWS + 1 else [])]


def _bar(share: float) -> tuple[str, str]:
    """A share as a bar of block characters and as a percentage."""
    eighths = round(share * BAR * 8)
    last: str = ("", *"▏▎▍▌▋▊▉")[eighths % 8]
    return "█" * (eighths // 8) + last, f"{100 * share:.2f} %"
