"""What the values of a decoded mask stand for: indices or colours → train ids.

Glossary: H W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.ambiguity import FEW, RARE, is_blended
from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.errors import InputError

EDGES: Final = ": so many rare ones are edges that were smoothed, resampled or compressed"
"""What is added where values outside the label map look like that."""


def train_ids(picture: Image.Image, path: Path, labels: LabelSpace) -> Labels:
    """The mask (H, W) as train ids, as `read_mask` says.

    Raises:
        InputError: colours without a map, or a value outside the map.
    """
    by_color = labels.colors is not None and labels.raw is None
    if by_color and picture.mode in ("1", "L", "LA", "P", "PA"):
        picture = picture.convert("RGBA")
    if picture.mode in ("RGB", "RGBA"):
        return _map_colors(picture, path, labels)
    return _map_indices(indices(picture, path), path, labels)


def indices(picture: Image.Image, path: Path) -> npt.NDArray[Any]:
    """(H, W) of the mask's integers: uint8, uint16 or int32.

    Raises:
        InputError: a mask of colours, or of a mode that holds no integers.
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
            f"{path}: an {picture.mode} mask without a colour map; give one (`colors`: colour → train id, in "
            "labels.json or LabelSpace), or store class indices"
        )
    raise InputError(f"{path}: a mask of mode {picture.mode}; store class indices as an 8- or 16-bit PNG")


def palette_of(picture: Image.Image) -> tuple[Color, ...]:
    """The colours that a palette image gives its indices, 256 at most; none for other images."""
    if picture.mode not in ("P", "PA"):
        return ()
    flat = picture.getpalette("RGB") or []
    return tuple((flat[k], flat[k + 1], flat[k + 2]) for k in range(0, len(flat), 3))


def count_indices(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The distinct values, ascending, and the pixels of each."""
    if values.itemsize <= 2:
        found = np.bincount(values.ravel())
        keys = np.flatnonzero(found)
        return keys.astype(np.int64), found[keys]
    keys, counts = np.unique(values, return_counts=True)
    return keys.astype(np.int64), counts


def _map_indices(values: npt.NDArray[Any], path: Path, labels: LabelSpace) -> Labels:
    mapping = labels.raw
    if mapping is None:
        mapping = {**{k: k for k in range(labels.num_classes)}, labels.ignore: labels.ignore}
    if values.dtype.itemsize > 2:
        return _map_sparse(values, mapping.items(), path, labels)
    top = np.iinfo(values.dtype).max
    keys = [key for key in mapping if 0 <= key <= top]
    table = np.zeros(top + 1, labels.dtype)
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


def _map_colors(picture: Image.Image, path: Path, labels: LabelSpace) -> Labels:
    if not labels.colors:
        indices(picture, path)
        raise AssertionError("colours without a map are refused above")
    # four bytes a pixel, red lowest; the fourth is alpha or filling
    pixels = np.asarray(picture if picture.mode == "RGBA" else picture.convert("RGBX"))
    packed = np.ascontiguousarray(pixels).view("<u4")[..., 0] & np.uint32(0xFFFFFF)
    return _map_sparse(
        packed,
        [(red | green << 8 | blue << 16, target) for (red, green, blue), target in labels.colors.items()],
        path,
        labels,
        colors=True,
    )


def _map_sparse(
    values: npt.NDArray[Any],
    pairs: Iterable[tuple[int, int]],
    path: Path,
    labels: LabelSpace,
    *,
    colors: bool = False,
) -> Labels:
    """Values of any range by binary search among the keys, once per run of equal values in reading order."""
    pairs = sorted(pairs)
    keys = np.array([key for key, _ in pairs], np.int64)
    targets = np.array([target for _, target in pairs], labels.dtype)
    flat = values.ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size)
    runs = flat[starts].astype(np.int64)
    place = np.searchsorted(keys, runs).clip(max=len(keys) - 1)
    strange = keys[place] != runs
    if strange.any():
        found: Counter[str] = Counter()
        for value, length in zip(runs[strange].tolist(), lengths[strange].tolist(), strict=True):
            found[str((value & 255, value >> 8 & 255, value >> 16)) if colors else str(value)] += length
        allowed = f"of {len(keys)} colours" if colors else f"({_ranges(keys.tolist())})"
        hint = color_edges_hint(found, flat.size) if colors else edges_hint(*count_indices(values))
        raise _outside(path, found, allowed, "colors" if colors else "raw", hint)
    mapped: Labels = np.repeat(targets[place], lengths).reshape(values.shape)
    return mapped


def edges_hint(keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> str:
    """What a message about values outside the label map adds where they are blended edges."""
    return EDGES if is_blended(keys, counts) else ""


def color_edges_hint(strange: Mapping[str, int], pixels: int) -> str:
    """Likewise for colours outside the map, of a mask of so many pixels."""
    return EDGES if len(strange) >= FEW and max(strange.values()) < RARE * pixels else ""


def _outside(path: Path, found: dict[str, int], allowed: str, field: str, hint: str) -> InputError:
    """Names the three most frequent strangers."""
    ranked = sorted(found.items(), key=lambda item: -item[1])
    named = ", ".join(f"{value} ({count:,} pixel{'s'[: count != 1]})" for value, count in ranked[:3])
    more = f" and {len(ranked) - 3} more" if len(ranked) > 3 else ""
    return InputError(
        f"{path}: value{'s'[: len(ranked) != 1]} {named}{more} outside the label map {allowed}{hint}; correct the "
        f"mask, or add what is missing to `{field}` of the label map"
    )


def _ranges(values: Iterable[int]) -> str:
    """0, 1, 2, 3, 255 → "0-3, 255"."""
    ordered = sorted(values)
    if not ordered:
        return "empty"
    starts = [ordered[0], *(b for a, b in pairwise(ordered) if b != a + 1)]
    stops = [*(a for a, b in pairwise(ordered) if b != a + 1), ordered[-1]]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))
