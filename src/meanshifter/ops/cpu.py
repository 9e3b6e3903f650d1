"""The CPU kernels behind tensors: layout and threads.

Glossary: K classes, h w patch grid, H W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meanshifter.ops.backends import NEVER
from meanshifter.ops.taps import Taps, axis_taps
from meanshifter.ops.threads import in_parallel, spans
from meanshifter.ops.upsampling import Axes, bilinear_matrix

if TYPE_CHECKING:
    from meanshifter.ops.label_map import View

Floats = npt.NDArray[np.float32]
_BAND = 1 << 18
"""Probabilities in one band: a megabyte."""
SCORES = ("probability", "margin", "entropy")
"""In the order in which the kernel takes them."""
_EMPTY = np.empty(0, dtype=np.float32)


def label_map(view: View) -> Tensor:
    """The label map (H, W) of one view."""
    from meanshifter.ops.argmax_cpu import argmax_rows, scratch

    z = view.z.detach().permute(1, 2, 0).contiguous().numpy()
    rows, cols = axis_taps(view.rows), axis_taps(view.cols)
    out = np.empty((len(view.rows), len(view.cols)), dtype=np.uint8 if z.shape[2] <= 255 else np.uint16)

    def fill(begin: int, end: int) -> None:
        argmax_rows(z, *rows, *cols, begin, end, *scratch(z.shape[2], rows.inputs.shape[1] * cols.inputs.shape[1]), out)

    in_parallel(fill, spans(len(rows.starts) - 1, 4 * torch.get_num_threads()))
    return torch.from_numpy(out)


def probabilities(views: list[View]) -> Iterator[tuple[slice, Floats]]:
    """Bands of rows, each with its probabilities (rows, W, K) averaged over views; an array is reused for the next."""
    from meanshifter.ops.softmax_cpu import add_softmax

    K, H, W = len(views[0].z), len(views[0].rows), len(views[0].cols)
    sources = [(_classes_last(view.z), axis_taps(view.rows), axis_taps(view.cols)) for view in views]
    depth = max(_BAND // (K * W), 1) * torch.get_num_threads()
    band = np.empty((min(depth, H), W, K), dtype=np.float32)
    share = np.float32(1 / len(views))
    for start in range(0, H, depth):
        part = band[: min(depth, H - start)]

        def fill(begin: int, end: int, start: int = start, part: Floats = part) -> None:
            part[begin:end] = 0
            for z, rows, cols in sources:
                taps = (rows.inputs, rows.weight, cols.inputs, cols.weight)
                add_softmax(z, *taps, start + begin, share, part[begin:end])

        in_parallel(fill, spans(len(part), torch.get_num_threads()))
        yield slice(start, start + len(part)), part


def read_out(p: Floats, labels: npt.NDArray[Any], scores: dict[str, Floats]) -> None:
    """Fill `labels` (rows, W) and the `scores` asked for from probabilities p (rows, W, K)."""
    from meanshifter.ops import softmax_cpu

    def fill(begin: int, end: int) -> None:
        wanted = [scores[name][begin:end].reshape(-1) if name in scores else _EMPTY for name in SCORES]
        softmax_cpu.read_out(p[begin:end].reshape(-1, p.shape[2]), labels[begin:end].reshape(-1), *wanted)

    in_parallel(fill, spans(len(p), torch.get_num_threads()))


def cross_entropy(
    logits: Tensor,
    labels: Tensor,
    axes: Axes,
    weight: Tensor,
    *,
    ignore_index: int,
    smoothing: float,
    with_gradient: bool = True,
) -> tuple[Tensor, Tensor]:
    """The summed loss of logits (B, K, h, w), and its gradient, or an empty tensor in its place."""
    from meanshifter.ops.softmax_cpu import LANES, cross_entropy_rows

    B, K = logits.shape[:2]
    ignored, wide = -1, labels.long()  # as 32 bits do not hold every `ignore_index`
    targets = wide.masked_fill(wide == ignore_index, ignored).to(torch.int32).contiguous().numpy()
    down, across = (bilinear_taps(*axis) for axis in axes)
    taps = (down.inputs, down.weight, across.inputs, across.weight)
    factors = np.zeros(-(-K // LANES) * LANES, dtype=np.float32)
    factors[:K] = weight.numpy()
    z = [_classes_last(image) for image in logits.detach()]
    parts = spans(labels.shape[1], max(8 // B, 1))  # whatever the number of threads, so that results repeat
    gradients = [[np.zeros_like(image if with_gradient else image[:0]) for _ in parts] for image in z]

    def fill(b: int, part: int) -> float:
        constants = (ignored, factors, smoothing, K)
        loss = cross_entropy_rows(z[b], *taps, targets[b], *constants, *parts[part], gradients[b][part])
        return float(loss)

    total = sum(in_parallel(fill, [(b, part) for b in range(B) for part in range(len(parts))]))
    if not with_gradient:
        return torch.tensor(total, dtype=torch.float32), logits.new_empty(0)
    gradient = np.stack([sum(several[1:], several[0])[..., :K] for several in gradients])
    return torch.tensor(total, dtype=torch.float32), torch.from_numpy(gradient).permute(0, 3, 1, 2)


@lru_cache(maxsize=32)
def bilinear_taps(n_in: int, padded: int, n_out: int) -> Taps:
    """The taps of `bilinear_matrix`; kept, since each step of a training asks for the same."""
    return axis_taps(bilinear_matrix(n_in, padded, n_out))


def _classes_last(z: Tensor) -> Floats:
    """Logits (K, h, w) as (h, w, classes), padded with classes that never win."""
    from meanshifter.ops.softmax_cpu import LANES

    K, h, w = z.shape
    out = np.full((h, w, -(-K // LANES) * LANES), NEVER, dtype=np.float32)
    out[..., :K] = z.permute(1, 2, 0).numpy()
    return out
