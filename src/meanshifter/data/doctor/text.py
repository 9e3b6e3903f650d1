"""A report as lines of text, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from meanshifter.data.doctor.findings import KINDS
from meanshifter.data.doctor.report import Report
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import one_line

SHOWN: Final = 3
"""Cases of each kind that are named."""
ROWS: Final = 40
"""Rows of the table of values, at most: the page has all."""
BAR: Final = 12


def report_lines(report: Report) -> list[str]:
    """What was checked, the table of values, and the findings by kind."""
    splits = ", ".join(f"{split} {len(pairs):,}" for split, pairs in report.pairs.items())
    lines = [f"{one_line(str(report.root))}: {splits} pairs"]
    lines += [f"{row.masks:,} mask{'s'[: row.masks != 1]}: {row.mode}; {row.reading}" for row in report.modes]
    if report.space is not None:
        lines.append(summary_line(report, report.space))
    lines += ["", *value_lines(report)]
    for kind, found in report.by_kind.items():
        about = KINDS[kind]
        lines += ["", f"{'fault' if about.fault else 'notice'}: {about.title} ({len(found):,}): {about.remedy}"]
        lines += [f"  {one_line(finding.message)}" for finding in found[:SHOWN]]
        if len(found) > SHOWN:
            lines.append(f"  … and {len(found) - SHOWN:,} more")
    return lines


def summary_line(report: Report, space: LabelSpace) -> str:
    """How many classes, where their names are from, and how much is ignored."""
    return (
        f"{space.num_classes} class{'es'[: 2 * (space.num_classes != 1)]}, named by "
        f"{report.named_by or f'the data set {report.source}'}; {report.ignored_share:.1%} of all pixels are ignored"
    )


def value_lines(report: Report) -> list[str]:
    """Raw values on the left, classes on the right, each with its share of all pixels."""
    total = max(sum(row.pixels for row in report.raw), 1)
    table = [("value", "", "pixels", "", "becomes", "", "pixels", "weight")]
    pixels = {row.name: sum(row.pixels.values()) for row in report.classes} | {"ignored": report.ignored}
    weights = {row.name: f"{row.weight:.2f}" for row in report.classes}
    told = set()
    for row in report.raw:
        again = row.target in told
        told.add(row.target)
        share = pixels.get(row.target, 0) / total
        mapped = ("", "") if again or row.target not in pixels else (_bar(share), _percent(share))
        left = (row.value, _bar(row.pixels / total), _percent(row.pixels / total))
        table.append((*left, "→" if row.target else "", row.target, *mapped, weights.get(row.target, "")))
    table += [
        ("–", "", "", "", row.name, "", _percent(0), weights[row.name])
        for row in report.classes
        if row.name not in told
    ]
    more = [f"… and {len(table) - ROWS - 1} more rows"] if len(table) > ROWS + 1 else []
    return [*_aligned(table[: ROWS + 1]), *more]


def _bar(share: float) -> str:
    eighths = round(share * BAR * 8)
    last: str = ("", *"▏▎▍▌▋▊▉")[eighths % 8]
    return "█" * (eighths // 8) + last


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _aligned(table: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    right = (0, 2, 6, 7)
    return [
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
