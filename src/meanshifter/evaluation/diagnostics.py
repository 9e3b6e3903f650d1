"""Diagnostics of the mean shift steps of a trained model, on a few images of a dataset.

Glossary: N tokens, D token width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from meanshifter.data.labels import Labels
from meanshifter.errors import InputError
from meanshifter.evaluation.details import RADII
from meanshifter.evaluation.metrics import Confusion, confusion_matrix, mean_iou, near_boundary, only
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.preprocess import resize
from meanshifter.inference.protocol import as_segmenter
from meanshifter.model.mean_shift import Grid, MeanShift, effective_neighbors

if TYPE_CHECKING:
    from meanshifter.data.datasets import Dataset, Sample


IMAGES = 8
DIAGNOSTICS = {
    "neighbors": "effective neighbors",
    "shift": "shift / spread before the step",
    "variance": "variance / initial variance",
    "relative_spread": "spread / norm",
    "rank": "effective rank",
    "modes": "modes",
    "separation": "variance between / within classes",
    "boundary_3": "mIoU ≤ 3 px from a boundary",
    "boundary_9": "mIoU ≤ 9 px",
}
"""Diagnostics by name, with their titles."""


def diagnose_model(
    predictor: Predictor, dataset: Dataset, layers: int, *, images: int = IMAGES, limit: int | None = None
) -> list[dict[str, float]]:
    """Diagnostics after 0, 1, …, `layers` steps on `images` images, evenly spaced over the first `limit` (None: all).

    These are the means of `diagnose` over the images, and boundary_3 and boundary_9 over all their pixels: mIoU in
    percent of the pixels within 3 and 9 of another class.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    places = np.linspace(0, count - 1, min(images, count)).round().astype(int)
    found = [diagnose_sample(predictor, dataset[int(place)], layers) for place in places]
    counts = np.sum([bands for _, bands in found], axis=0)
    rows = []
    for n in range(layers + 1):
        several = [figures[n] for figures, _ in found if n < len(figures)]
        row = {name: _mean([entry[name] for entry in several]) for name in (several or [{}])[0]}
        rows.append({**row, **boundary_figures(counts[n])})
    return rows


def _mean(values: Sequence[float]) -> float:
    """Mean without NaN; NaN if nothing is left."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def diagnose_sample(
    predictor: Predictor, sample: Sample, layers: int
) -> tuple[list[dict[str, float]], npt.NDArray[np.int64]]:
    """`diagnose` of one image, with its labels, and the confusion matrices near boundaries (layers+1, radii, K, K).

    Steps from pixels do not move the tokens, so those models only have diagnostics of step 0.
    """
    model, labels = as_segmenter(predictor.model).evaluation_view(), torch.from_numpy(sample.labels.astype(np.int64))
    size = predictor.preprocess.size(*sample.image.shape[:2])
    with torch.inference_mode():
        tokens, grid = model.encode(model.normalize(resize(sample.image, size)))
        places = patch_labels(labels, size, grid, model.patch_size)
        moved = model.mean_shift_input(tokens).float()
        figures = diagnose(model.mean_shift, moved, layers, grid, places, model.label_space.ignore)
    maps = predictor.label_maps(sample.image, list(range(layers + 1)))
    return figures, near_boundaries(sample.labels, maps, model.label_space.num_classes, model.label_space.ignore)


def near_boundaries(labels: Labels, maps: Sequence[Labels], num_classes: int, ignore: int) -> npt.NDArray[np.int64]:
    """Confusion matrices of several label maps of an image near label boundaries, (maps, radii, K, K)."""
    bands = [only(labels, near_boundary(labels, radius, ignore), ignore) for radius in RADII]
    return np.array([[confusion_matrix(band, each, num_classes, ignore=ignore) for band in bands] for each in maps])


def boundary_figures(counts: Confusion) -> dict[str, float]:
    """boundary_3 and boundary_9 from the confusion matrices near boundaries (radii, K, K)."""
    return {f"boundary_{radius}": float(score) for radius, score in zip(RADII, mean_iou(counts), strict=True)}


def patch_labels(labels: torch.Tensor, size: tuple[int, ...], grid: tuple[int, int], patch: int) -> Any:
    """(N,) labels at the patch centers of an image resized to `size`."""
    resized = F.interpolate(labels[None, None].float(), tuple(size), mode="nearest")[0, 0]
    rows, cols = (
        (torch.arange(n) * patch + patch // 2).clamp(max=side - 1) for n, side in zip(grid, size, strict=True)
    )
    return resized[rows][:, cols].flatten().long()


ROWS = 256
"""Rows of the distance matrix computed at a time."""


def modes_of(tokens: Float[Tensor, "N D"], radius: float) -> Int[Tensor, " N"]:
    """The mode of each token: the connected components of the tokens, linked at distances of at most `radius`.

    Comaniciu & Meer (PAMI 2002, section 4.2) and Carreira-Perpiñán (ICML 2006) read off modes this way. Modes are
    numbered from 0, largest first; among equally large ones, the one of the earliest token first. Takes N × N bytes of
    memory. Distances have the precision of the tokens.

    Raises:
        InputError: the radius is negative or not finite.
    """
    if not 0 <= radius < math.inf:
        raise InputError(f"radius: {radius}; expected a finite distance of at least 0")
    near = _near(tokens, radius)
    labels = np.full(len(tokens), -1, np.int64)
    for token in range(len(tokens)):
        if labels[token] >= 0:
            continue
        reached = np.array([token])
        while len(reached) > 0:
            labels[reached] = token
            reached = np.flatnonzero(near[reached].any(0) & (labels < 0))
    return by_size(torch.from_numpy(labels).to(tokens.device))


def _near(tokens: Float[Tensor, "N D"], radius: float) -> npt.NDArray[np.bool_]:
    """(N, N) whether two tokens are within `radius`.

    Squared distances are products of matrices, which is ten times faster than differences but loses digits. Pairs whose
    squared distance is within the rounding error of the squared radius are decided by their differences.
    """
    middle = tokens.mean(0)
    z = tokens - middle
    wide = z.square().sum(-1).max().sqrt()
    doubt = 8 * len(middle) * torch.finfo(z.dtype).eps * wide * (wide + middle.norm() + radius)
    near = np.empty((len(tokens), len(tokens)), np.bool_)
    for start in range(0, len(tokens), ROWS):
        rows = z[start : start + ROWS]
        excess = rows.square().sum(-1)[:, None] + z.square().sum(-1) - 2 * rows @ z.T - radius**2
        within = excess <= 0
        i, j = (excess.abs() <= doubt).nonzero(as_tuple=True)
        if len(i) <= 4 * len(tokens):
            within[i, j] = (tokens[i + start] - tokens[j]).square().sum(-1).sqrt() <= radius
        else:
            exact = torch.cdist(tokens[start : start + ROWS], tokens, compute_mode="donot_use_mm_for_euclid_dist")
            within = exact <= radius
        near[start : start + ROWS] = within.cpu().numpy()
    return near


def count_modes(tokens: Float[Tensor, "N D"], radius: float) -> int:
    """Number of modes found by `modes_of`."""
    return len(torch.unique(modes_of(tokens, radius)))


def by_size(labels: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Renumber groups from 0, largest first; among equally large groups, the one of the earliest token first."""
    N = len(labels)
    _, group, size = torch.unique(labels, return_inverse=True, return_counts=True)
    place = torch.arange(N, device=labels.device)
    first = torch.full_like(size, N).scatter_reduce(0, group, place, "amin")
    order = (size * (N + 1) - first).argsort(descending=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=labels.device)
    return rank[group]


def spread(tokens: Float[Tensor, "N D"]) -> float:
    """Root mean square distance of the tokens from their mean, the unit of radii."""
    return (tokens - tokens.mean(0)).square().sum(-1).mean().sqrt().item()


MOST_TOKENS = 16_384
"""Tokens of an image up to which modes are counted: the N × N links of four times as many take 4 GB and minutes."""
MERGED = 0.1
"""Radius of modes, as a fraction of the initial spread."""


def diagnose(
    block: MeanShift | None,
    tokens: Float[Tensor, "1 M D"],
    layers: int,
    grid: Grid | None = None,
    labels: Int[Tensor, " N"] | None = None,
    ignore: int = 255,
) -> list[dict[str, float]]:
    """Diagnostics of the tokens after 0, 1, …, `layers` steps, in float64 to tell apart tokens that have collapsed.

    spread: root mean square distance from the mean token; relative_spread: spread over the root mean square norm;
    variance: squared spread over its initial value; rank: exp of the entropy of the squared singular values of the
    centered tokens (effective rank, Roy & Vetterli 2007); modes: number of modes at a radius of a tenth of the initial
    spread. From the first step on, neighbors: mean over tokens of exp of the entropy of the weights; shift: root mean
    square distance moved over the spread before the step. With labels, separation: variance between classes over
    variance within classes. If M exceeds h·w, the last tokens are class embeddings that shift along: all diagnostics
    are of the h·w patches, and class_weight is the share of their means that comes from classes.
    """
    N = tokens.shape[1] if grid is None else math.prod(grid)
    if block is None:
        z = tokens.double()[0, :N]
        return [_state(z, labels, ignore, MERGED * spread(z))]
    exact = in_double(block)
    states = list(exact.states(tokens.double(), layers, grid))
    radius = MERGED * spread(states[0][0, :N])
    start = _state(states[0][0, :N], labels, ignore, radius)
    figures: list[dict[str, float]] = []
    for n, z in enumerate(states):
        row = start if n == 0 else _state(z[0, :N], labels, ignore, radius)
        row["variance"] = (row["spread"] / start["spread"]) ** 2 if start["spread"] > 0 else math.nan
        if n > 0:
            before = states[n - 1]
            weights = exact.weights(before, grid, states[0])[0, :N]
            row["neighbors"] = effective_neighbors(weights).mean().item()
            if tokens.shape[1] > N:
                row["class_weight"] = weights[:, N:].sum(1).mean().item()
            distance = (z - before)[:, :N].square().sum(-1).mean().sqrt().item()
            spread_before = figures[-1]["spread"]
            row["shift"] = distance / spread_before if spread_before > 0 else math.nan
        figures.append(row)
    return figures


def in_double(block: MeanShift) -> MeanShift:
    """A copy of the block with float64 weights that require no gradient."""
    copy = MeanShift(block.project.in_features, block.config).double().to(block.project.weight.device)
    copy.load_state_dict(block.state_dict())
    return copy.requires_grad_(False)


def _state(z: Float[Tensor, "N D"], labels: Tensor | None, ignore: int, radius: float) -> dict[str, float]:
    centered, wide = z - z.mean(0), spread(z)
    norm = z.square().sum(-1).mean().sqrt().item()
    energy = torch.linalg.svdvals(centered).square()
    share = energy / energy.sum().clamp(min=torch.finfo(z.dtype).tiny)
    figures = {"spread": wide, "relative_spread": wide / norm if norm > 0 else math.nan}
    figures["rank"] = torch.special.entr(share).sum().exp().item()
    figures["modes"] = float(count_modes(z, radius)) if len(z) <= MOST_TOKENS else math.nan
    if labels is not None:
        figures["separation"] = _separation(z, labels.to(z.device), ignore)
    return figures


def _separation(z: Tensor, labels: Tensor, ignore: int) -> float:
    """Sum of squares between class means over the sum of squares within classes."""
    z, labels = z[labels != ignore], labels[labels != ignore]
    classes, place = torch.unique(labels, return_inverse=True)
    if len(classes) < 2:
        return math.nan
    count = torch.bincount(place).to(z.dtype)[:, None]
    means = z.new_zeros(len(classes), z.shape[1]).index_add_(0, place, z) / count
    between = (count * (means - z.mean(0)).square()).sum()
    within = (z - means[place]).square().sum()
    return (between / within).item() if within > 0 else math.inf
