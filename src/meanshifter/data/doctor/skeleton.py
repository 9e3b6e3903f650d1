"""The beginning of a labels.json from what was counted: valid as it is, for a person to name the classes in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from meanshifter.data.ambiguity import labels_json
from meanshifter.data.doctor.report import Report
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.data.mask_values import EDGES
from meanshifter.errors import InputError
from meanshifter.files import write_text

MOST: Final = 1_000
"""Values or colours from which on they are no classes."""


def write_skeleton(report: Report, path: str | Path) -> LabelSpace:
    """Write a labels.json in which every value or colour that occurs in the masks has a class, or is ignored.

    What the classes are called already, they keep. Values outside the label map take the names that no value has, in
    their order, where there are as many; else each becomes a class of its own. Colours without a map are named after
    themselves.

    Raises:
        InputError: a file that is there already, masks of which none could be counted, values that are no classes, or
            a place that cannot be written.
    """
    path = Path(path)
    if path.exists():
        raise InputError(f"{path}: exists; move it away, or name another file with --write-labels FILE")
    if blended := next((f for f in report.findings if f.kind == "blended" or EDGES in f.message), None):
        raise InputError(f"--write-labels: {blended.message}")
    values, colors = _counted(report)
    if not values and not colors:
        raise InputError(f"{report.root}: no mask could be counted; correct the faults first")
    if len(values) + len(colors) > MOST:
        raise InputError(
            f"{report.root}: {len(values) + len(colors):,} values or colours, which are no classes; export masks "
            "without smoothing or compression"
        )
    space = _space(report, values, colors)
    text = labels_json(space.names, space.raw, space.colors, palette=space.palette, lines=True)
    write_text(path, text)
    return space


def _counted(report: Report) -> tuple[list[int], list[Color]]:
    """The values and the colours that occur, ascending."""
    if report.paints:
        return [], sorted(report.paints)
    values = [int(row.value) for row in report.raw if not row.value.startswith("(")]
    colors = [json.loads(f"[{row.value[1:-1]}]") for row in report.raw if row.value.startswith("(")]
    return sorted(values), sorted((red, green, blue) for red, green, blue in colors)


def _space(report: Report, values: Sequence[int], colors: Sequence[Color]) -> LabelSpace:
    known = report.space
    if known is not None and colors and not values and not known.colors:
        known = None  # nobody can say which of its names belongs to which colour
    names: list[str] = [] if known is None else list(known.names)
    ignore = -1 if known is None else known.ignore
    raw = _known_values(report, known, values)
    mapped = {} if known is None else dict(known.colors or {})
    strange = [value for value in values if value not in raw]
    occurring = {row.target for row in report.raw}
    free = [k for k, name in enumerate(names) if name not in occurring]
    if strange and len(free) == len(strange):
        raw |= dict(zip(strange, free, strict=True))
    for value in strange:
        raw.setdefault(value, len(names))
        names += [f"class {value}"] * (raw[value] == len(names))
    for color in (color for color in colors if color not in mapped):
        mapped[color] = len(names)
        names.append(f"color {color[0]} {color[1]} {color[2]}")
    palette = known.palette if known is not None and len(names) == known.num_classes else ()
    met = {raw[value] for value in values}
    raw = {value: target for value, target in sorted(raw.items()) if value in values or target not in met | {ignore}}
    return LabelSpace(tuple(names), palette, raw or None, mapped or None, ignore)


def _known_values(report: Report, known: LabelSpace | None, values: Sequence[int]) -> dict[int, int]:
    """What the values mean so far; one that is ignored and may be a class is left out."""
    if known is None or not values:
        return {}
    raw = {k: k for k in range(known.num_classes)} | {known.ignore: known.ignore} if known.raw is None else known.raw
    if report.question is None or not report.question.strong:
        return dict(raw)
    doubtful = {int(value) for value in report.question.values if value.isdecimal()}
    if any(row.target == "outside" for row in report.raw):
        return {value: target for value, target in raw.items() if value not in doubtful}
    return dict(raw) | dict.fromkeys(doubtful, report.question.target)
