"""The figures of a comparison: a strip for each chosen image, and the page that holds them all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.PngImagePlugin import PngInfo

from meanshifter.data.datasets import Sample
from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.evaluation.confusion import confusion_matrix
from meanshifter.evaluation.result import Result, null
from meanshifter.files import write_beside
from meanshifter.inference.inputs import file_name
from meanshifter.report.page import Page, colorize, ignored_color
from meanshifter.report.strip import Tile, draw_strip, error_map, fitted
from meanshifter.study.image_scores import Choice, Comparison, Scored

WIDTH = 1540
"""Of the page: six pictures side by side stay legible."""


@dataclass(frozen=True, eq=False)
class Figure:
    """One chosen image under all models."""

    choice: Choice
    name: str
    """Of the image."""
    heading: str
    tiles: tuple[Tile, ...]
    """Image, truth, every model's prediction, every model's error map."""
    depth_tiles: tuple[tuple[Tile, ...], ...]
    """For each model with a block, its prediction after each number of mean shift steps."""
    legend: dict[str, Color]
    """The classes in truth or predictions."""
    scores: dict[str, float]
    """mIoU of the image by model."""
    depth_scores: dict[str, dict[int, float]]
    """mIoU of the image by model and number of steps."""

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
            "mIoU": {name: null(value) for name, value in self.scores.items()},
            "mIoU_by_mean_shift_layers": {
                name: {str(steps): null(value) for steps, value in scores.items()}
                for name, scores in self.depth_scores.items()
            },
        }


@dataclass(frozen=True, eq=False)
class _Reading:
    """What one model says about one image, by number of mean shift steps."""

    model: Scored
    maps: dict[int, Labels]
    """(H, W) train ids."""
    results: dict[int, Result]
    depths: tuple[int, ...]
    """The numbers of steps to show; none for a model without the block."""

    @property
    def own(self) -> int:
        """The number of steps that the model is scored with."""
        return self.model.predictor.mean_shift_layers


def figure_of(comparison: Comparison, choice: Choice, depths: Sequence[int]) -> Figure:
    """Predict one chosen image with every model, those with a block also after each of `depths` steps.

    Raises:
        InputError: an image that cannot be read.
    """
    sample, space = comparison.dataset[choice.index], comparison.dataset.labels
    readings = [_read(model, sample, space, depths) for model in comparison.models]
    shown = [sample.labels, *(labels for reading in readings for labels in reading.maps.values())]
    return Figure(
        choice,
        sample.name,
        _heading(comparison, choice),
        (
            Tile(fitted(sample.image, photo=True), "Image"),
            Tile(fitted(colorize(sample.labels, space)), "Truth"),
            *(_prediction(reading, space) for reading in readings),
            *(_errors(reading, sample.labels, space) for reading in readings),
        ),
        tuple(_depth_tiles(reading, space) for reading in readings if reading.depths),
        _legend(shown, space),
        {reading.model.name: reading.results[reading.own].mIoU for reading in readings},
        {
            reading.model.name: {steps: reading.results[steps].mIoU for steps in reading.depths}
            for reading in readings
            if reading.depths
        },
    )


def _read(model: Scored, sample: Sample, space: LabelSpace, depths: Sequence[int]) -> _Reading:
    """The encoder sees the image once."""
    shown = tuple(dict.fromkeys(depths)) if model.predictor.model.has_steps else ()
    steps = list(dict.fromkeys([model.predictor.mean_shift_layers, *shown]))
    maps = dict(zip(steps, model.predictor.label_maps(sample.image, steps), strict=True))
    results = {
        count: Result(
            confusion_matrix(sample.labels, labels, space.num_classes, ignore=space.ignore),
            space.names,
            replace(model.result.protocol, mean_shift_layers=count),
        )
        for count, labels in maps.items()
    }
    return _Reading(model, maps, results, shown)


def _heading(comparison: Comparison, choice: Choice) -> str:
    first, last = comparison.models[0].name, comparison.models[-1].name
    dataset, difference = comparison.dataset, comparison.differences[choice.index]
    where = f"{dataset.names[choice.index]} ({dataset.name} {dataset.split}), {choice.title}"
    if math.isnan(difference):
        return f"{where}: no scored pixel"
    return f"{where}: mIoU of {last} {difference:+.2f} against {first}"


def _prediction(reading: _Reading, space: LabelSpace) -> Tile:
    note = f"mIoU {_number(reading.results[reading.own].mIoU)}"
    return Tile(fitted(colorize(reading.maps[reading.own], space)), reading.model.name, note)


def _errors(reading: _Reading, truth: Labels, space: LabelSpace) -> Tile:
    pixels = fitted(error_map(truth, reading.maps[reading.own], space))
    return Tile(pixels, f"{reading.model.name}: errors", f"wrong {_number(100 - reading.results[reading.own].aAcc)} %")


def _depth_tiles(reading: _Reading, space: LabelSpace) -> tuple[Tile, ...]:
    return tuple(
        Tile(
            fitted(colorize(reading.maps[steps], space)),
            f"{reading.model.name}, {steps} step{'' if steps == 1 else 's'}",
            f"mIoU {_number(reading.results[steps].mIoU)}{', as scored' if steps == reading.own else ''}",
        )
        for steps in reading.depths
    )


def _legend(maps: Iterable[Labels], space: LabelSpace) -> dict[str, Color]:
    """The classes that occur, in the order of the train ids, and ignored pixels."""
    found = set().union(*(np.unique(labels).tolist() for labels in maps))
    entries = {name: space.palette[k] for k, name in enumerate(space.names) if k in found}
    return {**entries, "ignored": ignored_color(space)} if space.ignore in found else entries


def save_strip(figure: Figure, path: Path, protocols: Sequence[str]) -> None:
    """Write a figure as one PNG; the protocols of its scores are in its text chunk "Protocol".

    Raises:
        InputError: the file cannot be written.
    """
    columns = len(figure.tiles)
    rows = [
        row[start : start + columns]
        for row in (figure.tiles, *figure.depth_tiles)
        for start in range(0, len(row), columns)
    ]
    facts = PngInfo()
    facts.add_itxt("Protocol", "\n".join(protocols))
    picture = draw_strip(figure.heading, rows, figure.legend)
    write_beside(path, lambda file: picture.save(file, format="PNG", pnginfo=facts))


def protocols(comparison: Comparison) -> list[str]:
    """A line for each model."""
    return [f"{model.name}: {model.result.protocol}" for model in comparison.models]


def comparison_page(comparison: Comparison, figures: Sequence[Figure]) -> Page:
    """The page: scores over all images, the chosen images from best to worst, and the scores of the classes."""
    dataset, names = comparison.dataset, [model.name for model in comparison.models]
    page = Page(f"{' and '.join(names)} on {dataset.name} {dataset.split}", width=WIDTH)
    page.heading("Scores over all images")
    page.table(*score_table(comparison), caption="In percent")
    page.text(summary(comparison))
    page.code("\n".join(protocols(comparison)))
    page.heading("How to read the pictures")
    page.text(
        "The mIoU of an image is the mean over the classes in its truth or in its prediction (image mIoU above: its "
        "mean over the images; mIoU: from all pixels together). In the error maps, "
        "wrong pixels have the colour of the class predicted there, right pixels are faint and ignored ones grey."
    )
    page.legend(dataset.labels)
    for group, found in groupby(figures, key=lambda figure: figure.choice.group):
        page.heading(_GROUPS[group])
        for figure in found:
            _show(page, figure)
    page.heading("Scores of the classes")
    page.table(["IoU", *names], _class_rows(comparison), caption="In percent, over all images")
    return page


_GROUPS = {
    "best": "Best: the images where the last model is farthest above the first",
    "median": "Median: the middle of the ranking by the difference",
    "worst": "Worst: the images where the difference is smallest, or most below zero",
    "image": "The images that were asked for",
}


def score_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a line per model."""
    rows = [
        [model.name, *map(_number, (model.result.mIoU, model.result.mAcc, model.result.aAcc, _mean(model.images)))]
        for model in comparison.models
    ]
    return ["", "mIoU", "mAcc", "aAcc", "image mIoU"], rows


def summary(comparison: Comparison) -> str:
    """On how many images the last model is above the first, in one sentence."""
    first, last = comparison.models[0].name, comparison.models[-1].name
    differences = comparison.differences[~np.isnan(comparison.differences)]
    if not differences.size:
        return "No image has a scored pixel."
    above, below = int((differences > 0).sum()), int((differences < 0).sum())
    return (
        f"Of {differences.size} images, {last} has the higher mIoU on {above} and {first} on {below}; "
        f"the median difference is {np.median(differences):+.2f}."
    )


def _class_rows(comparison: Comparison) -> list[list[str]]:
    return [
        [name, *(_number(model.result.per_class[name].IoU) for model in comparison.models)]
        for name in comparison.dataset.labels.names
    ]


def _show(page: Page, figure: Figure) -> None:
    page.text(figure.heading)
    for row in (figure.tiles, *figure.depth_tiles):
        captions = [f"{tile.title}, {tile.note}" if tile.note else tile.title for tile in row]
        page.pictures([dict(zip(captions, (tile.pixels for tile in row), strict=True))], columns=len(figure.tiles))


def _mean(values: npt.NDArray[np.float64]) -> float:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else math.nan


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
