"""What the counted values of masks leave open: whether they are classes at all, and whether 255 is one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.int64]
Counted = tuple[Path, Values, Values]
"""A mask with its distinct values, ascending, and the pixels of each."""

RARE: Final = 0.02
"""Share of a mask's pixels below which a value is a rare one."""
FEW: Final = 8
"""So many rare values, in no mask but blended ones, are edges; fewer may be small classes."""
HELD: Final = 0.25
"""Share of the pixels that frequent values have at least where the rest are their edges."""
APART: Final = 16
"""Distance of frequent values from which there is room for edges between them."""
OVERSHOOT: Final = 0.3
"""Share of the range of the frequent values by which sharp resampling and JPEG leave it."""


def is_blended(keys: Values, counts: Values) -> bool:
    """Whether the mask was smoothed, resampled or stored lossily: many rare values around a few frequent ones.

    Classes numbered in a row leave no room between the frequent values, and classes numbered in steps share a divisor.
    """
    frequent = counts >= RARE * counts.sum()
    held = counts[frequent].sum() / counts.sum()
    if np.count_nonzero(~frequent) < FEW or np.count_nonzero(frequent) < 2 or held < HELD:
        return False
    low, high = int(keys[frequent].min()), int(keys[frequent].max())
    slack = OVERSHOOT * (high - low)
    within = low - slack <= keys.min() and keys.max() <= high + slack
    return bool(np.diff(keys[frequent]).max() >= APART and within and np.gcd.reduce(keys) == 1)


def blended_masks(masks: Sequence[Counted]) -> tuple[list[Path], int]:
    """The masks whose edges are blended, and how many values are only ever rare ones, among many others.

    No masks where those values are so few that they may be small classes.
    """
    blended, alone, sound = [], set(), set()
    for path, keys, counts in masks:
        rare = counts < RARE * counts.sum()
        sound |= set(keys[~rare].tolist() if np.count_nonzero(rare) >= FEW else keys.tolist())
        if is_blended(keys, counts):
            blended.append(path)
            alone |= set(keys[rare].tolist())
    count = len(alone - sound)
    return (blended, count) if count >= FEW else ([], 0)


def blended_message(path: Path, keys: Values, counts: Values) -> str:
    """What is wrong with such a mask, and what to do."""
    rare = np.count_nonzero(counts < RARE * counts.sum())
    most = np.sort(keys[np.argsort(-counts, kind="stable")[: min(len(keys) - rare, 3)]])
    return (
        f"{path}: {rare} rare values beside {', '.join(map(str, most.tolist()))}, which are no classes but edges that "
        "were smoothed, resampled or compressed; export the mask without smoothing, resize it by the nearest pixel and "
        "store it as PNG"
    )


def are_gray_levels(values: Iterable[int]) -> bool:
    """Whether values up to 255 are spread over the range as shades to look at are, so that 255 may well be a class."""
    ordered = sorted(values)
    return len(ordered) > 1 and ordered[-1] == 255 and min(np.diff(ordered).tolist()) >= APART


def labels_json(
    names: Sequence[str],
    raw: Mapping[int, int] | None = None,
    colors: Mapping[tuple[int, int, int], int] | None = None,
    *,
    palette: Sequence[tuple[int, int, int]] = (),
    lines: bool = False,
) -> str:
    """The text of a labels.json, in one line or with a line for every field."""
    fields: dict[str, Any] = {"names": list(names)}
    if palette:
        fields["palette"] = [list(color) for color in palette]
    if raw is not None:
        fields["raw"] = {str(value): target for value, target in raw.items()}
    if colors is not None:
        fields["colors"] = [[list(color), target] for color, target in colors.items()]
    parts = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "{\n  " + ",\n  ".join(parts) + "\n}\n" if lines else "{" + ", ".join(parts) + "}"
