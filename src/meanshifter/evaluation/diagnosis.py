"""What the mean shift steps of a trained model do on a few images of a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from meanshifter.data.labels import Labels
from meanshifter.evaluation.boundary import near_boundary, only
from meanshifter.evaluation.confusion import Confusion, confusion_matrix, mean_iou
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.resizing import fitted_size, resize
from meanshifter.interop.contract import as_segmenter
from meanshifter.model.diagnostics import diagnose

if TYPE_CHECKING:
    from meanshifter.data.datasets import Dataset, Sample

IMAGES = 8
RADII = (3, 9)
"""Pixels from a boundary of the truth, of the mask's own size."""


def diagnose_model(
    predictor: Predictor, dataset: Dataset, layers: int, *, images: int = IMAGES, limit: int | None = None
) -> list[dict[str, float]]:
    """Figures after 0, 1, …, `layers` steps on so many images, spread evenly over the first `limit` (None: all).

    The mean of `diagnose` over the images and, of all their pixels together, boundary_3 and boundary_9: mIoU in
    percent of the pixels within 3 and 9 of another class.
    """
    count = len(dataset) if limit is None else min(limit, len(dataset))
    places = np.linspace(0, count - 1, min(images, count)).round().astype(int)
    found = [diagnose_sample(predictor, dataset[int(place)], layers) for place in places]
    scores = mean_iou(np.sum([bands for _, bands in found], axis=0))
    rows = []
    for n in range(layers + 1):
        several = [figures[n] for figures, _ in found if n < len(figures)]
        row = {name: _mean([entry[name] for entry in several]) for name in (several or [{}])[0]}
        rows.append({**row, **_named(scores[n])})
    return rows


def _mean(values: Sequence[float]) -> float:
    """Of those that are no NaN; NaN without any."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def diagnose_sample(
    predictor: Predictor, sample: Sample, layers: int
) -> tuple[list[dict[str, float]], npt.NDArray[np.int64]]:
    """`diagnose` of one image's tokens, with its labels, and the pixels near boundaries (layers+1, radii, K, K).

    Steps from pixels do not move the tokens, so that such a model has figures of step 0 only.
    """
    model, labels = as_segmenter(predictor.model).evaluation_view(), torch.from_numpy(sample.labels.astype(np.int64))
    size = fitted_size(*sample.image.shape[:2], short_side=predictor.short_side, long_side=predictor.long_side, scale=1)
    with torch.inference_mode():
        tokens, grid = model.encode(model.normalize(resize(sample.image, size)))
        places = patch_labels(labels, size, grid, model.patch_size)
        moved = model.mean_shift_input(tokens).float()
        figures = diagnose(model.mean_shift, moved, layers, grid, places, model.labels.ignore)
    maps = predictor.label_maps(sample.image, list(range(layers + 1)))
    return figures, near_boundaries(sample.labels, maps, model.labels.num_classes, model.labels.ignore)


def near_boundaries(labels: Labels, maps: Sequence[Labels], num_classes: int, ignore: int) -> npt.NDArray[np.int64]:
    """Pixels of several label maps of one image near boundaries of the truth, (maps, radii, K, K)."""
    bands = [only(labels, near_boundary(labels, radius, ignore), ignore) for radius in RADII]
    return np.array([[confusion_matrix(band, each, num_classes, ignore=ignore) for band in bands] for each in maps])


def boundary_figures(counts: Confusion) -> dict[str, float]:
    """boundary_3 and boundary_9 of the pixels near boundaries (radii, K, K) after one number of steps."""
    return _named(mean_iou(counts))


def _named(scores: npt.NDArray[np.float64]) -> dict[str, float]:
    return {f"boundary_{radius}": float(score) for radius, score in zip(RADII, scores, strict=True)}


def patch_labels(labels: torch.Tensor, size: tuple[int, ...], grid: tuple[int, int], patch: int) -> Any:
    """(N,) labels at the patches' centres, for an image that was resized to `size`."""
    resized = F.interpolate(labels[None, None].float(), tuple(size), mode="nearest")[0, 0]
    rows, cols = (
        (torch.arange(n) * patch + patch // 2).clamp(max=side - 1) for n, side in zip(grid, size, strict=True)
    )
    return resized[rows][:, cols].flatten().long()
