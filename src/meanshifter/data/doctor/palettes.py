"""Masks with palettes that contradict each other: whether the numbers of their classes can be trusted."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from meanshifter.data.doctor.examine import Facts
from meanshifter.data.doctor.findings import Finding
from meanshifter.data.labels import Color, LabelSpace


def judge_palettes(facts: Sequence[Facts], space: LabelSpace | None) -> list[Finding]:
    """One finding where masks that are read by their numbers show one number in two colours.

    Where a colour also stands for two numbers, each file has numbered its colours for itself, as programs do that
    reduce colours: the numbers are no classes. Else the colours to look at alone differ, which a training survives.
    """
    if space is not None and space.colors is not None and space.raw is None:
        return []  # read by colour, through each mask's own palette
    shown: defaultdict[int, dict[Color, Facts]] = defaultdict(dict)
    numbers: defaultdict[Color, set[int]] = defaultdict(set)
    for fact in facts:
        if fact.mask is not None and fact.mask.values is not None and fact.mask.has_palette:
            for key, color in zip(fact.mask.values.keys.tolist(), fact.mask.values.paints, strict=True):
                shown[key].setdefault(color, fact)
                numbers[color].add(key)
    clashes = {key: colors for key, colors in shown.items() if len(colors) > 1}
    if not clashes:
        return []
    key = min(clashes)
    (one, first), (two, second) = list(clashes[key].items())[:2]
    text = (
        f"{second.pair.mask}: index {key} is {two} in its palette, but {one} in that of {first.pair.mask}; "
        f"{len(clashes)} of {len(shown)} indices differ"
    )
    renumbered = any(len(keys) > 1 and not keys.isdisjoint(clashes) for keys in numbers.values())
    kind = "renumbered" if renumbered else "palettes"
    return [Finding(kind, text, second.split, files=(first.pair.mask, second.pair.mask))]
