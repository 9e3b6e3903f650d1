"""Judge the examined files: each pair, the dataset as a whole, its palettes and its duplicates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path
from typing import Final

import numpy as np

from meanshifter.data.doctor.examine import (
    HASH,
    MODES,
    Facts,
    ImageFacts,
    MaskFacts,
    Values,
    colors_tell,
    describe_values,
    map_values,
)
from meanshifter.data.doctor.findings import ClassRow, Finding, ModeRow
from meanshifter.data.images import SWAPS_SIDES
from meanshifter.data.labels import Color, LabelSpace
from meanshifter.data.masks import color_edges_hint, describe_counts, edges_hint, index_map

ALIKE: Final = 0.15
"""Images with a smaller share of differing hash bits are reported as near duplicates.

On CamVid, copies that were shrunk, cropped by 3 % or darkened and compressed again differ by 0.14 at most, frames of
different splits by 0.28 at least.
"""
_ROWS: Final = 1024


def judge_pair(facts: Facts, label_space: LabelSpace | None) -> list[Finding]:
    """All findings about a pair; without a label space, those that depend on its files alone."""
    found = []
    if facts.image is None:
        found.append(_of(facts, "unreadable-image", facts.image_error, facts.pair.image))
    elif facts.image.blank:
        found.append(_of(facts, "blank-image", f"{facts.pair.image}: all of one gray level", facts.pair.image))
    if facts.mask is None:
        found.append(_of(facts, "unreadable-mask", facts.mask_error, facts.pair.mask))
    else:
        found += _judge_mask(facts, facts.mask, label_space)
    if facts.image is not None and facts.mask is not None:
        found += _judge_size(facts, facts.image, facts.mask)
    return found


def _of(facts: Facts, kind: str, message: str, *files: Path, values: dict[str, int] | None = None) -> Finding:
    return Finding(kind, message, facts.split, facts.pair.name, files, values or {})


def _judge_size(facts: Facts, image: ImageFacts, mask: MaskFacts) -> list[Finding]:
    files = facts.pair.image, facts.pair.mask
    if image.upright == mask.size:
        if image.turn == mask.turn or (image.turn in SWAPS_SIDES and image.size[0] != image.size[1]):
            return []
        text = f"{files[0]}: EXIF orientation {image.turn}, which {files[1]} lacks; their sizes fit with and without it"
        return [_of(facts, "orientation-unsure", text, *files)]
    if image.turn != mask.turn and image.size == mask.size:
        text = f"{files[1]}: fits {files[0]} as stored, but not with its EXIF orientation {image.turn}"
        return [_of(facts, "orientation", text, *files)]
    of_mask, of_image = (f"{width}×{height}" for width, height in (mask.size, image.upright))
    text = f"{files[1]}: {of_mask}, but its image {files[0]} is {of_image} (width×height)"
    return [_of(facts, "size", text, *files)]


def _judge_mask(facts: Facts, mask: MaskFacts, label_space: LabelSpace | None) -> list[Finding]:
    path, values = facts.pair.mask, mask.values
    if mask.lossy:
        return [_of(facts, "lossy-mask", f"{path}: a {mask.lossy} mask", path)]
    if values is None:
        return [_of(facts, "mask-mode", f"{path}: mode {mask.mode}, which holds no class numbers", path)]
    if label_space is None:
        return []
    mapped = map_values(values, label_space)
    if mapped is None:
        colors = colors_tell(values, label_space)
        hint = ""
        if colors is not None:
            own = set(colors) <= set(label_space.palette)
            hint = f"; its {'colors are those of the palette' if own else 'gray levels are values of the label map'}"
        text = f"{path}: {MODES.get(mask.mode, mask.mode)} without a color map{hint}"
        counts = dict(zip(describe_values(values), values.counts.tolist(), strict=True))
        return [_of(facts, "mask-mode", text, path, values=counts)]
    if outside := mapped.outside:
        if values.colored:
            hint = color_edges_hint(outside, int(values.counts.sum()))
        else:
            hint = edges_hint(values.keys, values.counts)
            if not hint and (shift := _fitting_shift(values, label_space)) is not None:
                hint = f"; with 1 {'subtracted' if shift < 0 else 'added'}, every value would fit"
        text = f"{path}: {describe_counts(outside)} outside the label map{hint}"
        return [_of(facts, "outside", text, path, values=outside)]
    if not mapped.classes.any():
        return [_of(facts, "all-ignored", f"{path}: all {mapped.ignored:,} pixels are ignored", path)]
    return []


def _fitting_shift(values: Values, label_space: LabelSpace) -> int | None:
    """-1 or +1 if the label map contains all values only after such a shift, apart from the ignored one."""
    if values.colored or label_space.colors is not None:
        return None
    found = set(values.keys.tolist()) - {label_space.ignore}
    known = set(index_map(label_space))
    if not found or found <= known:
        return None
    return next((shift for shift in (-1, 1) if {value + shift for value in found} <= known), None)


def judge_whole(
    facts: Sequence[Facts],
    label_space: LabelSpace | None,
    splits: Sequence[str],
    modes: Sequence[ModeRow],
    classes: Sequence[ClassRow],
    root: Path,
) -> list[Finding]:
    """Notices about the masks as a whole."""
    findings = []
    if len(modes) > 1:
        listed = ", ".join(f"{row.masks} {row.mode}" for row in modes)
        findings.append(Finding("mixed-modes", f"{root}: masks of {len(modes)} modes: {listed}"))
    for row in classes:
        seen = [split for split in splits if row.images[split]]
        if not seen:
            findings.append(Finding("never", f"{row.name!r} occurs in no mask"))
        elif len(seen) < len(splits):
            lacking = ", ".join(split for split in splits if split not in seen)
            findings.append(Finding("one-split", f"{row.name!r} occurs in {', '.join(seen)} and not in {lacking}"))
    return findings if label_space is None else [*findings, *_shifted(facts, label_space, classes)]


def _shifted(facts: Sequence[Facts], label_space: LabelSpace, classes: Sequence[ClassRow]) -> list[Finding]:
    """One notice if masks fit the label map only when shifted, or fit it with the first class missing."""
    masks = [fact.mask.values for fact in facts if fact.mask is not None and fact.mask.values is not None]
    plain = [values for values in masks if not values.colored]
    shifts = [shift for values in plain if (shift := _fitting_shift(values, label_space)) is not None]
    if shifts:
        words = "one more" if shifts[0] < 0 else "one less"
        text = f"{len(shifts)} of {len(plain)} masks hold values that are all {words} than those of the label map"
        return [Finding("shift", text)]
    last = label_space.num_classes - 1
    if (
        label_space.raw is None
        and label_space.colors is None
        and classes
        and not any(classes[0].images.values())
        and any(last in values.keys for values in plain)
    ):
        text = (
            f"{classes[0].name!r}, class 0, never occurs, but the last class does: are the values one more than the "
            "class numbers?"
        )
        return [Finding("shift", text)]
    return []


def judge_palettes(facts: Sequence[Facts], label_space: LabelSpace | None) -> list[Finding]:
    """One finding if masks that are read by index display one index in two colors.

    If a color also stands for two indices, each file numbers its colors independently, as programs that reduce colors
    do, and the indices are not classes. Otherwise only the displayed colors differ, which does not affect training.
    """
    if label_space is not None and label_space.colors is not None and label_space.raw is None:
        return []  # each mask is read by color through its own palette
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


def near_duplicates(facts: Sequence[Facts]) -> list[Finding]:
    """Equal image files within a split and across splits, and images of different splits that look alike."""
    groups: defaultdict[bytes, list[Facts]] = defaultdict(list)
    splits: defaultdict[str, list[Facts]] = defaultdict(list)
    for fact in facts:
        if fact.image is not None:
            groups[fact.image.digest].append(fact)
            if not fact.image.blank:
                splits[fact.split].append(fact)
    findings = []
    for group in groups.values():
        for fact, following in pairwise(group):
            # every copy outside the last split is reported, so that removing these leaves one split
            across = fact.split != group[-1].split
            files = fact.pair.image, (group[-1] if across else following).pair.image
            kind, text = "copy-across" if across else "copy-within", f"{files[0]} and {files[1]} are the same file"
            findings.append(Finding(kind, text, fact.split, fact.pair.name, files))
    return [*findings, *(near for pair in combinations(splits.values(), 2) for near in _look_alike(*pair))]


def _look_alike(one: Sequence[Facts], other: Sequence[Facts]) -> list[Finding]:
    """Near duplicates across two splits, from one matrix product of the signs of all hashes, in blocks of rows."""
    bits = 2 * HASH * HASH
    left, right = (
        np.array([fact.image.hash for fact in side if fact.image is not None], np.float32) * 2 - 1
        for side in (one, other)
    )
    findings = []
    for start in range(0, len(left), _ROWS):
        distance = (bits - left[start : start + _ROWS] @ right.T) / (2 * bits)
        for row, column in np.argwhere(distance < ALIKE).tolist():
            a, b = one[start + row], other[column]
            if a.image is not None and b.image is not None and a.image.digest != b.image.digest:
                files = a.pair.image, b.pair.image
                share = f"{distance[row, column]:.0%} of their {bits} hash bits differ"
                text = f"{files[0]} and {files[1]} look alike ({share})"
                findings.append(Finding("near-copy", text, b.split, b.pair.name, files))
    return findings
