"""The figures of a comparison: a strip for each chosen image, and the page that holds them all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL.PngImagePlugin import PngInfo

from meanshifter.data.datasets import Sample
from meanshifter.data.labels import Color, Labels, LabelSpace
from meanshifter.evaluation.confusion import confusion_matrix
from meanshifter.evaluation.result import null
from meanshifter.files import write_beside
from meanshifter.inference.inputs import file_name
from meanshifter.report.page import Page, colorize, ignored_color
from meanshifter.report.strip import Tile, draw_strip, error_map, fitted
from meanshifter.study.image_scores import SHARE, Choice, Comparison, ImageScore, Scored

LEAST = f"{100 * SHARE:g} %"
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
    scores: dict[str, ImageScore]
    """By model."""
    depth_scores: dict[str, dict[int, ImageScore]]
    """By model and number of steps."""

    @property
    def columns(self) -> int:
        """Pictures in a row: six of two models; the error maps of more have a row of their own."""
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


def _fields(scores: Mapping[str, ImageScore]) -> dict[str, dict[str, float | None]]:
    return {
        "wrong": {key: score.wrong for key, score in scores.items()},
        "mIoU": {key: null(score.mIoU) for key, score in scores.items()},
    }


@dataclass(frozen=True, eq=False)
class Reading:
    """What one model says about one image, by number of mean shift steps."""

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
    """One image read by every model, by those with a block also after each of the numbers of steps to show."""
    space, depths = comparison.dataset.labels, () if comparison.steps_of else comparison.depths
    return [_read(model, sample, space, depths) for model in comparison.models]


def figure_of(comparison: Comparison, choice: Choice, sample: Sample, readings: Sequence[Reading]) -> Figure:
    """The figure of one chosen image."""
    space = comparison.dataset.labels
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
        {reading.model.name: reading.scores[reading.own] for reading in readings},
        {
            reading.model.name: {steps: reading.scores[steps] for steps in reading.depths}
            for reading in readings
            if reading.depths
        },
    )


def _read(model: Scored, sample: Sample, space: LabelSpace, depths: tuple[int, ...]) -> Reading:
    """The encoder sees the image once."""
    shown = depths if model.predictor.model.has_steps else ()
    steps = list(dict.fromkeys([model.predictor.mean_shift_layers, *shown]))
    maps = dict(zip(steps, model.predictor.label_maps(sample.image, steps), strict=True))
    scores = {
        count: ImageScore.of(confusion_matrix(sample.labels, labels, space.num_classes, ignore=space.ignore))
        for count, labels in maps.items()
    }
    return Reading(model, maps, scores, shown)


def _heading(comparison: Comparison, choice: Choice) -> str:
    dataset = comparison.dataset
    where = f"{dataset.names[choice.index]} ({dataset.name} {dataset.split}), {choice.title}"
    return f"{where}: {describe(comparison, choice.index)}"


def describe(comparison: Comparison, index: int) -> str:
    """The scores of one image under the first and the last model, in half a sentence."""
    (first, a), (last, b) = (
        (model.name, model.images[index]) for model in (comparison.models[0], comparison.models[-1])
    )
    if not a.labelled:
        return "no labelled pixel"
    return (
        f"{b.wrong:,} wrong pixels ({_number(b.percent)} %) of {last} against {a.wrong:,} ({_number(a.percent)} %) of "
        f"{first}; mIoU {_number(b.mIoU)} against {_number(a.mIoU)}"
    )


def _prediction(reading: Reading, space: LabelSpace) -> Tile:
    note = f"mIoU {_number(reading.scores[reading.own].mIoU)}"
    return Tile(fitted(colorize(reading.maps[reading.own], space)), reading.model.name, note)


def _errors(reading: Reading, truth: Labels, space: LabelSpace) -> Tile:
    pixels = fitted(error_map(truth, reading.maps[reading.own], space))
    return Tile(pixels, f"{reading.model.name}: errors", f"wrong {_number(reading.scores[reading.own].percent)} %")


def _depth_tiles(reading: Reading, space: LabelSpace) -> tuple[Tile, ...]:
    return tuple(
        Tile(
            fitted(colorize(reading.maps[steps], space)),
            f"{reading.model.name}, {steps} step{'' if steps == 1 else 's'}",
            f"wrong {_number(reading.scores[steps].percent)} %, mIoU {_number(reading.scores[steps].mIoU)}"
            f"{', as scored' if steps == reading.own else ''}",
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
    columns = figure.columns
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


def comparison_page(comparison: Comparison, figures: Sequence[Figure], sheets: Sequence[str]) -> Page:
    """The page: scores over all images, the chosen images from best to worst, and the scores of the classes.

    `sheets` is a sentence on each sheet.
    """
    dataset, names = comparison.dataset, [model.name for model in comparison.models]
    what = f"{comparison.steps_of}: {', '.join(names)}" if comparison.steps_of else " and ".join(names)
    page = Page(f"{what} on {dataset.name} {dataset.split}", width=WIDTH)
    page.heading("Scores over all images")
    page.table(*score_table(comparison), caption="In percent")
    page.text(summary(comparison))
    page.code("\n".join(protocols(comparison)))
    page.heading("How to read the pictures")
    page.text(
        "Images are ranked by their wrong pixels: labelled pixels that got another class. The mIoU of an image is the "
        f"mean over the classes that hold at least {LEAST} of its labelled pixels in the truth, so that a few stray "
        "pixels do not decide it (image mIoU above: its mean over the images; mIoU: from all pixels together). In "
        "the error maps, wrong pixels have the colour of the class predicted there, right pixels are faint and "
        "ignored ones grey."
    )
    page.legend(dataset.labels)
    page.heading("Sheets for papers")
    for sentence in sheets:
        page.text(sentence)
    for group, found in groupby(figures, key=lambda figure: figure.choice.group):
        page.heading(_GROUPS[group])
        for figure in found:
            _show(page, figure)
    page.heading("Scores of the classes")
    page.table(["IoU", *names], _class_rows(comparison), caption="In percent, over all images")
    return page


_GROUPS = {
    "best": "Best: the images where the last model has the fewest wrong pixels beside the first",
    "median": "Median: the middle of the ranking by the difference in wrong pixels",
    "worst": "Worst: the images where the last model gains least, or has the most wrong pixels beside the first",
    "image": "The images that were asked for",
}


def score_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a line per model."""
    rows = []
    for model in comparison.models:
        result, of_images = model.result, np.array([image.mIoU for image in model.images])
        scores = (result.mIoU, result.mAcc, result.aAcc, 100 - result.aAcc, _mean(of_images))
        rows.append([model.name, *map(_number, scores)])
    return ["", "mIoU", "mAcc", "aAcc", "wrong pixels", "image mIoU"], rows


def summary(comparison: Comparison) -> str:
    """On how many images the last model is better than the first: by wrong pixels, and by mIoU."""
    first, last = comparison.models[0].name, comparison.models[-1].name
    pixels, miou = comparison.by_wrong_pixels, comparison.by_miou
    bare = sum(not image.labelled for image in comparison.models[0].images)
    if not sum(pixels):
        return f"None of the {bare} images has a labelled pixel."
    return (
        f"Of {sum(pixels)} images, {last} has fewer wrong pixels on {pixels.better} and {first} on {pixels.worse}; on "
        f"{pixels.even} they are less than {LEAST} of the labelled pixels apart. By mIoU, {last} is higher on "
        f"{miou.better} and {first} on {miou.worse}."
        + (f" {bare} more without a labelled pixel are passed over." if bare else "")
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
        page.pictures([dict(zip(captions, (tile.pixels for tile in row), strict=True))], columns=figure.columns)


def _mean(values: npt.NDArray[np.float64]) -> float:
    counted = values[~np.isnan(values)]
    return float(counted.mean()) if counted.size else math.nan


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"
