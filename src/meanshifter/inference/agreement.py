"""How far two ways of running one model agree on images, through the same windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from meanshifter.errors import InputError
from meanshifter.inference.pictures import Picture, Pixels, as_pixels
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.reading import crops
from meanshifter.inference.resizing import fitted_size, resize
from meanshifter.inference.windows import axis
from meanshifter.ops import View, label_map


@dataclass(frozen=True)
class Agreement:
    """Of one or several images."""

    images: int
    pixels: int
    different: int
    """Pixels with another label."""
    logits: float
    """The largest difference of two patch logits."""
    largest: float
    """The largest absolute patch logit of the first predictor, beside which to see it."""

    @property
    def percent(self) -> float:
        """Pixels with another label, in percent."""
        return 100 * self.different / self.pixels

    def __str__(self) -> str:
        return (
            f"{100 - self.percent:.4f} % of {self.pixels} pixels agree, patch logits within {self.logits:.2g} "
            f"(the largest is {self.largest:.2g})"
        )


def agreement(first: Predictor, second: Predictor, images: Sequence[Picture]) -> Agreement:
    """Compare two predictors that read images alike; the readings that they average are compared one by one too.

    Raises:
        InputError: an image that cannot be read, or none.
    """
    if not images:
        raise InputError("images: 0 given; compare on at least one")
    pixels = different = 0
    logits = largest = 0.0
    for image in images:
        for ours, theirs in _bands(first, second, as_pixels(image, first.max_pixels)):
            labels = label_map(ours)
            pixels += labels.numel()
            different += int((labels != label_map(theirs).to(labels.device)).sum())
            for a, b in zip(ours, theirs, strict=True):
                logits = max(logits, float((a.z - b.z.to(a.z.device)).abs().max()))
                largest = max(largest, float(a.z.abs().max()))
    return Agreement(len(images), pixels, different, logits, largest)


@torch.inference_mode()
def _bands(first: Predictor, second: Predictor, pixels: Pixels) -> Iterator[tuple[list[View], list[View]]]:
    """Bands of rows of the result, read by both."""
    both = [predictor.bands(pixels, [predictor.mean_shift_layers]) for predictor in (first, second)]
    for (_, (ours,)), (_, (theirs,)) in zip(*both, strict=True):
        yield ours, theirs


def windows_of(predictor: Predictor, image: Picture) -> Iterator[Tensor]:
    """The windows that an image is read in at the first scale, normalised, one (1, 3, H, W) after the other.

    Raises:
        InputError: an image that cannot be read.
    """
    pixels = as_pixels(image, predictor.max_pixels)
    size = fitted_size(
        *pixels.shape[:2],
        short_side=predictor.short_side,
        long_side=predictor.long_side,
        scale=predictor.scales[0],
    )
    rows, cols = (
        axis(length, length, window=predictor.window, stride=predictor.stride, patch_size=predictor.model.stride)
        for length in size
    )
    for crop in crops(resize(pixels, size), rows, cols, 1):
        yield predictor.model.normalize(crop)
