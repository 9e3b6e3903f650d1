"""What a pixel's upsampled logits say: the label map, how sure it is, and the probability of single classes.

Here is the readable version, tile by tile, for any device; on the CPU the kernels of `ops.cpu` answer, and on
CUDA those of `ops.cuda`, held to this one by tests. Glossary: K classes, H W pixels, R C rows and columns of a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, UInt
from torch import Tensor

from meanshifter.errors import InputError
from meanshifter.ops import cpu
from meanshifter.ops.backends import OPERATOR_TAGS, Ints, backend
from meanshifter.ops.upsampling import Size, Tile, axis_matrices, check_logits, tile_side, tiles, upsampling_axes

Score = Literal["probability", "margin", "entropy"]


class View(NamedTuple):
    """Patch logits and the matrices that take them to pixels: class k is ``rows @ z[k] @ cols.T``."""

    z: Float[Tensor, "K h w"]
    rows: Float[Tensor, "H h"]
    cols: Float[Tensor, "W w"]


@dataclass(frozen=True, eq=False)
class PixelScores:
    """A label map (H, W) and the float32 maps (H, W) that were asked for."""

    labels: UInt[Tensor, "H W"]
    scores: dict[Score, Float[Tensor, "H W"]]
    """Of the winner: its probability, its margin to the second, and the entropy in nats of all probabilities."""
    probabilities: dict[int, Float[Tensor, "H W"]]
    """By class."""


def upsampled_argmax(
    logits: Float[Tensor, "B K h w"], size: Size, *, padded_size: Size | None = None
) -> UInt[Tensor, "B H W"]:
    """The label map of logits (B, K, h, w) upsampled bilinearly (align_corners=False, in float32).

    Upsampled to `padded_size` (default: `size`) and cropped at the top left to `size` = (H, W); the lowest
    class wins a tie, and NaN wins over numbers, as in `torch.argmax`. Returns uint8, or uint16 above 255 classes.
    A torch operator, so that `torch.compile` keeps it in its graph.

    Raises:
        InputError: logits that are not (B, K, h, w) floats, or sizes that do not fit.
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
    """The most probable class of every pixel (H, W) over one or several views of an image.

    With one view it is the argmax of its logits; of several, the softmax probabilities are averaged first
    (as the multi-scale and flip tests of Segmenter and MMSegmentation do).
    """
    _check_views(views)
    kind = backend(*(view.z for view in views))
    if len(views) > 1 or kind == "reference":
        return pixel_scores(views).labels
    if kind == "numba":
        return cpu.label_map(views[0])
    from meanshifter.ops import cuda

    return cuda.label_map(views[0])


def pixel_scores(
    views: Sequence[View], *, scores: Sequence[Score] = (), probabilities: Sequence[int] = ()
) -> PixelScores:
    """The label map of `label_map`, with scores of the winner and the probabilities of single classes.

    Raises:
        InputError: an unknown score, or a class that the views do not have.
    """
    _check_views(views)
    K = len(views[0].z)
    for name in scores:
        if name not in get_args(Score):
            raise InputError(f"scores: {name!r}; use {', '.join(get_args(Score))}")
    for k in probabilities:
        if not 0 <= k < K:
            raise InputError(f"probabilities: class {k}; classes are 0 to {K - 1}")
    if backend(*(view.z for view in views)) != "numba":
        return _reference(views, scores, probabilities)
    out = _empty(views, scores, probabilities)
    for rows, p in cpu.probabilities(list(views)):
        asked = {str(name): out.scores[name][rows].numpy() for name in scores}
        cpu.read_out(p, out.labels[rows].numpy(), asked)
        for k in probabilities:
            out.probabilities[k][rows] = torch.from_numpy(np.ascontiguousarray(p[..., k]))
    if len(views) == 1:  # probabilities may tie where logits do not
        return PixelScores(cpu.label_map(views[0]), out.scores, out.probabilities)
    return out


def _reference(views: Sequence[View], scores: Sequence[Score], probabilities: Sequence[int]) -> PixelScores:
    out = _empty(views, scores, probabilities)
    side = tile_side(len(views[0].z), views[0].z.device)
    for several in zip(*(tiles(view.rows, view.cols, side) for view in views), strict=True):
        place = several[0].out_rows, several[0].out_cols
        if len(views) == 1:
            logits = several[0].upsample(*views[0])
            out.labels[place] = logits.max(0).indices.to(out.labels.dtype)
            p = logits.softmax(0) if scores or probabilities else logits
        else:
            p = _mean_softmax(views, several)
            out.labels[place] = p.max(0).indices.to(out.labels.dtype)
        for name in scores:
            out.scores[name][place] = _score(name, p)
        for k in probabilities:
            out.probabilities[k][place] = p[k]
    return out


def _mean_softmax(views: Sequence[View], several: Sequence[Tile]) -> Float[Tensor, "K R C"]:
    total = several[0].upsample(*views[0]).softmax(0)
    for view, tile in zip(views[1:], several[1:], strict=True):
        total += tile.upsample(*view).softmax(0)
    return total / len(views)


def _score(name: Score, p: Float[Tensor, "K R C"]) -> Float[Tensor, "R C"]:
    if name == "entropy":
        return torch.xlogy(p, p).sum(0).neg()
    best = p.topk(min(2, len(p)), dim=0).values
    return best[0] - best[1] if name == "margin" and len(p) > 1 else best[0]


def _empty(views: Sequence[View], scores: Sequence[Score], probabilities: Sequence[int]) -> PixelScores:
    K, size, device = len(views[0].z), (len(views[0].rows), len(views[0].cols)), views[0].z.device
    labels = torch.empty(size, dtype=_map_dtype(K), device=device)
    floats = [torch.empty(size, device=device) for _ in range(len(scores) + len(probabilities))]
    return PixelScores(
        labels,
        dict(zip(scores, floats, strict=False)),
        dict(zip(probabilities, floats[len(scores) :], strict=True)),
    )


def _check_views(views: Sequence[View]) -> None:
    if not views:
        raise InputError("views: 0 given; a label map needs at least one")
