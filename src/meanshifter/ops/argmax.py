"""Label maps, confidence maps and class probabilities of upsampled logits.

This is the reference implementation, tile by tile, for any device. On the CPU the kernels of `ops.cpu` replace it, and
on CUDA those of `ops.cuda`; tests compare them. Glossary: K classes, H W pixels, R C rows and columns of a tile.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float, UInt
from torch import Tensor

from meanshifter.errors import InputError
from meanshifter.ops import cpu, pruned
from meanshifter.ops.upsampling import (
    NEVER,
    Size,
    Tile,
    View,
    axis_matrices,
    check_logits,
    tile_side,
    tiles,
    upsampling_axes,
)
from meanshifter.utils.environment import has_numba

Backend = Literal["reference", "pruned", "numba", "triton"]
Ints = Sequence[int | torch.SymInt]
_NOT_CAPTURED = getattr(torch.Tag, "cudagraph_unsafe", None)
OPERATOR_TAGS: dict[str, Any] = (
    {"tags": (_NOT_CAPTURED,)}
    if _NOT_CAPTURED and "tags" in inspect.signature(torch.library.custom_op).parameters
    else {}
)
"""Exclude our operators from CUDA graphs if torch supports it: tables cached by `ops.cuda` would lie in their pool."""
Confidence = Literal["probability", "margin", "entropy"]
_UNCOMPILED: ContextVar[bool] = ContextVar("uncompiled", default=False)


@dataclass(frozen=True, eq=False)
class PixelConfidence:
    """A label map (H, W) and the requested float32 maps (H, W)."""

    labels: UInt[Tensor, "H W"]
    confidence: dict[Confidence, Float[Tensor, "H W"]]
    """The winner's probability, its margin to the second class, and the entropy of all probabilities in nats."""
    probabilities: dict[int, Float[Tensor, "H W"]]
    """By class."""
    label_probability: Float[Tensor, "H W"] | None = None
    """Probability of the class of each pixel's label, NaN for labels that are no class; None without labels."""


def upsampled_argmax(
    logits: Float[Tensor, "B K h w"], size: Size, *, padded_size: Size | None = None
) -> UInt[Tensor, "B H W"]:
    """Return the argmax of bilinearly upsampled logits (align_corners=False, in float32).

    They are upsampled to `padded_size` (default: `size`) and cropped at the top left to `size` = (H, W). The lowest
    class wins a tie, and NaN wins over numbers, as in `torch.argmax`. The result is uint8, or uint16 above 255 classes.
    This is a torch operator, so that `torch.compile` keeps it in its graph.

    Raises:
        InputError: logits that are not (B, K, h, w) floats, or incompatible sizes.
    """
    check_logits(logits)
    padded = size if padded_size is None else padded_size
    upsampling_axes(logits, size, padded)
    labels: Tensor = _upsampled_argmax(logits.detach(), list(size), list(padded))
    return labels


@torch.library.custom_op(
    "meanshifter::upsampled_argmax",
    mutates_args=(),
    schema="(Tensor logits, SymInt[] size, SymInt[] padded_size) -> Tensor",
    **OPERATOR_TAGS,
)
def _upsampled_argmax(logits: Tensor, size: list[int], padded_size: list[int]) -> Tensor:
    wide = logits.float()
    axes = upsampling_axes(logits, size, padded_size)
    if backend(wide) == "triton":
        from meanshifter.ops import cuda

        return cuda.upsampled_argmax(wide, axes)
    rows, cols = axis_matrices(axes, wide)
    maps = [label_map([View(z, rows, cols)]) for z in wide]
    return torch.stack(maps) if maps else _fake_argmax(logits, size, padded_size)


@_upsampled_argmax.register_fake
def _fake_argmax(logits: Tensor, size: Ints, padded_size: Ints) -> Tensor:
    return logits.new_empty((logits.shape[0], *size), dtype=_map_dtype(logits.shape[1]))


def _map_dtype(K: int) -> torch.dtype:
    return torch.uint8 if K <= 255 else torch.uint16


def label_map(views: Sequence[View]) -> UInt[Tensor, "H W"]:
    """Return the most probable class of every pixel (H, W) over one or more views of an image.

    For one view this is the argmax of its logits; for several, softmax probabilities are averaged first (as in the
    multi-scale and flip tests of Segmenter and MMSegmentation).
    """
    _check_views(views)
    kind = backend(*(view.z for view in views))
    if len(views) > 1 or kind == "reference":
        return pixel_confidence(views).labels
    if kind == "pruned":
        return pruned.label_map(views[0])
    if kind == "numba":
        return cpu.label_map(views[0])
    from meanshifter.ops import cuda

    return cuda.label_map(views[0])


def pixel_confidence(
    views: Sequence[View],
    *,
    confidence: Sequence[Confidence] = (),
    probabilities: Sequence[int] = (),
    labels: npt.NDArray[Any] | None = None,
) -> PixelConfidence:
    """Return the label map of `label_map` along with confidence maps and the probabilities of given classes.

    Args:
        views: one or more views of an image, each with its temperature.
        confidence: names of maps.
        probabilities: classes whose probabilities are returned.
        labels: labels (H, W) whose probabilities are returned; values that are no class have none.

    Raises:
        InputError: an unknown confidence, or a class that the views do not have.
    """
    _check_views(views)
    K = len(views[0].z)
    for name in confidence:
        if name not in get_args(Confidence):
            raise InputError(f"confidence: {name!r}; use one of {', '.join(get_args(Confidence))}")
    for k in probabilities:
        if not 0 <= k < K:
            raise InputError(f"probabilities: class {k}, but classes are 0 to {K - 1}")
    if backend(*(view.z for view in views)) != "numba":
        return _reference(views, confidence, probabilities, labels)
    out = _empty(views, confidence, probabilities, labels)
    for rows, p in cpu.probabilities(list(views)):
        cpu.read_out(
            p, out.labels[rows].numpy(), {str(name): out.confidence[name][rows].numpy() for name in confidence}
        )
        for k in probabilities:
            out.probabilities[k][rows] = torch.from_numpy(np.ascontiguousarray(p[..., k]))
        if labels is not None and out.label_probability is not None:
            out.label_probability[rows] = _chosen(torch.from_numpy(p), labels[rows], -1)
    if len(views) == 1:  # probabilities may be tied where logits are not
        return replace(out, labels=cpu.label_map(views[0]))
    return out


def _chosen(p: Tensor, labels: npt.NDArray[Any], dim: int) -> Tensor:
    """Probability of each pixel's label, NaN where it is no class; the classes of `p` are along `dim`."""
    K = p.shape[dim]
    places = torch.from_numpy(labels.astype(np.int64)).to(p.device)
    found = p.gather(dim, places.clamp(max=K - 1).unsqueeze(dim)).squeeze(dim)
    return found.masked_fill(places >= K, math.nan)


def _reference(
    views: Sequence[View],
    confidence: Sequence[Confidence],
    probabilities: Sequence[int],
    labels: npt.NDArray[Any] | None = None,
) -> PixelConfidence:
    out = _empty(views, confidence, probabilities, labels)
    is_needed = bool(confidence or probabilities or labels is not None)
    side = tile_side(len(views[0].z), views[0].z.device)
    for several in zip(*(tiles(view.rows, view.cols, side) for view in views), strict=True):
        place = several[0].out_rows, several[0].out_cols
        if len(views) == 1:
            logits = several[0].upsample(views[0].z, views[0].rows, views[0].cols)
            out.labels[place] = logits.max(0).indices.to(out.labels.dtype)
            p = views[0].scaled(logits).softmax(0) if is_needed else logits
        else:
            p = _mean_softmax(views, several)
            out.labels[place] = p.max(0).indices.to(out.labels.dtype)
        for name in confidence:
            out.confidence[name][place] = _score(name, p)
        for k in probabilities:
            out.probabilities[k][place] = p[k]
        if labels is not None and out.label_probability is not None:
            out.label_probability[place] = _chosen(p, labels[place], 0)
    return out


def _mean_softmax(views: Sequence[View], several: Sequence[Tile]) -> Float[Tensor, "K R C"]:
    parts = (
        view.scaled(tile.upsample(view.z, view.rows, view.cols)).softmax(0)
        for view, tile in zip(views, several, strict=True)
    )
    total = next(parts)
    for part in parts:
        total += part
    return total / len(views)


def _score(name: Confidence, p: Float[Tensor, "K R C"]) -> Float[Tensor, "R C"]:
    if name == "entropy":
        return torch.xlogy(p, p).sum(0).neg()
    best = p.topk(min(2, len(p)), dim=0).values
    return best[0] - best[1] if name == "margin" and len(p) > 1 else best[0]


def _empty(
    views: Sequence[View],
    confidence: Sequence[Confidence],
    probabilities: Sequence[int],
    true: npt.NDArray[Any] | None,
) -> PixelConfidence:
    K, size, device = len(views[0].z), (len(views[0].rows), len(views[0].cols)), views[0].z.device
    labels = torch.empty(size, dtype=_map_dtype(K), device=device)
    floats = [torch.empty(size, device=device) for _ in range(len(confidence) + len(probabilities))]
    return PixelConfidence(
        labels,
        dict(zip(confidence, floats, strict=False)),
        dict(zip(probabilities, floats[len(confidence) :], strict=True)),
        None if true is None else torch.empty(size, device=device),
    )


def _check_views(views: Sequence[View]) -> None:
    if not views:
        raise InputError("views: 0 given; a label map needs at least one")


def backend(*z: Tensor) -> Backend:
    """Choose kernels for float32 logits on the CPU and on CUDA if numba or triton is installed, else the reference.

    The CPU kernels are compiled for finite numbers and pad with classes that must lose, so logits with NaN, infinity
    or numbers of that size use the reference. On the CPU without numba, or within `uncompiled`, label maps of one view
    are computed by "pruned"; everything else is computed as by the reference.
    """
    if all(one.dtype == torch.float32 and one.numel() for one in z):
        if z[0].device.type == "cpu" and all(map(_moderate, z)):
            return "numba" if not _UNCOMPILED.get() and has_numba() else "pruned"
        if z[0].device.type == "cuda" and has_triton():
            return "triton"
    return "reference"


@contextmanager
def uncompiled() -> Iterator[None]:
    """Compute label maps without numba, as for a single photo, where loading it takes longer than what it saves."""
    token = _UNCOMPILED.set(True)
    try:
        yield
    finally:
        _UNCOMPILED.reset(token)


def _moderate(z: Tensor) -> bool:
    values = z.detach().numpy()  # an operation of torch would leave OpenMP's threads spinning beside the kernels
    low, high = values.min(), values.max()
    return float(low) > NEVER / 10 and float(high) < -NEVER / 10


@cache
def has_triton() -> bool:
    """Return whether triton is installed."""
    return find_spec("triton") is not None
