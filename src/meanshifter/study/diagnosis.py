"""Diagnostics of a trained model's steps on a few images of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from meanshifter.data.datasets import Dataset
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.resizing import fitted_size, resize
from meanshifter.model.diagnostics import diagnose
from meanshifter.model.segmenter import Segmenter

IMAGES = 8


def diagnose_model(model: Segmenter, predictor: Predictor, dataset: Dataset, layers: int) -> list[dict[str, float]]:
    """The mean over some images, spread evenly over the data set, of `diagnose` after 0, 1, …, `layers` steps."""
    places = np.linspace(0, len(dataset) - 1, min(IMAGES, len(dataset))).round().astype(int)
    rows = []
    for place in places:
        sample = dataset[int(place)]
        size = fitted_size(
            *sample.image.shape[:2], short_side=predictor.short_side, long_side=predictor.long_side, scale=1
        )
        pixels = resize(sample.image, size)
        with torch.inference_mode():
            tokens, grid = model.encode(model.normalize(pixels))
            labels = patch_labels(torch.from_numpy(sample.labels), pixels.shape[:2], grid, model.patch_size)
            rows.append(diagnose(model.mean_shift, tokens.float(), layers, grid, labels, model.labels.ignore))
    steps = range(len(rows[0]))
    return [{name: float(np.nanmean([row[n][name] for row in rows])) for name in rows[0][n]} for n in steps]


def patch_labels(labels: torch.Tensor, size: tuple[int, ...], grid: tuple[int, int], patch: int) -> Any:
    """(N,) labels at the patches' centres, for an image that was resized to `size`."""
    resized = F.interpolate(labels[None, None].float(), tuple(size), mode="nearest")[0, 0]
    rows, cols = (
        (torch.arange(n) * patch + patch // 2).clamp(max=side - 1) for n, side in zip(grid, size, strict=True)
    )
    return resized[rows][:, cols].flatten().long()
