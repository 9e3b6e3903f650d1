"""What is wrong with one pair, from its facts."""

from __future__ import annotations

from pathlib import Path

from meanshifter.data.decoding import SWAPS_SIDES
from meanshifter.data.doctor.examine import Facts, ImageFacts, MaskFacts
from meanshifter.data.doctor.findings import Finding
from meanshifter.data.doctor.values import MODES, Values, colors_tell, index_map, map_values, told
from meanshifter.data.labels import LabelSpace
from meanshifter.data.mask_values import color_edges_hint, edges_hint

NAMED = 3
"""Values that a message names, the most frequent ones."""


def judge_pair(facts: Facts, space: LabelSpace | None) -> list[Finding]:
    """All findings about a pair; without a label space only what its files alone tell."""
    found = []
    if facts.image is None:
        found.append(_of(facts, "unreadable-image", facts.image_error, facts.pair.image))
    elif facts.image.blank:
        found.append(_of(facts, "blank-image", f"{facts.pair.image}: all of one grey level", facts.pair.image))
    if facts.mask is None:
        found.append(_of(facts, "unreadable-mask", facts.mask_error, facts.pair.mask))
    else:
        found += _judge_mask(facts, facts.mask, space)
    if facts.image is not None and facts.mask is not None:
        found += _judge_fit(facts, facts.image, facts.mask)
    return found


def _of(facts: Facts, kind: str, message: str, *files: Path, values: dict[str, int] | None = None) -> Finding:
    return Finding(kind, message, facts.split, facts.pair.name, files, values or {})


def _judge_fit(facts: Facts, image: ImageFacts, mask: MaskFacts) -> list[Finding]:
    files = facts.pair.image, facts.pair.mask
    shared = image.turn == mask.turn
    if image.upright != mask.size:
        if not shared and image.size == mask.size:
            text = f"{files[1]}: fits {files[0]} as stored, whose EXIF orientation {image.turn} the mask lacks"
            return [_of(facts, "orientation", text, *files)]
        text = f"{files[1]}: {_by(mask.size)}, but its image {files[0]} is {_by(image.upright)} (width×height)"
        return [_of(facts, "size", text, *files)]
    if shared or (image.turn in SWAPS_SIDES and image.size[0] != image.size[1]):
        return []
    text = f"{files[0]}: EXIF orientation {image.turn}, which {files[1]} lacks; their sizes fit with and without it"
    return [_of(facts, "orientation-unsure", text, *files)]


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]}×{size[1]}"


def _judge_mask(facts: Facts, mask: MaskFacts, space: LabelSpace | None) -> list[Finding]:
    path = facts.pair.mask
    if mask.lossy:
        return [_of(facts, "lossy-mask", f"{path}: a {mask.lossy} mask", path)]
    if mask.values is None:
        return [_of(facts, "mask-mode", f"{path}: mode {mask.mode}, which holds no class numbers", path)]
    if space is None:
        return []
    mapped = map_values(mask.values, space)
    if mapped is None:
        text = f"{path}: {MODES.get(mask.mode, mask.mode)} without a colour map{_suggestion(mask.values, space)}"
        return [
            _of(
                facts,
                "mask-mode",
                text,
                path,
                values=dict(zip(told(mask.values), mask.values.counts.tolist(), strict=True)),
            )
        ]
    if mapped.outside:
        text = f"{path}: {_named(mapped.outside)} outside the label map{_hint(mask.values, mapped.outside, space)}"
        return [_of(facts, "outside", text, path, values=mapped.outside)]
    if not mapped.classes.any():
        return [_of(facts, "all-ignored", f"{path}: all {mapped.ignored:,} pixels are ignored", path)]
    return []


def _suggestion(values: Values, space: LabelSpace) -> str:
    reading = colors_tell(values, space)
    if reading is None:
        return ""
    if set(reading) <= set(space.palette):
        return "; its colours are those of the palette"
    return "; its grey levels are values of the label map"


def _named(outside: dict[str, int]) -> str:
    ranked = sorted(outside.items(), key=lambda item: -item[1])
    named = ", ".join(f"{value} ({count:,} pixel{'s'[: count != 1]})" for value, count in ranked[:NAMED])
    more = f" and {len(ranked) - NAMED} more" if len(ranked) > NAMED else ""
    return f"value{'s'[: len(ranked) != 1]} {named}{more}"


def _hint(values: Values, outside: dict[str, int], space: LabelSpace) -> str:
    """Blended edges, or numbers that are off by one."""
    if values.colored:
        return color_edges_hint(outside, int(values.counts.sum()))
    return edges_hint(values.keys, values.counts) or _shift_hint(values, space)


def _shift_hint(values: Values, space: LabelSpace) -> str:
    shift = fitting_shift(values, space)
    if shift is None:
        return ""
    return f"; {'less' if shift < 0 else 'plus'} 1, every value would fit"


def fitting_shift(values: Values, space: LabelSpace) -> int | None:
    """-1 or +1 where only values shifted by that are all in the label map, the ignored one aside."""
    if values.colored or space.colors is not None:
        return None
    found = set(values.keys.tolist()) - {space.ignore}
    known = set(index_map(space))
    if not found or found <= known:
        return None
    return next((shift for shift in (-1, 1) if {value + shift for value in found} <= known), None)
