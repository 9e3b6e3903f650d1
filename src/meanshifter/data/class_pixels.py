"""The pixels of each class in each image of a dataset, and draws of classes and images that prefer rare classes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from meanshifter.data.datasets import Dataset
from meanshifter.data.masks import class_weights
from meanshifter.errors import InputError

POWER = 0.5
"""A class is drawn with a probability proportional to (1 / share of the pixels) to this power. With 1, a class of a few
pixels would take almost every draw."""
_COUNTED: WeakKeyDictionary[Dataset, npt.NDArray[np.int64]] = WeakKeyDictionary()


def class_pixels(dataset: Dataset) -> npt.NDArray[np.int64]:
    """Labeled pixels (n, K) of each class in each image; every mask is read once per process."""
    if dataset not in _COUNTED:
        with ThreadPoolExecutor(4) as pool:
            _COUNTED[dataset] = np.stack(list(pool.map(lambda index: _count(dataset, index), range(len(dataset)))))
    return _COUNTED[dataset]


def _count(dataset: Dataset, index: int) -> npt.NDArray[np.int64]:
    labels, K = dataset.read_labels(index), dataset.label_space.num_classes
    counts: npt.NDArray[np.int64] = np.bincount(labels.ravel(), minlength=dataset.label_space.ignore + 1)[:K]
    return counts


class RareClasses:
    """Draws a class that occurs, and an image that shows it.

    Source: rare class sampling of DAFormer (Hoyer et al., CVPR 2022, section 3.3), with a power of the share of the
    pixels in place of a softmax.

    Raises:
        InputError: no pixel is labeled.
    """

    def __init__(self, pixels: npt.NDArray[np.int64]) -> None:
        total = pixels.sum(0)
        if not total.any():
            raise InputError("augment.rare_crops or copy_paste: no training image has a labeled pixel; check the masks")
        weights = np.where(total > 0, class_weights(total.astype(np.float64), POWER), 0)
        self.probabilities = weights / weights.sum()
        """(K,) probability of each class."""
        self._images = [np.flatnonzero(column) for column in pixels.T]

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Index of an image, and the class that it shows; every image of the class is equally likely."""
        k = int(rng.choice(len(self.probabilities), p=self.probabilities))
        return int(rng.choice(self._images[k])), k
