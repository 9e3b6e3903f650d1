"""The label map of upsampled logits, tile by tile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt
from torch import Tensor

from meanshifter.errors import InputError
from meanshifter.ops.upsampling import Size, Tile, axis_matrices, check_logits, tiles


class View(NamedTuple):
    """Patch logits and the matrices that take them to pixels: class k is ``rows @ z[k] @ cols.T``."""

    z: Float[Tensor, "K h w"]
    rows: Float[Tensor, "H h"]
    cols: Float[Tensor, "W w"]


def upsampled_argmax(
    logits: Float[Tensor, "B K h w"], size: Size, *, padded_size: Size | None = None
) -> UInt[Tensor, "B H W"]:
    """The label map of logits (B, K, h, w) upsampled bilinearly (align_corners=False, in float32).

    Upsampled to `padded_size` (default: `size`) and cropped at the top left to `size` = (H, W); the lowest
    class wins a tie. Returns uint8, or uint16 above 255 classes. Holds one tile of K × 256 × 256 at a time.

    Raises:
        InputError: logits that are not (B, K, h, w) floats, or sizes that do not fit.
    """
    check_logits(logits)
    rows, cols = axis_matrices(logits.float(), size, padded_size)
    maps = [label_map([View(z, rows, cols)]) for z in logits.float()]
    return torch.stack(maps) if maps else torch.empty((0, *size), dtype=torch.uint8, device=logits.device)


def label_map(views: Sequence[View]) -> UInt[Tensor, "H W"]:
    """The most probable class of every pixel (H, W) over one or several views of an image.

    With one view it is the argmax of its logits; of several, the softmax probabilities are averaged first
    (as the multi-scale and flip tests of Segmenter and MMSegmentation do).
    """
    if not views:
        raise InputError("views: 0 given; a label map needs at least one")
    classes = len(views[0].z)
    out = torch.empty(
        (len(views[0].rows), len(views[0].cols)),
        dtype=torch.uint8 if classes <= 255 else torch.uint16,
        device=views[0].z.device,
    )
    for several in zip(*(tiles(view.rows, view.cols) for view in views), strict=True):
        scores = _scores(views, several)
        out[several[0].out_rows, several[0].out_cols] = scores.max(0).indices.to(out.dtype)
    return out


def _scores(views: Sequence[View], several: Sequence[Tile]) -> Float[Tensor, "K R C"]:
    if len(views) == 1:
        return several[0].upsample(*views[0])
    total = several[0].upsample(*views[0]).softmax(0)
    for view, tile in zip(views[1:], several[1:], strict=True):
        total += tile.upsample(*view).softmax(0)
    return total
