"""What colour alone can do: a classifier of mean patch colours, to put a model's score beside."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from meanshifter.data.datasets import Dataset

BINS = 12
"""Steps per colour channel of the table."""

Counts = npt.NDArray[np.float64]


def patch_color_miou(train: Dataset, val: Dataset, *, patch: int = 8, limit: int = 200) -> float:
    """mIoU in percent of a table from mean patch colour to class, learnt on `train` and scored on `val`.

    The table counts, for each of 12³ colours, the pixels of each class in patches of that mean colour, and
    predicts the most frequent class, or the one that is most frequent for its share of all pixels: whichever
    scores higher. That is as good as a classifier of this input gets, up to the resolution of the table.

    Args:
        train: samples to count, at most `limit`.
        val: samples to score, at most `limit`.
        patch: side of the patches in pixels; what is left right and bottom of whole patches is not used.
        limit: samples per split.
    """
    K = train.labels.num_classes
    table = np.full((BINS**3, K), 1e-6)
    for index in range(min(limit, len(train))):
        colors, counts = _patches(train, index, patch)
        np.add.at(table, colors, counts)
    plain, balanced = table.argmax(1), (table / table.sum(0)).argmax(1)
    confusions = np.zeros((2, K, K))
    for index in range(min(limit, len(val))):
        colors, counts = _patches(val, index, patch)
        for confusion, chosen in zip(confusions, (plain, balanced), strict=True):
            np.add.at(confusion, chosen[colors], counts)
    return max(_miou(confusion) for confusion in confusions)


def _patches(dataset: Dataset, index: int, patch: int) -> tuple[npt.NDArray[np.intp], Counts]:
    """Per patch: the number of its mean colour, (n,), and its pixels of each class, (n, K)."""
    sample = dataset[index]
    h, w = (side // patch for side in sample.labels.shape)
    tiles = sample.image[: h * patch, : w * patch].reshape(h, patch, w, patch, 3).mean((1, 3)).reshape(-1, 3)
    red, green, blue = (tiles * (BINS / 256)).astype(np.intp).T
    classes = np.arange(dataset.labels.num_classes)
    labels = sample.labels[: h * patch, : w * patch].reshape(h, patch, w, patch, 1)
    counts = (labels == classes).sum((1, 3), dtype=np.float64).reshape(-1, len(classes))
    return (red * BINS + green) * BINS + blue, counts


def _miou(confusion: Counts) -> float:
    right = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - right
    return float(100 * (right[union > 0] / union[union > 0]).mean())
