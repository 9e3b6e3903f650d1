"""Scores of every image under several models, the images that show their difference best, and figures of those."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL.PngImagePlugin import PngInfo

from meanshifter.analysis.figures import (
    Tile,
    classes_in,
    draw_strip,
    error_map,
    fitted,
)
from meanshifter.analysis.html import colorize
from meanshifter.data.datasets import Dataset, Sample
from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.errors import InputError, did_you_mean
from meanshifter.evaluation.evaluate import image_maps, protocol_of
from meanshifter.evaluation.metrics import Confusion, confusion_matrix, null
from meanshifter.evaluation.result import Result
from meanshifter.inference.predictor import Predictor
from meanshifter.jobs.inputs import file_name
from meanshifter.utils.files import write_atomically

SHARE = 0.001
"""Share of an image's labeled pixels. Classes with fewer do not count in its mIoU, and models whose wrong pixels differ
by fewer are even, so that a few stray pixels decide neither."""


@dataclass(frozen=True)
class ImageScore:
    """The score of one image under one model."""

    labeled: int
    """Pixels with a class in the ground truth."""
    wrong: int
    """Labeled pixels with another prediction."""
    mIoU: float  # noqa: N815
    """In percent, over the classes with at least `SHARE` of the labeled pixels; NaN without any."""

    @classmethod
    def of(cls, confusion: Confusion) -> ImageScore:
        """The score of an image's confusion matrix (K, K), row truth and column prediction."""
        truth, right = confusion.sum(1), confusion.diagonal()
        labeled = int(truth.sum())
        counted = (truth > 0) & (truth >= SHARE * labeled)
        shares = right[counted] / (truth + confusion.sum(0) - right)[counted]
        return cls(labeled, labeled - int(right.sum()), float(100 * shares.mean()) if shares.size else math.nan)

    @property
    def percent(self) -> float:
        """Wrong pixels in percent of the labeled ones; NaN without any."""
        return 100 * self.wrong / self.labeled if self.labeled else math.nan


@dataclass(frozen=True, eq=False)
class Scored:
    """One model and its scores."""

    name: str
    """Name in figures."""
    predictor: Predictor
    result: Result
    """Over all images, as `evaluate` scores them."""
    images: tuple[ImageScore, ...]


@dataclass(frozen=True)
class Choice:
    """An image to show, and why."""

    index: int
    """In the dataset."""
    group: str
    """"best", "median" or "worst" by the difference in wrong pixels, or "image" where it was requested."""
    rank: int
    """In its group, from 1."""

    @property
    def title(self) -> str:
        """Group and rank, for example "best 1"."""
        return f"{self.group} {self.rank}"


class Verdict(NamedTuple):
    """Numbers of labeled images on which the last model is better or worse than the first, or even."""

    better: int
    worse: int
    even: int


@dataclass(frozen=True, eq=False)
class Comparison:
    """The scores of all models on all images, and the images chosen from them."""

    dataset: Dataset
    models: tuple[Scored, ...]
    choices: tuple[Choice, ...] = ()
    num_images: int = 0
    """Images of each kind that are shown."""
    depths: tuple[int, ...] = ()
    """Mean shift steps after which models with a block are shown."""
    steps_of: str = ""
    """The model whose numbers of mean shift steps are compared; empty where models are compared."""

    @property
    def differences(self) -> npt.NDArray[np.float64]:
        """(n,) wrong pixels of the first model minus those of the last, per image; NaN without labeled pixels."""
        pairs = zip(self.models[0].images, self.models[-1].images, strict=True)
        return np.array([first.wrong - last.wrong if last.labeled else math.nan for first, last in pairs])

    @property
    def by_wrong_pixels(self) -> Verdict:
        """Better is fewer wrong pixels, by at least `SHARE` of the labeled ones."""
        return _verdict(self.differences, self._margins)

    @property
    def by_miou(self) -> Verdict:
        """Better is a higher mIoU of the image."""
        first, last = (np.array([image.mIoU for image in model.images]) for model in (self.models[0], self.models[-1]))
        return _verdict(last - first, np.full(len(first), np.finfo(np.float64).tiny))

    @property
    def _margins(self) -> npt.NDArray[np.float64]:
        """(n,) the smallest differences that are not even."""
        return np.maximum(SHARE * np.array([image.labeled for image in self.models[0].images]), 1)

    def ranked(self, *, better: bool) -> list[int]:
        """Images on which the last model is better than the first, or worse, largest difference first."""
        gains = self.differences if better else -self.differences
        return [int(i) for i in np.argsort(-gains, kind="stable") if gains[i] >= self._margins[i]]


def _verdict(gains: npt.NDArray[np.float64], margins: npt.NDArray[np.float64]) -> Verdict:
    better, worse = int((gains >= margins).sum()), int((gains <= -margins).sum())
    return Verdict(better, worse, int((~np.isnan(gains)).sum()) - better - worse)


def score(
    predictors: Mapping[str, Predictor], dataset: Dataset, limit: int | None, progress: bool
) -> tuple[Scored, ...]:
    """Score named predictors that differ only in their mean shift steps; each image is encoded once.

    Raises:
        InputError: as `evaluate`.
    """
    classes, ignore = dataset.label_space.names, dataset.label_space.ignore
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
    scored = []
    for (name, predictor), total, scores in zip(predictors.items(), totals, images, strict=True):
        result = Result(total, classes, protocol_of(predictor, dataset, limit=limit), ignored=ignored)
        scored.append(Scored(name, predictor, result, tuple(scores)))
    return tuple(scored)


def choose(differences: npt.NDArray[np.float64], num_images: int) -> list[Choice]:
    """The `num_images` images of the largest, the middle and the smallest difference, no image twice.

    Images whose difference is NaN are skipped; ties keep the order of the dataset. With fewer than 3 × `num_images`
    images all are shown: the better third as best, the worse third as worst, the rest as median.
    """
    ranked = [int(i) for i in np.argsort(-differences, kind="stable") if not math.isnan(differences[i])]
    best = min(num_images, math.ceil(len(ranked) / 3))
    worst = min(num_images, math.ceil((len(ranked) - best) / 2))
    between = ranked[best : len(ranked) - worst]
    start = max((len(between) - num_images) // 2, 0)
    groups = {
        "best": ranked[:best],
        "median": between[start : start + num_images],
        "worst": ranked[::-1][:worst],
    }
    return [Choice(index, group, rank) for group, found in groups.items() for rank, index in enumerate(found, 1)]


def find_images(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """The indices of the images of these names, each once.

    Raises:
        InputError: an unknown name, with the closest known one.
    """
    places = {name: index for index, name in reversed(list(enumerate(names)))}
    for name in wanted:
        if name not in places:
            hint = did_you_mean(name, names, f"names are such as {', '.join(map(repr, names[:3]))}")
            raise InputError(f"images: {name!r} is not one of the {len(names)} compared; {hint}")
    return list(dict.fromkeys(places[name] for name in wanted))


@dataclass(frozen=True, eq=False)
class Figure:
    """One chosen image under all models."""

    choice: Choice
    name: str
    heading: str
    tiles: tuple[Tile, ...]
    """Image, ground truth, every model's prediction, every model's error map."""
    depth_tiles: tuple[tuple[Tile, ...], ...]
    """For each model with a block, its prediction after each number of mean shift steps."""
    legend: dict[str, Color]
    """The classes in ground truth or predictions."""
    scores: dict[str, ImageScore]
    depth_scores: dict[str, dict[int, ImageScore]]
    """By model and number of steps."""

    @property
    def columns(self) -> int:
        """Pictures in a row: six for two models; with more models, the error maps have a row of their own."""
        models = len(self.scores)
        return len(self.tiles) if models <= 2 else 2 + models

    @property
    def file(self) -> str:
        """Name of the PNG."""
        return f"{self.choice.title.replace(' ', '_')}_{file_name(self.name)}.png"

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON; NaN becomes None."""
        return {
            "name": self.name,
            "group": self.choice.group,
            "rank": self.choice.rank,
            "picture": self.file,
            **_fields(self.scores),
            "by_mean_shift_layers": {
                name: _fields({str(steps): score for steps, score in scores.items()})
                for name, scores in self.depth_scores.items()
            },
        }

    def save(self, path: Path, protocols: Sequence[str]) -> None:
        """Write the figure as a PNG with the protocols of its scores in the text chunk "Protocol".

        Raises:
            InputError: the file cannot be written.
        """
        rows = [
            row[start : start + self.columns]
            for row in (self.tiles, *self.depth_tiles)
            for start in range(0, len(row), self.columns)
        ]
        facts = PngInfo()
        facts.add_itxt("Protocol", "\n".join(protocols))
        picture = draw_strip(self.heading, rows, self.legend)
        write_atomically(path, lambda file: picture.save(file, format="PNG", pnginfo=facts))


def _fields(scores: Mapping[str, ImageScore]) -> dict[str, dict[str, float | None]]:
    return {
        "wrong": {key: score.wrong for key, score in scores.items()},
        "mIoU": {key: null(score.mIoU) for key, score in scores.items()},
    }


@dataclass(frozen=True, eq=False)
class Reading:
    """The predictions of one model for one image, by number of mean shift steps."""

    model: Scored
    maps: dict[int, Labels]
    """(H, W) train ids."""
    scores: dict[int, ImageScore]
    depths: tuple[int, ...]
    """The numbers of steps to show; none for a model without the block."""

    @property
    def own(self) -> int:
        """The number of steps that the model is scored with."""
        return self.model.predictor.mean_shift_layers


def read(comparison: Comparison, sample: Sample) -> list[Reading]:
    """Predict one image with every model, and after each number of steps to show; each model encodes it once."""
    space, readings = comparison.dataset.label_space, []
    for model in comparison.models:
        shown = comparison.depths if model.predictor.model.has_steps and not comparison.steps_of else ()
        steps = list(dict.fromkeys([model.predictor.mean_shift_layers, *shown]))
        maps = dict(zip(steps, model.predictor.label_maps(sample.image, steps), strict=True))
        confusions = {
            count: confusion_matrix(sample.labels, labels, space.num_classes, ignore=space.ignore)
            for count, labels in maps.items()
        }
        scores = {count: ImageScore.of(confusion) for count, confusion in confusions.items()}
        readings.append(Reading(model, maps, scores, shown))
    return readings


def figure_of(comparison: Comparison, choice: Choice, sample: Sample, readings: Sequence[Reading]) -> Figure:
    """The figure of one chosen image."""
    dataset, space = comparison.dataset, comparison.dataset.label_space
    shown = [sample.labels, *(labels for reading in readings for labels in reading.maps.values())]
    where = f"{dataset.names[choice.index]} ({dataset.name} {dataset.split}), {choice.title}"
    predictions, errors = [], []
    for reading in readings:
        name, labels, own = reading.model.name, reading.maps[reading.own], reading.scores[reading.own]
        predictions.append(Tile(fitted(colorize(labels, space)), name, f"mIoU {number(own.mIoU)}"))
        pixels = fitted(error_map(sample.labels, labels, space))
        errors.append(Tile(pixels, f"{name}: errors", f"wrong {number(own.percent)} %"))
    image = Tile(fitted(sample.image, photo=True), "Image")
    truth = Tile(fitted(colorize(sample.labels, space)), "Ground truth")
    with_steps = [reading for reading in readings if reading.depths]
    return Figure(
        choice,
        sample.name,
        f"{where}: {describe(comparison, choice.index)}",
        (image, truth, *predictions, *errors),
        tuple(_depth_tiles(reading, space) for reading in with_steps),
        classes_in(shown, space),
        {reading.model.name: reading.scores[reading.own] for reading in readings},
        {reading.model.name: {steps: reading.scores[steps] for steps in reading.depths} for reading in with_steps},
    )


def _depth_tiles(reading: Reading, label_space: LabelSpace) -> tuple[Tile, ...]:
    return tuple(
        Tile(
            fitted(colorize(reading.maps[steps], label_space)),
            f"{reading.model.name}, {steps} step{'' if steps == 1 else 's'}",
            f"wrong {number(reading.scores[steps].percent)} %, mIoU {number(reading.scores[steps].mIoU)}"
            f"{', as scored' if steps == reading.own else ''}",
        )
        for steps in reading.depths
    )


def describe(comparison: Comparison, index: int) -> str:
    """The scores of one image under the first and the last model, as text."""
    first, last = comparison.models[0], comparison.models[-1]
    a, b = first.images[index], last.images[index]
    if not a.labeled:
        return "no labeled pixel"
    return (
        f"{b.wrong:,} wrong pixels ({number(b.percent)} %) with {last.name}, {a.wrong:,} ({number(a.percent)} %) with "
        f"{first.name}; mIoU {number(b.mIoU)} vs. {number(a.mIoU)}"
    )


def number(value: float) -> str:
    """A score with two digits; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.2f}"
