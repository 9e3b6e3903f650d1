"""Label maps and cross-entropy on the CPU, by the compiled kernels, on as many threads as torch uses.

The kernels (`ops.cpu_kernels`, `cpu_argmax_kernels`, `cpu_loss_kernels`) are imported on first use, because numba takes
long to import.
Glossary: K classes, h w patch grid, H W pixels, T taps of a pixel along an axis; z (h, w, K) patch logits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meanshifter.ops.loss_passes import BINS
from meanshifter.ops.upsampling import NEVER, Axes, Taps, View, axis_taps, bilinear_matrix, group_weights

if TYPE_CHECKING:
    from meanshifter.ops.loss_passes import Pixels, Recipe

Result = TypeVar("Result")


def in_parallel(function: Callable[..., Result], pieces: Iterable[tuple[int, ...]]) -> list[Result]:
    """Return the results of ``function(*piece)``, in the order of the pieces.

    The calling thread works, too: OpenMP's threads keep spinning for milliseconds after an operation of torch, and one
    more thread of ours would have to share a core with them.
    """
    work = list(pieces)
    threads = min(torch.get_num_threads(), len(work))
    if threads <= 1:
        return [function(*piece) for piece in work]
    results: dict[int, Result] = {}
    remaining = iter(range(len(work)))

    def drain() -> None:
        for place in remaining:
            results[place] = function(*work[place])

    helpers = [_pool(os.getpid(), torch.get_num_threads()).submit(drain) for _ in range(threads - 1)]
    try:
        drain()
    finally:
        wait(helpers)
    for helper in helpers:
        helper.result()
    return [results[place] for place in range(len(work))]


def spans(length: int, pieces: int) -> list[tuple[int, int]]:
    """Split 0..length into at most `pieces` parts of nearly equal size."""
    count = max(min(pieces, length), 1)
    edges = [length * i // count for i in range(count + 1)]
    return list(pairwise(edges))


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The pool of a process, which is part of the key because a fork inherits the pool without its threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="meanshifter-ops")


Floats = npt.NDArray[np.float32]
_BAND = 1 << 18
"""Probabilities in one band: a megabyte."""
SCORES = ("probability", "margin", "entropy")
"""In the order of the kernel's arguments."""
_EMPTY = np.empty(0, dtype=np.float32)


def label_map(view: View) -> Tensor:
    """Compute the label map (H, W) of one view."""
    from meanshifter.ops.cpu_argmax_kernels import argmax_rows, scratch

    z = np.ascontiguousarray(view.z.detach().numpy().transpose(1, 2, 0))
    join = bool(np.isfinite(z.sum()))  # costs less than looking at each
    rows, cols = axis_taps(view.rows, join=join), axis_taps(view.cols, join=join)
    out = np.empty((len(view.rows), len(view.cols)), dtype=np.uint8 if z.shape[2] <= 255 else np.uint16)
    axes = (*rows, _shares(rows), _are_straight(rows), *cols, _shares(cols), _are_straight(cols))

    def fill(begin: int, end: int) -> None:
        argmax_rows(z, *axes, begin, end, *scratch(z.shape[2], rows.inputs.shape[1] * cols.inputs.shape[1]), out)

    in_parallel(fill, spans(len(rows.starts) - 1, 4 * torch.get_num_threads()))
    return torch.from_numpy(out)


def _shares(taps: Taps) -> Floats:
    """The weight of each tap's window in each run, (runs, T); a negative one if it differs within the run."""
    weights, first = group_weights(taps.inputs, taps.weight), taps.starts[:-1]
    low, high = (reduce.reduceat(weights, first) for reduce in (np.minimum, np.maximum))
    return np.where((high - low > 1e-6).any(1, keepdims=True), np.float32(-1), weights[first])


def _are_straight(taps: Taps) -> npt.NDArray[np.bool_]:
    """Whether the weights of each run lie on straight lines; at borders and in averages of windows they may not."""
    bends = np.zeros(taps.weight.shape[1], np.float32)
    bends[1:-1] = np.abs(np.diff(taps.weight, 2, axis=1)).max(0, initial=0)
    first = taps.starts[:-1]
    bends[first] = 0
    bends[taps.starts[1:] - 1] = 0  # the neighbors of the ends of a run belong to other runs
    straight: npt.NDArray[np.bool_] = np.maximum.reduceat(bends, first) < 1e-6
    return straight


def probabilities(views: list[View]) -> Iterator[tuple[slice, Floats]]:
    """Yield bands of rows and their probabilities (rows, W, K), averaged over views; bands share one array."""
    from meanshifter.ops.cpu_kernels import add_softmax

    K, H, W = len(views[0].z), len(views[0].rows), len(views[0].cols)
    sources = [(_classes_last(view.scaled(view.z)), axis_taps(view.rows), axis_taps(view.cols)) for view in views]
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


def read_out(p: Floats, labels: npt.NDArray[Any], confidence: dict[str, Floats]) -> None:
    """Fill `labels` (rows, W) and the requested `confidence` from probabilities p (rows, W, K)."""
    from meanshifter.ops import cpu_kernels

    def fill(begin: int, end: int) -> None:
        wanted = [confidence[name][begin:end].reshape(-1) if name in confidence else _EMPTY for name in SCORES]
        cpu_kernels.read_out(p[begin:end].reshape(-1, p.shape[2]), labels[begin:end].reshape(-1), *wanted)

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
    """Compute the summed loss of logits (B, K, h, w) and its gradient, which is empty unless requested."""
    from meanshifter.ops.cpu_kernels import cross_entropy_rows

    K = logits.shape[1]
    source = _source(logits, labels, axes, ignore_index)
    factors, gradients = _padded(weight), _zeros(source, with_gradient=with_gradient)

    def fill(b: int, part: int) -> float:
        constants = (_IGNORED, factors, smoothing, K)
        rows = source.parts[part]
        loss = cross_entropy_rows(source.z[b], *source.taps, source.targets[b], *constants, *rows, gradients[b][part])
        return float(loss)

    total = sum(in_parallel(fill, source.pieces))
    return torch.tensor(total, dtype=torch.float32), _joined(gradients, K) if with_gradient else logits.new_empty(0)


def loss_sums(
    pixels: Pixels, *, losses: bool, overlap: bool, errors: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Collect the `Sums` of `ops.loss_terms`."""
    from meanshifter.ops.cpu_loss_kernels import sum_rows

    source = _source(*pixels[:4])
    near = _maps(pixels.near, source, np.bool_)
    again = overlap or errors
    found, logsums = (np.zeros(pixels.labels.shape if wanted else _NO_MAP, np.float32) for wanted in (losses, again))
    hard, known = (_maps(torch.from_numpy(several), source) for several in (found, logsums))
    width, K = source.z[0].shape[2], pixels.logits.shape[1]

    def fill(b: int, part: int) -> tuple[npt.NDArray[np.float64], Floats]:
        sums = np.zeros((3, width if overlap else 0))
        histogram = np.zeros((2, BINS, width if errors else 0), np.float32)
        counts, rows = (near[b], pixels.near_weight), source.parts[part]
        sum_rows(
            source.z[b], *source.taps, source.targets[b], _IGNORED, *counts, *rows, hard[b], known[b], sums, histogram
        )
        return sums, histogram

    sums, histograms = zip(*in_parallel(fill, source.pieces), strict=True)
    overlaps = torch.from_numpy(np.stack(sums).sum(0)[:, :K])
    counts = torch.from_numpy(np.stack(histograms).sum(0, dtype=np.float64)[..., :K]).mT if errors else None
    return torch.from_numpy(found), overlaps, counts, torch.from_numpy(logsums) if again else None


def weighted_loss(pixels: Pixels, recipe: Recipe, *, with_gradient: bool) -> tuple[Tensor, Tensor]:
    """Make the second pass of `ops.loss_terms`."""
    from meanshifter.ops.cpu_loss_kernels import loss_rows

    K = pixels.logits.shape[1]
    source = _source(*pixels[:4])
    near = _maps(pixels.near, source, np.bool_)
    hard, known = (_maps(each, source) for each in (recipe.hard, recipe.logsums))
    weight, gradients = _padded(recipe.weight), _zeros(source, with_gradient=with_gradient)
    region = _padded(torch.zeros(2, 0) if recipe.region is None else recipe.region)
    slopes = np.zeros((2, BINS, 0), np.float32)
    if recipe.slopes is not None:
        slopes = recipe.slopes.float().mT.contiguous().numpy()
    factors = (recipe.smoothing, float(recipe.cross_entropy), float(recipe.focal), recipe.gamma)

    def fill(b: int, part: int) -> float:
        counts = (near[b], pixels.near_weight, hard[b], known[b])
        places = (source.z[b], *source.taps, source.targets[b], _IGNORED)
        loss = loss_rows(*places, *counts, weight, K, *factors, region, slopes, *source.parts[part], gradients[b][part])
        return float(loss)

    total = torch.tensor(sum(in_parallel(fill, source.pieces)), dtype=torch.float32)
    return total, _joined(gradients, K) if with_gradient else pixels.logits.new_empty(0)


class _Source(NamedTuple):
    """What the loss kernels read."""

    z: list[Floats]
    """(h, w, classes) per image."""
    taps: tuple[Any, ...]
    targets: npt.NDArray[np.int32]
    """(B, H, W), `_IGNORED` where ignored."""
    parts: list[tuple[int, int]]
    """Spans of rows, independent of the number of threads, for reproducibility."""

    @property
    def pieces(self) -> list[tuple[int, int]]:
        """Every image with every part."""
        return [(b, part) for b in range(len(self.z)) for part in range(len(self.parts))]


_IGNORED = -1
LARGEST_PART = 2**23
"""Pixels of a part, at most: float32, in which a part counts errors, holds every integer up to 2**24."""
_NO_MAP = (0, 0, 0)


def _source(logits: Tensor, labels: Tensor, axes: Axes, ignore_index: int) -> _Source:
    targets = np.empty(labels.shape, dtype=np.int32)
    for one, target in zip(labels, targets, strict=True):
        wide = one.long()  # 32 bits cannot hold every `ignore_index`
        target[:] = wide.masked_fill(wide == ignore_index, _IGNORED).numpy()
    down, across = (bilinear_taps(*axis) for axis in axes)
    taps = (down.inputs, down.weight, across.inputs, across.weight)
    z = [_classes_last(image) for image in logits.detach()]
    H, W = labels.shape[1:]
    count = max(8 // len(logits), -(-H * W // LARGEST_PART), 1)
    return _Source(z, taps, targets, spans(H, count))


def _maps(
    values: Tensor | None, source: _Source, dtype: type = np.float32
) -> npt.NDArray[Any] | list[npt.NDArray[Any]]:
    """One array (H, W) per image, or (0, 0) if there are none."""
    if values is not None and len(values):
        return values.numpy()
    return [np.zeros((0, 0), dtype)] * len(source.z)


def _padded(values: Tensor) -> Floats:
    """Float32 values (…, K) with zeros for the classes of padding."""
    from meanshifter.ops.cpu_kernels import LANES

    K = values.shape[-1]
    out = np.zeros((*values.shape[:-1], -(-K // LANES) * LANES), dtype=np.float32)
    out[..., :K] = values.numpy()
    return out


def _zeros(source: _Source, *, with_gradient: bool) -> list[list[Floats]]:
    """A gradient (h, w, classes) per image and part, empty unless requested."""
    return [[np.zeros_like(image if with_gradient else image[:0]) for _ in source.parts] for image in source.z]


def _joined(gradients: list[list[Floats]], K: int) -> Tensor:
    gradient = np.stack([sum(several[1:], several[0])[..., :K] for several in gradients])
    return torch.from_numpy(gradient).permute(0, 3, 1, 2)


@lru_cache(maxsize=32)
def bilinear_taps(n_in: int, padded: int, n_out: int) -> Taps:
    """Return the taps of `bilinear_matrix`, cached because every training step needs the same ones."""
    return axis_taps(bilinear_matrix(n_in, padded, n_out))


def _classes_last(z: Tensor) -> Floats:
    """Convert logits (K, h, w) to (h, w, classes), padded with classes that never win."""
    from meanshifter.ops.cpu_kernels import LANES

    K, h, w = z.shape
    out = np.full((h, w, -(-K // LANES) * LANES), NEVER, dtype=np.float32)
    out[..., :K] = z.permute(1, 2, 0).numpy()
    return out
