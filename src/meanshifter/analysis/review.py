"""Masks that are probably wrong, and images that are worth labeling next, by what a model is sure of.

Wrong masks: where a model that was not trained on an image predicts another class than its mask, region by region, and
gives the class of the mask hardly any probability. That is the self-confidence of a label (Northcutt et al., Confident
Learning, JAIR 2021), here relative to the prediction and averaged over a region. Pixels along boundaries do not count,
since masks are inexact there and models unsure.

Images to label: by the entropy of the predictions, each with regard to those before it, so that the list is not one
scene many times: greedy, as in k-center selection (Sener & Savarese, Active Learning for CNNs, ICLR 2018), in the space
of the entropy that falls on each predicted class.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from math import ceil, log
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meanshifter.data.datasets import Dataset, Sample
from meanshifter.data.labels import Labels
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import check_classes, count_images
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.segmentation import read_ahead
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.setup import open_data, open_training_data
from meanshifter.utils.progress import ProgressBar

Map = npt.NDArray[np.float32]
LEAST = 1e-3
"""Smaller probabilities count as this, so that single pixels do not decide."""
POWER = 4
"""Of the certainty in a score: a region of half the certainty needs 16 times the size. benchmarks/planted_labels.py."""
BORDER = 0.0075
"""Width of the border of a region that does not count, in the shorter side of the image; at least 1 pixel."""


@dataclass(frozen=True)
class Suspect:
    """A region whose mask is probably wrong."""

    index: int
    """Of the image in the dataset."""
    image: str
    """Its name."""
    labeled: int
    """Class of the region in the mask."""
    predicted: int
    """Class that the model sees there."""
    box: tuple[int, int, int, int]
    """First and last row + 1, first and last column + 1."""
    pixels: int
    """Size of the region."""
    inside: int
    """Pixels without the region's border."""
    certainty: float
    """Mean over these of the logarithm of how many times as probable the predicted class is, from 0 to log 1000."""

    @property
    def score(self) -> float:
        """Rank of the region, by size and certainty."""
        return self.inside * (self.certainty / -log(LEAST)) ** POWER


@dataclass(frozen=True, eq=False)
class Part:
    """A model, and images with masks that it was not trained on."""

    predictor: Predictor
    dataset: Dataset


def parts_of(run: str | Path, *, device: str | None = None) -> list[Part]:
    """The model of a run and its validation images, or those of each fold of a cross-validation.

    Raises:
        InputError: not a run, or without validation images; or its data cannot be opened.
    """
    from meanshifter.checkpoints.load import load_model

    path = Path(run)
    runs = sorted(path.glob("fold*/config.yaml")) or [path / "config.yaml"]
    if not runs[0].is_file():
        raise InputError(f"{path}: has no config.yaml; give a run folder, or a model and a dataset")
    parts = []
    for config_file in runs:
        config = parse_recipe(config_file)
        dataset = open_training_data(config)[1] if config.data.fold is not None else open_data(config)[1]
        assert dataset is not None  # a fold is held out
        model = load_model(config_file.parent)
        chosen = model.fastest_device if device is None else device
        parts.append(Part(Predictor(model, device=chosen, **config.evaluation.reading), dataset))
    return parts


def find_suspects(parts: Iterable[Part], *, limit: int | None = None, progress: bool = False) -> list[Suspect]:
    """Regions of masks that are probably wrong, the most probable ones first.

    Args:
        parts: models and images; several for the folds of a cross-validation. Indices of suspects count through all
            of them.
        limit: only the first `limit` images of each dataset.
        progress: show a progress bar.

    Raises:
        InputError: the classes of predictor and dataset differ, there are no images, or one cannot be read.
    """
    suspects: list[Suspect] = []
    first = 0
    for part in parts:
        predictor, dataset, space = part.predictor, part.dataset, part.dataset.label_space
        check_classes(predictor.model.label_space, space, f"{dataset.name} {dataset.split}")
        for place, sample in _samples(dataset, limit, progress):
            try:
                prediction, likely, own = predictor.probabilities_of(sample.image, sample.labels)
            except InputError as error:
                raise InputError(f"{sample.name}: {error}") from error
            found = suspects_in(sample.labels, prediction, likely, own, ignore=space.ignore)
            suspects += [replace(suspect, index=first + place, image=sample.name) for suspect in found]
        first += len(dataset)
    return sorted(suspects, key=lambda suspect: (-suspect.score, suspect.index, suspect.box))


def suspects_in(labels: Labels, prediction: Labels, likely: Map, own: Map, *, ignore: int) -> Iterator[Suspect]:
    """The regions of one image, connected pixels with one labeled and one other predicted class.

    Args:
        labels: the mask (H, W).
        prediction: the label map (H, W).
        likely: probability of the predicted class (H, W).
        own: probability of the labeled class (H, W).
        ignore: value of pixels without a class.
    """
    from scipy import ndimage  # takes a third of a second to import

    wrong = (labels != prediction) & (labels != ignore)
    border = max(ceil(BORDER * min(labels.shape)), 1)
    pairs = np.where(wrong, labels.astype(np.int64) * 65536 + prediction, -1)
    for pair in np.unique(pairs[wrong]).tolist():
        numbered, _ = ndimage.label(pairs == pair)
        for number, box in enumerate(ndimage.find_objects(numbered), start=1):
            here = numbered[box] == number
            inner = ndimage.binary_erosion(here, iterations=border)
            if not inner.any():
                continue
            ratio = np.maximum(likely[box][inner], LEAST) / np.maximum(own[box][inner], LEAST)
            rows, columns = box
            yield Suspect(
                index=0,
                image="",
                labeled=pair // 65536,
                predicted=pair % 65536,
                box=(rows.start, rows.stop, columns.start, columns.stop),
                pixels=int(here.sum()),
                inside=int(inner.sum()),
                certainty=float(np.log(ratio.astype(np.float64)).mean()),
            )


def _samples(dataset: Dataset, limit: int | None, progress: bool) -> Iterator[tuple[int, Sample]]:
    numbers = range(count_images(dataset, limit))
    with ProgressBar("images", len(numbers), shown=progress) as bar:
        for place, future in read_ahead(dataset.__getitem__, numbers):
            sample: Any = future.result()
            yield place, sample
            bar.advance()


@dataclass(frozen=True)
class Candidate:
    """An image that is worth labeling."""

    path: Path
    entropy: float
    """Mean entropy of the predictions over its pixels, in nats."""
    novelty: float
    """1 minus the largest cosine of its entropy by predicted class with that of a candidate before it; 1 for the
    first."""


def rank_unlabeled(predictor: Predictor, images: Sequence[Path], *, progress: bool = False) -> list[Candidate]:
    """Order images by what a model is unsure of, with variety: each has the largest product of entropy and novelty.

    Raises:
        InputError: no images, or one that cannot be read.
    """
    if not images:
        raise InputError("images: 0 to rank; name a folder of images")
    predictor = copy(predictor)
    predictor.confidence, predictor.probabilities = ("entropy",), ()
    K = predictor.model.label_space.num_classes
    spread = np.zeros((len(images), K))
    with ProgressBar("images", len(images), shown=progress) as bar:
        for place, path in enumerate(images):
            seg = predictor(path)
            weights = seg.confidence["entropy"].astype(np.float64)
            spread[place] = np.bincount(seg.labels.ravel(), weights.ravel(), minlength=K) / seg.labels.size
            bar.advance()
    return [Candidate(images[place], float(spread[place].sum()), novelty) for place, novelty in _varied(spread)]


def _varied(spread: npt.NDArray[np.float64]) -> Iterator[tuple[int, float]]:
    """Rows (I, K) in greedy order, with the novelty of each."""
    entropy = spread.sum(1)
    unit = spread / np.maximum(np.linalg.norm(spread, axis=1, keepdims=True), 1e-12)
    novelty, left = np.ones(len(spread)), np.ones(len(spread), np.bool_)
    for _ in range(len(spread)):
        gain = np.where(left, entropy * novelty, -1.0)
        place = int(gain.argmax())
        yield place, float(novelty[place])
        left[place] = False
        novelty = np.minimum(novelty, np.clip(1 - unit @ unit[place], 0, 1))
