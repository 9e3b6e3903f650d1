"""What the values of a decoded mask stand for: indices or colours → train ids.

Glossary: H W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.errors import InputError


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
        raise _outside(path, {str(v): int(found[v]) for v in strange}, f"({_ranges(mapping)})", "raw")
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
        raise _outside(path, found, allowed, "colors" if colors else "raw")
    mapped: Labels = np.repeat(targets[place], lengths).reshape(values.shape)
    return mapped


def _outside(path: Path, found: dict[str, int], allowed: str, field: str) -> InputError:
    """Names the three most frequent strangers."""
    ranked = sorted(found.items(), key=lambda item: -item[1])
    named = ", ".join(f"{value} ({count:,} pixel{'s'[: count != 1]})" for value, count in ranked[:3])
    more = f" and {len(ranked) - 3} more" if len(ranked) > 3 else ""
    return InputError(
        f"{path}: value{'s'[: len(ranked) != 1]} {named}{more} outside the label map {allowed}; correct the mask, "
        f"or add what is missing to `{field}` of the label map"
    )


def _ranges(values: Iterable[int]) -> str:
    """0, 1, 2, 3, 255 → "0-3, 255"."""
    ordered = sorted(values)
    if not ordered:
        return "empty"
    starts = [ordered[0], *(b for a, b in pairwise(ordered) if b != a + 1)]
    stops = [*(a for a, b in pairwise(ordered) if b != a + 1), ordered[-1]]
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(starts, stops, strict=True))
