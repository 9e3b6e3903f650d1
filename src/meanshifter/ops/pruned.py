"""Label maps in torch alone, by the candidates of each cell, where loading the compiled kernels does not pay.

Pixels between the same patches form a cell. Within it, a logit is a convex combination of the patch logits at the
corners, so class k can win only if its largest corner reaches the maximum over classes of the smallest corner. The
bound is exact, and trained models leave one or two classes for most cells. `ops.cpu_argmax_kernels` has the same
algorithm compiled: once loaded it is ten times faster, but numba needs most of a second of CPU time to start.

Glossary: K classes, h w patch grid, H W pixels, R C cells along the axes, T inputs (taps) of a pixel along an axis, n
cells at a time, c candidates of a cell, P Q rows and columns of pixels in the largest cell.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float, Int, UInt
from torch import Tensor

from meanshifter.ops.upsampling import Taps, View, axis_taps

_AT_ONCE = 1 << 20
"""Logits in memory at a time: 4 MB."""


def label_map(view: View) -> UInt[Tensor, "H W"]:
    """Compute the label map of one view, whose logits are finite; the lowest class wins a tie."""
    K, H, W = len(view.z), len(view.rows), len(view.cols)
    down, across = axis_taps(view.rows), axis_taps(view.cols)
    rows, cols = _Cells(down), _Cells(across)
    out = torch.empty((H, W), dtype=torch.uint8 if K <= 255 else torch.uint16)
    z = view.z.detach()
    deep = max(_AT_ONCE // (K * len(cols.inputs) * rows.taps * cols.taps), 1)
    for start in range(0, len(rows.inputs), deep):
        band = slice(start, start + deep)
        corners = z[:, rows.inputs[band]][..., cols.inputs]  # (K, r, T, C, T)
        high, low = corners.amax((2, 4)), corners.amin((2, 4))
        possible = high >= low.amax(0)
        winners = possible.byte().argmax(0)
        top, bottom = down.starts[start], down.starts[min(start + deep, len(rows.inputs))]
        flat = winners.repeat_interleave(rows.sizes[band], 0).repeat_interleave(cols.sizes, 1)
        out[top:bottom] = flat.to(out.dtype)
        for r, c, candidates in _contested(possible, rows.span * cols.span):
            _contest(corners, r, c, candidates, rows, cols, start, out)
    return out


class _Cells:
    """The runs of one axis as tensors: inputs (R, T), sizes and starts (R), and weights (R, P, T), padded with 0."""

    def __init__(self, taps: Taps) -> None:
        first, stop = taps.starts[:-1], taps.starts[1:]
        self.inputs = torch.from_numpy(taps.inputs[first].astype(np.int64))
        self.starts, self.sizes = torch.from_numpy(first.astype(np.int64)), torch.from_numpy((stop - first).astype(int))
        self.taps, self.span = self.inputs.shape[1], int((stop - first).max())
        place = first[:, None] + np.arange(self.span)
        inside = place < stop[:, None]
        weight = taps.weight[:, np.minimum(place, stop[:, None] - 1)] * inside
        self.weight = torch.from_numpy(np.ascontiguousarray(weight.transpose(1, 2, 0)))
        self.inside = torch.from_numpy(inside)


def _contested(
    possible: Tensor, pixels: int
) -> Iterator[tuple[Int[Tensor, " n"], Int[Tensor, " n"], Int[Tensor, "n c"]]]:
    """Yield rows and columns of cells that several classes can win, and their candidates in ascending order.

    Cells of a group have as many candidates as the one with most of them; the classes that fill up others lose anyway.
    """
    K = len(possible)
    count = possible.sum(0)
    low, high = 1, 2
    while low < K:
        r, c = ((count > low) & (count <= high)).nonzero(as_tuple=True)
        size = max(_AT_ONCE // (min(high, K) * pixels), 1)
        for begin in range(0, len(r), size):
            some_r, some_c = r[begin : begin + size], c[begin : begin + size]
            order = possible[:, some_r, some_c].mT.byte().argsort(dim=1, descending=True, stable=True)
            yield some_r, some_c, order[:, :high]
        low, high = high, 2 * high


def _contest(
    corners: Float[Tensor, "K r T C U"],
    r: Tensor,
    c: Tensor,
    candidates: Tensor,
    rows: _Cells,
    cols: _Cells,
    start: int,
    out: Tensor,
) -> None:
    """Evaluate all pixels of n cells for their candidates, and write the winners to `out`."""
    values = corners[candidates, r[:, None], :, c[:, None]]  # (n, c, T, T)
    across = values @ cols.weight[c].mT[:, None]  # (n, c, T, Q)
    down = rows.weight[start + r]
    logits = across[:, :, 0, None] * down[:, None, :, 0, None]
    for tap in range(1, rows.taps):
        logits.addcmul_(across[:, :, tap, None], down[:, None, :, tap, None])
    best = logits.argmax(1).flatten(1)
    labels = candidates.gather(1, best)
    y = (rows.starts[start + r][:, None] + torch.arange(rows.span))[:, :, None]
    x = (cols.starts[c][:, None] + torch.arange(cols.span))[:, None]
    inside = (rows.inside[start + r][:, :, None] & cols.inside[c][:, None]).flatten()
    place = (y * out.shape[1] + x).flatten()[inside]
    flat = labels.flatten()[inside].to(out.dtype)
    if out.dtype == torch.uint16:  # which torch cannot index
        out, flat = out.view(torch.int16), flat.view(torch.int16)
    out.view(-1)[place] = flat
