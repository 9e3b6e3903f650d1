"""Scores of every image under several models, and the images that tell most about their difference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from meanshifter.data.datasets import Dataset
from meanshifter.errors import InputError
from meanshifter.evaluation.confusion import Confusion, confusion_matrix
from meanshifter.evaluation.evaluate import image_maps, protocol_of
from meanshifter.evaluation.result import Result
from meanshifter.inference.predictor import Predictor

SHARE = 0.001
"""Of an image's labelled pixels. Classes of fewer have no part in its mIoU, and models that differ by fewer wrong
pixels are even: a stray pixel decides neither."""


@dataclass(frozen=True)
class ImageScore:
    """How one model labels one image."""

    labelled: int
    """Pixels that have a class in the truth."""
    wrong: int
    """Those of them that got another class."""
    mIoU: float  # noqa: N815
    """In percent, over the classes that hold at least `SHARE` of the labelled pixels in the truth; NaN without any."""

    @classmethod
    def of(cls, confusion: Confusion) -> ImageScore:
        """The score of a confusion matrix (K, K), row truth and column prediction, of a single image."""
        truth, right = confusion.sum(1), confusion.diagonal()
        labelled = int(truth.sum())
        counted = (truth > 0) & (truth >= SHARE * labelled)
        shares = right[counted] / (truth + confusion.sum(0) - right)[counted]
        return cls(labelled, labelled - int(right.sum()), float(100 * shares.mean()) if shares.size else math.nan)

    @property
    def percent(self) -> float:
        """The wrong pixels in percent of the labelled ones; NaN without any."""
        return 100 * self.wrong / self.labelled if self.labelled else math.nan


@dataclass(frozen=True, eq=False)
class Scored:
    """One model and its scores."""

    name: str
    """As it is called in figures."""
    predictor: Predictor
    result: Result
    """Over all images, as `evaluate` scores them."""
    images: tuple[ImageScore, ...]
    """Of each image alone."""


@dataclass(frozen=True)
class Choice:
    """An image to show, and why."""

    index: int
    """In the data set."""
    group: str
    """"best", "median" or "worst" by the difference in wrong pixels, or "image" where it was named."""
    rank: int
    """In its group, from 1."""

    @property
    def title(self) -> str:
        """Group and rank, for example "best 1"."""
        return f"{self.group} {self.rank}"


class Verdict(NamedTuple):
    """On how many of the images with a labelled pixel the last model is better or worse than the first."""

    better: int
    worse: int
    even: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """The scores of all models on all images, and the images chosen from them."""

    dataset: Dataset
    models: tuple[Scored, ...]
    choices: tuple[Choice, ...] = ()
    pick: int = 0
    """How many images of each kind are shown."""
    depths: tuple[int, ...] = ()
    """Mean shift steps after which the models with a block are shown."""
    steps_of: str = ""
    """The one model whose numbers of mean shift steps are compared; empty where models are."""

    @property
    def differences(self) -> npt.NDArray[np.float64]:
        """(n,) wrong pixels of the first model less those of the last, image by image; NaN without a labelled pixel."""
        pairs = zip(self.models[0].images, self.models[-1].images, strict=True)
        return np.array([first.wrong - last.wrong if last.labelled else math.nan for first, last in pairs])

    @property
    def by_wrong_pixels(self) -> Verdict:
        """Better: fewer wrong pixels, by `SHARE` of the labelled ones at least."""
        return _verdict(self.differences, self._margins)

    @property
    def _margins(self) -> npt.NDArray[np.float64]:
        """(n,) the differences from which on an image is not even."""
        return np.maximum(SHARE * np.array([image.labelled for image in self.models[0].images]), 1)

    def ranked(self, *, better: bool) -> list[int]:
        """The images on which the last model is better than the first, or worse, the clearest first; no even ones."""
        gains = self.differences if better else -self.differences
        return [int(i) for i in np.argsort(-gains, kind="stable") if gains[i] >= self._margins[i]]

    @property
    def by_miou(self) -> Verdict:
        """Better: the higher mIoU of the image."""
        first, last = (np.array([image.mIoU for image in model.images]) for model in (self.models[0], self.models[-1]))
        return _verdict(last - first, np.full(len(first), np.finfo(np.float64).tiny))


def _verdict(gains: npt.NDArray[np.float64], margins: npt.NDArray[np.float64]) -> Verdict:
    better, worse = int((gains >= margins).sum()), int((gains <= -margins).sum())
    return Verdict(better, worse, int((~np.isnan(gains)).sum()) - better - worse)


def score(
    predictors: Mapping[str, Predictor], dataset: Dataset, limit: int | None, progress: bool
) -> tuple[Scored, ...]:
    """The results of predictors that differ in their mean shift steps alone, by name; each image is encoded once.

    Raises:
        InputError: as `evaluate`.
    """
    classes, ignore = dataset.labels.names, dataset.labels.ignore
    steps = [predictor.mean_shift_layers for predictor in predictors.values()]
    totals, ignored = np.zeros((len(steps), len(classes), len(classes)), np.int64), 0
    images: list[list[ImageScore]] = [[] for _ in steps]
    reader = next(iter(predictors.values()))
    for sample, maps in image_maps(reader, dataset, steps, limit=limit, progress=progress):
        ignored += int(np.count_nonzero(sample.labels == ignore))
        for place, prediction in enumerate(maps):
            confusion = confusion_matrix(sample.labels, prediction, len(classes), ignore=ignore)
            totals[place] += confusion
            images[place].append(ImageScore.of(confusion))
    return tuple(
        Scored(
            name,
            predictor,
            Result(total, classes, protocol_of(predictor, dataset, limit=limit), ignored=ignored),
            tuple(scores),
        )
        for (name, predictor), total, scores in zip(predictors.items(), totals, images, strict=True)
    )


def choose(differences: npt.NDArray[np.float64], pick: int) -> list[Choice]:
    """The `pick` images of the largest, the middle and the smallest difference, no image twice.

    Images without a difference are passed over; equal differences are ranked in the order of the data set. With fewer
    than 3 × `pick` images all are shown: the better third as best, the worse as worst, the rest as median.
    """
    ranked = [int(i) for i in np.argsort(-differences, kind="stable") if not math.isnan(differences[i])]
    best = min(pick, math.ceil(len(ranked) / 3))
    worst = min(pick, math.ceil((len(ranked) - best) / 2))
    between = ranked[best : len(ranked) - worst]
    start = max((len(between) - pick) // 2, 0)
    groups = {
        "best": ranked[:best],
        "median": between[start : start + pick],
        "worst": ranked[::-1][:worst],
    }
    return [Choice(index, group, rank) for group, found in groups.items() for rank, index in enumerate(found, 1)]


def find_images(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the images of these names are, each once.

    Raises:
        InputError: a name that no image has, with the nearest one.
    """
    places = {name: index for index, name in reversed(list(enumerate(names)))}
    for name in wanted:
        if name not in places:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"names are such as {', '.join(map(repr, names[:3]))}"
            raise InputError(f"images: {name!r} is none of the {len(names)} compared; {hint}")
    return list(dict.fromkeys(places[name] for name in wanted))
