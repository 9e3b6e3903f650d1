"""The values of a decoded mask: read them, count them, map them to train ids, and recognize blended edges.

Glossary: H W pixels, n distinct values, K classes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.errors import InputError, counted

Values = npt.NDArray[np.int64]
Counted = tuple[Path, Values, Values]
"""A mask, its distinct values in ascending order, and the number of pixels of each."""
EDGES: Final = ": so many rare values are edges that were smoothed, resampled or compressed"
"""Added to messages about values outside the label map if they look like blended edges."""
RARE: Final = 0.02
"""A value is rare if it has less than this share of a mask's pixels."""
FEW: Final = 8
"""At least so many rare values, which occur in blended masks only, are edges; fewer may be small classes."""
HELD: Final = 0.25
"""Frequent values have at least this share of the pixels if the others are their edges."""
APART: Final = 16
"""Frequent values at least this far apart leave room for edges between them."""
OVERSHOOT: Final = 0.3
"""Sharp resampling and JPEG exceed the range of the frequent values by up to this share of it."""


def train_ids(picture: Image.Image, path: Path, label_space: LabelSpace) -> Labels:
    """Map a decoded mask to train ids (H, W); raises as `read_mask`."""
    by_color = label_space.colors is not None and label_space.raw is None
    if by_color and picture.mode in ("1", "L", "LA", "P", "PA"):
        picture = picture.convert("RGBA")
    if picture.mode in ("RGB", "RGBA") and label_space.colors:
        mapping = {pack(color): target for color, target in label_space.colors.items()}
        return _map_sparse(packed_colors(picture), mapping, path, label_space, colors=True)
    return _map_indices(indices(picture, path), path, label_space)


def indices(picture: Image.Image, path: str | Path) -> npt.NDArray[Any]:
    """The integers (H, W) of a mask: uint8, uint16 or int32.

    Raises:
        InputError: a mask of colors, or a mode that holds no integers.
    """
    if picture.mode in ("LA", "PA"):
        return np.asarray(picture)[..., 0]
    if picture.mode in ("L", "P"):
        return np.asarray(picture)
    if picture.mode == "1":
        return np.asarray(picture).astype(np.uint8)
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    if picture.mode in ("RGB", "RGBA"):
        raise InputError(
            f"{path}: an {picture.mode} mask without a color map; give one (`colors`: color → train id, in "
            "labels.json or LabelSpace), or store class indices"
        )
    raise InputError(f"{path}: a mask of mode {picture.mode}; store class indices as an 8- or 16-bit PNG")


def index_map(label_space: LabelSpace) -> dict[int, int]:
    """Value of an index mask → train id."""
    if label_space.raw is not None:
        return dict(label_space.raw)
    return {**{k: k for k in range(label_space.num_classes)}, label_space.ignore: label_space.ignore}


def packed_colors(picture: Image.Image) -> npt.NDArray[np.uint32]:
    """The colors (H, W) of an RGB or RGBA picture as integers; see `pack`."""
    # four bytes per pixel, red lowest; the fourth is alpha or padding
    pixels = np.asarray(picture if picture.mode == "RGBA" else picture.convert("RGBX"))
    packed: npt.NDArray[np.uint32] = np.ascontiguousarray(pixels).view("<u4")[..., 0] & np.uint32(0xFFFFFF)
    return packed


def pack(color: Color) -> int:
    """A color as one integer: red + 256 green + 65536 blue."""
    return color[0] | color[1] << 8 | color[2] << 16


def unpack(key: int) -> Color:
    """The color of an integer that `pack` returned."""
    return key & 255, key >> 8 & 255, key >> 16


def palette_of(picture: Image.Image) -> tuple[Color, ...]:
    """The colors of a palette image by index, at most 256; empty for other images."""
    if picture.mode not in ("P", "PA"):
        return ()
    flat = picture.getpalette("RGB") or []
    return tuple((flat[k], flat[k + 1], flat[k + 2]) for k in range(0, len(flat), 3))


def count_indices(values: npt.NDArray[Any]) -> tuple[Values, Values]:
    """The distinct values of a mask in ascending order (n,), and the number of pixels of each (n,)."""
    if values.itemsize <= 2:
        found = np.bincount(values.ravel())
        keys = np.flatnonzero(found)
        return keys.astype(np.int64), found[keys]
    runs, lengths = _runs(values)
    keys, place = np.unique(runs, return_inverse=True)
    return keys, np.bincount(place.ravel(), lengths, len(keys)).astype(np.int64)


def _runs(values: npt.NDArray[Any]) -> tuple[Values, Values]:
    """Values and lengths of the runs of equal values in reading order; masks have few edges, so these are few."""
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    return flat[starts].astype(np.int64), np.diff(starts, append=flat.size)


def _map_indices(values: npt.NDArray[Any], path: Path, label_space: LabelSpace) -> Labels:
    mapping = index_map(label_space)
    if values.dtype.itemsize > 2:
        return _map_sparse(values, mapping, path, label_space)
    top = np.iinfo(values.dtype).max
    keys = [key for key in mapping if 0 <= key <= top]
    table = np.zeros(top + 1, label_space.dtype)
    table[keys] = [mapping[key] for key in keys]
    known = np.zeros(top + 1, np.bool_)
    known[keys] = True
    found = np.bincount(values.ravel(), minlength=top + 1)
    strange = np.flatnonzero((found > 0) & ~known)
    if strange.size:
        hint = edges_hint(np.flatnonzero(found), found[found > 0])
        raise _outside(path, {str(v): int(found[v]) for v in strange}, f"({_ranges(mapping)})", "raw", hint)
    mapped: Labels = table.take(values)
    return mapped


def _map_sparse(
    values: npt.NDArray[Any], mapping: Mapping[int, int], path: Path, label_space: LabelSpace, *, colors: bool = False
) -> Labels:
    """Map values of any range by a binary search among the keys, once per run of equal values."""
    keys = np.array(sorted(mapping), np.int64)
    targets = np.array([mapping[key] for key in sorted(mapping)], label_space.dtype)
    runs, lengths = _runs(values)
    place = np.searchsorted(keys, runs).clip(max=len(keys) - 1)
    strange = keys[place] != runs
    if strange.any():
        found: Counter[str] = Counter()
        for value, length in zip(runs[strange].tolist(), lengths[strange].tolist(), strict=True):
            found[str(unpack(value) if colors else value)] += length
        allowed = f"of {len(keys)} colors" if colors else f"({_ranges(keys.tolist())})"
        hint = color_edges_hint(found, values.size) if colors else edges_hint(*count_indices(values))
        raise _outside(path, found, allowed, "colors" if colors else "raw", hint)
    mapped: Labels = np.repeat(targets[place], lengths).reshape(values.shape)
    return mapped


def edges_hint(keys: Values, counts: Values) -> str:
    """What a message about values outside the label map adds if they are blended edges."""
    return EDGES if is_blended(keys, counts) else ""


def color_edges_hint(strange: Mapping[str, int], pixels: int) -> str:
    """What a message about colors outside the label map adds if they are blended edges; `pixels` is the mask's size."""
    return EDGES if len(strange) >= FEW and max(strange.values()) < RARE * pixels else ""


def _outside(path: Path, found: Mapping[str, int], allowed: str, field: str, hint: str) -> InputError:
    return InputError(
        f"{path}: {describe_counts(found)} outside the label map {allowed}{hint}; correct the mask, or add what is "
        f"missing to `{field}` of the label map"
    )


def describe_counts(found: Mapping[str, int]) -> str:
    """The three most frequent of some values or colors, with their pixels, in words."""
    ranked = sorted(found.items(), key=lambda item: -item[1])
    named = ", ".join(f"{value} ({counted(count, 'pixel')})" for value, count in ranked[:3])
    return f"value{'s'[: len(ranked) != 1]} {named}{f' and {len(ranked) - 3} more' if len(ranked) > 3 else ''}"


def _ranges(values: Iterable[int]) -> str:
    """0, 1, 2, 3, 255 → "0-3, 255"."""
    ordered = sorted(values)
    if not ordered:
        return "empty"
    gaps = [(a, b) for a, b in pairwise(ordered) if b != a + 1]
    starts, stops = [ordered[0], *(b for _, b in gaps)], [*(a for a, _ in gaps), ordered[-1]]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))


def is_blended(keys: Values, counts: Values) -> bool:
    """Whether a mask was smoothed, resampled or stored lossily: many rare values around a few frequent ones.

    Consecutive class numbers leave no room between the frequent values, and class numbers in steps share a divisor.
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
    """The masks with blended edges, and the number of values that only occur as such edges.

    There are none if these values are so few that they may be small classes.
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
    """A line about a mask with blended edges: what is wrong and what to do."""
    rare = np.count_nonzero(counts < RARE * counts.sum())
    most = np.sort(keys[np.argsort(-counts, kind="stable")[: min(len(keys) - rare, 3)]])
    return (
        f"{path}: {rare} rare values in addition to {', '.join(map(str, most.tolist()))}, which are not classes but "
        "edges that were smoothed, resampled or compressed; export the mask without smoothing, resize it with "
        "nearest-neighbor interpolation and store it as PNG"
    )


def are_gray_levels(values: Iterable[int]) -> bool:
    """Whether values up to 255 are spread over the range like gray levels for display, so that 255 may be a class."""
    ordered = sorted(values)
    return len(ordered) > 1 and ordered[-1] == 255 and min(np.diff(ordered).tolist()) >= APART


def labels_json(
    names: Sequence[str],
    raw: Mapping[int, int] | None = None,
    colors: Mapping[Color, int] | None = None,
    *,
    palette: Sequence[Color] = (),
    lines: bool = False,
) -> str:
    """The text of a labels.json, in one line or with one line per field."""
    fields: dict[str, Any] = {"names": list(names)}
    if palette:
        fields["palette"] = [list(color) for color in palette]
    if raw is not None:
        fields["raw"] = {str(value): target for value, target in raw.items()}
    if colors is not None:
        fields["colors"] = [[list(color), target] for color, target in colors.items()]
    parts = [f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "{\n  " + ",\n  ".join(parts) + "\n}\n" if lines else "{" + ", ".join(parts) + "}"


def class_weights(counts: npt.NDArray[np.float64], power: float | Literal["log"]) -> npt.NDArray[np.float64]:
    """Loss weights (K,) from pixel counts (K,): (1 / share of the pixels) ** power, scaled to a mean over pixels of 1.

    "log": 1 / ln(1.02 + share of the pixels), as ENet (Paszke et al. 2016, section 5.2), scaled in the same way. A
    class that never occurs gets the weight of the rarest class that does.
    """
    present = counts[counts > 0]
    share = np.maximum(counts, present.min(initial=counts.max(initial=1.0))) / max(counts.sum(), 1.0)
    weights: npt.NDArray[np.float64] = 1 / np.log(1.02 + share) if power == "log" else share**-power
    weights /= max((weights * counts).sum() / max(counts.sum(), 1.0), 1e-12)
    return weights
