"""Scores of every image under several models, and the images that tell most about their difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import numpy.typing as npt

from meanshifter.data.datasets import Dataset
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import image_confusions, protocol_of
from meanshifter.evaluation.result import Result
from meanshifter.inference.predictor import Predictor


@dataclass(frozen=True, eq=False)
class Scored:
    """One model and its scores."""

    name: str
    """As it is called in figures."""
    predictor: Predictor
    result: Result
    """Over all images, as `evaluate` scores them."""
    images: npt.NDArray[np.float64]
    """(n,) mIoU of each image alone in percent, over the classes in its truth or prediction; NaN where none counts."""


@dataclass(frozen=True)
class Choice:
    """An image to show, and why."""

    index: int
    """In the data set."""
    group: str
    """"best", "median" or "worst" by the difference in mIoU, or "image" where it was named."""
    rank: int
    """In its group, from 1."""

    @property
    def title(self) -> str:
        """Group and rank, for example "best 1"."""
        return f"{self.group} {self.rank}"


@dataclass(frozen=True, eq=False)
class Comparison:
    """The scores of all models on all images, and the images chosen from them."""

    dataset: Dataset
    models: tuple[Scored, ...]
    choices: tuple[Choice, ...] = ()

    @property
    def differences(self) -> npt.NDArray[np.float64]:
        """(n,) per-image mIoU of the last model less that of the first."""
        return self.models[-1].images - self.models[0].images


def score(name: str, predictor: Predictor, dataset: Dataset, limit: int | None, progress: bool) -> Scored:
    """Result and per-image mIoU of one model.

    Raises:
        InputError: as `evaluate`.
    """
    protocol, classes = protocol_of(predictor, dataset, limit=limit), dataset.labels.names
    total, images = np.zeros((len(classes), len(classes)), np.int64), []
    steps = [predictor.mean_shift_layers]
    for (confusion,) in image_confusions(predictor, dataset, steps, limit=limit, progress=progress):
        total += confusion
        images.append(Result(confusion, classes, protocol).mIoU)
    return Scored(name, predictor, Result(total, classes, protocol), np.array(images))


def choose(differences: npt.NDArray[np.float64], pick: int) -> list[Choice]:
    """The `pick` images of the largest, the middle and the smallest difference, no image twice.

    Images without a score are passed over; equal differences are ranked in the order of the data set. With fewer
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
