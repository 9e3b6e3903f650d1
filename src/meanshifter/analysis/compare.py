"""Compare models on the images of a dataset: where the last is better than the first, and where it is worse.

A single model with a mean shift block is compared with itself, after several numbers of steps.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from meanshifter.analysis.figures import (
    NO_MATPLOTLIB,
    SheetRow,
    has_matplotlib,
    plain_title,
    save_sheet,
    sheet_files,
    steps_title,
)
from meanshifter.analysis.html import Page
from meanshifter.analysis.image_scores import (
    SHARE,
    Choice,
    Comparison,
    Figure,
    choose,
    figure_of,
    find_images,
    number,
    read,
    score,
)
from meanshifter.data.datasets import Dataset
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import check_classes, count_images, require_dataset
from meanshifter.evaluation.metrics import null
from meanshifter.inference.predictor import Predictor
from meanshifter.jobs.inputs import file_name
from meanshifter.utils.files import dump_json, write_text

PAGE, SCORES = "compare.html", "compare.json"
FORMAT_VERSION = 3
DEPTHS = (0, 1, 2, 3)
"""Mean shift steps (L'_ms) at which models with a block are shown."""
LEAST = f"{100 * SHARE:g} %"
WIDTH = 1540
"""Page width in pixels, at which six pictures in a row stay legible."""


def run_comparison(
    models: Mapping[str, Predictor],
    dataset: Dataset,
    out: str | Path,
    *,
    num_images: int = 3,
    images: Sequence[str] = (),
    depths: Sequence[int] = DEPTHS,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Comparison:
    """Score all models on all images, choose some, and write `compare.html`, `compare.json` and a PNG for each.

    Where matplotlib is installed, the sheets of `plan_sheets` are written too. A single model with a mean shift block
    is compared with itself, after each of `depths` steps. Label maps are not kept: a first pass scores every image, and
    a second one predicts the chosen ones again.

    Args:
        models: name → predictor; two or more, or one with a mean shift block.
        dataset: a dataset with the classes of the models.
        out: folder for the results.
        num_images: number of images shown of each of best, median and worst (see `choose`), and on each sheet.
        images: names of the images to show instead.
        depths: mean shift steps (L'_ms) at which models with a block are shown.
        limit: compare on the first `limit` images only.
        overwrite: replace an earlier comparison in `out`; other files there are kept.
        progress: show bars on standard error, if that is a terminal.

    Raises:
        InputError: fewer than two models, unless it is one with a block and at least two numbers of steps; classes that
            differ from the dataset's; an argument out of range; an unknown image; a folder that is not empty. All of
            this is checked before an image is read; afterwards, a sample that cannot be read.
    """
    folder, names = Path(out), list(dataset.names)[: count_images(dataset, limit)]
    _check(models, dataset, num_images, depths)
    requested = find_images(images, names)
    old = _claim(folder, overwrite)
    depths = tuple(dict.fromkeys(depths))
    steps_of, groups = "", [{name: predictor} for name, predictor in models.items()]
    if len(models) == 1:
        ((steps_of, predictor),) = models.items()
        groups = [{}]
        for steps in depths:
            groups[0][f"L'_ms = {steps}"] = twin = copy(predictor)
            twin.mean_shift_layers = predictor.resolve_layers(steps)
    scored = tuple(model for group in groups for model in score(group, dataset, limit, progress))
    comparison = Comparison(dataset, scored, num_images=num_images, depths=depths, steps_of=steps_of)
    choices = [Choice(index, "image", rank) for rank, index in enumerate(requested, 1)]
    comparison = replace(comparison, choices=tuple(choices or choose(comparison.differences, num_images)))
    for path in old:
        path.unlink(missing_ok=True)
    _write(comparison, folder)
    return comparison


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """The last part of each path, with as many before it as make all differ; equal paths are numbered."""
    parts = [Path(path).resolve().parts for path in paths]
    names = ["/".join(entry[-1:]) for entry in parts]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(entry[-length:]) for entry in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [
        name if names.count(name) == 1 else f"{name} ({names[: place + 1].count(name)})"
        for place, name in enumerate(names)
    ]


def _check(models: Mapping[str, Predictor], dataset: Dataset, num_images: int, depths: Sequence[int]) -> None:
    if not models or (len(models) == 1 and not next(iter(models.values())).model.has_steps):
        raise InputError(
            f"models: {len(models)} given; pass at least 2 with different names, or one with a mean shift block"
        )
    if len(models) == 1 and len(set(depths)) < 2:
        given = ", ".join(map(str, depths)) or "none"
        raise InputError(f"mean_shift_layers: {given} for one model; pass at least 2 numbers of steps")
    if num_images < 1:
        raise InputError(f"num_images: {num_images}; it must be at least 1")
    require_dataset(dataset)
    for name, predictor in models.items():
        check_classes(predictor.model.label_space, dataset.label_space, f"{dataset.name} {dataset.split}", title=name)
        if predictor.model.has_steps:
            for depth in depths:
                predictor.resolve_layers(depth)


def _claim(folder: Path, overwrite: bool) -> list[Path]:
    """Make sure that results can go to `folder`; with `overwrite`, returns the files of an earlier comparison there.

    Raises:
        InputError: other files are there, or the folder cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; choose a folder with --out DIR")
    taken = folder.is_dir() and any(folder.iterdir())
    if taken and not overwrite:
        raise InputError(
            f"{folder}: already exists; choose another folder with --out DIR, or use --overwrite to replace a "
            "comparison in it"
        )
    old = _earlier(folder) if taken else []
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: is not writable; choose another folder with --out DIR")
    return old


def _earlier(folder: Path) -> list[Path]:
    """The files of the comparison in `folder`."""
    try:
        document = json.loads((folder / SCORES).read_text("utf-8"))
        sheets = [name for sheet in document.get("sheets", ()) for name in sheet["files"]]
        pictures = [folder / Path(name).name for name in [*(entry["picture"] for entry in document["chosen"]), *sheets]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder}: not overwritten, since it holds no earlier comparison (no readable {SCORES}); choose another "
            "folder with --out DIR"
        ) from error
    return [folder / PAGE, folder / SCORES, *(path for path in pictures if path.suffix in (".png", ".pdf"))]


def _write(comparison: Comparison, folder: Path) -> None:
    """Write the pictures, then the scores, and the page last, so that it exists only if everything else does."""
    sheets = plan_sheets(comparison) if has_matplotlib() else []
    rows: dict[Sheet, dict[int, SheetRow]] = {sheet: {} for sheet in sheets}
    chosen = {choice.index: choice for choice in comparison.choices}
    figures: list[Figure] = []
    for index in dict.fromkeys([*chosen, *(index for sheet in sheets for index in sheet.indices)]):
        sample = comparison.dataset[index]
        readings = read(comparison, sample)
        if index in chosen:
            figures.append(figure_of(comparison, chosen[index], sample, readings))
            figures[-1].save(folder / figures[-1].file, protocols(comparison))
        by_name = {reading.model.name: reading.maps for reading in readings}
        for sheet in sheets:
            if index in sheet.indices:
                maps = [sample.labels, *(by_name[name][steps] for name, steps in sheet.columns)]
                rows[sheet][index] = SheetRow.of(sample.image, maps)
    for sheet in sheets:
        if sheet.indices:
            ordered, space = [rows[sheet][index] for index in sheet.indices], comparison.dataset.label_space
            save_sheet(folder / sheet.name, sheet.titles, ordered, space, protocols(comparison))
    text = dump_json(_document(comparison, figures, sheets), indent=1, ensure_ascii=False)
    write_text(folder / SCORES, text)
    comparison_page(comparison, figures, describe_sheets(comparison)).save(folder / PAGE)


def _document(comparison: Comparison, figures: Sequence[Figure], sheets: Sequence[Sheet]) -> dict[str, Any]:
    """Plain containers for JSON; NaN becomes None."""
    models, differences = comparison.models, comparison.differences
    images = [
        {
            "name": comparison.dataset.names[index],
            "labeled": scores[0].labeled,
            "wrong": {model.name: image.wrong for model, image in zip(models, scores, strict=True)},
            "mIoU": {model.name: null(image.mIoU) for model, image in zip(models, scores, strict=True)},
            "difference": int(differences[index]) if scores[0].labeled else None,
        }
        for index, scores in enumerate(zip(*(model.images for model in models), strict=True))
    ]
    return {
        "format_version": FORMAT_VERSION,
        "difference": f"wrong pixels of {models[0].name} less those of {models[-1].name}",
        "verdict": {"wrong": comparison.by_wrong_pixels._asdict(), "mIoU": comparison.by_miou._asdict()},
        "models": [{"name": model.name, **model.result.to_dict()} for model in models],
        "images": images,
        "chosen": [figure.to_dict() for figure in figures],
        "sheets": [sheet.to_dict(comparison.dataset.names) for sheet in sheets],
    }


def protocols(comparison: Comparison) -> list[str]:
    """The protocol of each model, a line each."""
    return [f"{model.name}: {model.result.protocol}" for model in comparison.models]


def comparison_page(comparison: Comparison, figures: Sequence[Figure], sheets: Sequence[str]) -> Page:
    """The page: scores over all images, a line on each sheet, the chosen images from best to worst, class scores."""
    dataset, names = comparison.dataset, [model.name for model in comparison.models]
    what = f"{comparison.steps_of}: {', '.join(names)}" if comparison.steps_of else " and ".join(names)
    page = Page(f"{what} on {dataset.name} {dataset.split}", width=WIDTH)
    page.heading("Scores over all images")
    page.table(*score_table(comparison), caption="In percent")
    page.text(summary(comparison))
    page.code("\n".join(protocols(comparison)))
    page.heading("How to read the pictures")
    page.text(
        "Images are ranked by their wrong pixels: labeled pixels that are predicted as another class. The mIoU of an "
        f"image is the mean over the classes that hold at least {LEAST} of its labeled pixels in the ground truth, so "
        "that a few stray pixels do not decide it (image mIoU is the mean of these over the images; mIoU is computed "
        "from the pixels of all images). In the error maps, wrong pixels have the color of the predicted class, "
        "correct pixels are faint, and ignored pixels are gray."
    )
    page.legend(dataset.label_space)
    page.heading("Sheets for papers")
    for sentence in sheets:
        page.text(sentence)
    for group, found in groupby(figures, key=lambda figure: figure.choice.group):
        page.heading(_GROUPS[group])
        for figure in found:
            page.text(figure.heading)
            for row in (figure.tiles, *figure.depth_tiles):
                captions = [f"{tile.title}, {tile.note}" if tile.note else tile.title for tile in row]
                page.pictures([dict(zip(captions, (tile.pixels for tile in row), strict=True))], columns=figure.columns)
    page.heading("Scores of the classes")
    classes = [
        [name, *(number(model.result.per_class[name].IoU) for model in comparison.models)]
        for name in dataset.label_space.names
    ]
    page.table(["IoU", *names], classes, caption="In percent, over all images")
    return page


_GROUPS = {
    "best": "Best: images where the last model has the fewest wrong pixels relative to the first",
    "median": "Median: the middle of the ranking by the difference in wrong pixels",
    "worst": "Worst: images where the last model gains the least, or has the most wrong pixels relative to the first",
    "image": "Requested images",
}


def score_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a line per model."""
    rows = []
    for model in comparison.models:
        result, of_images = model.result, np.array([image.mIoU for image in model.images])
        counted = of_images[~np.isnan(of_images)]
        mean = float(counted.mean()) if counted.size else math.nan
        rows.append([model.name, *map(number, (result.mIoU, result.mAcc, result.aAcc, 100 - result.aAcc, mean))])
    return ["", "mIoU", "mAcc", "aAcc", "wrong pixels", "image mIoU"], rows


def summary(comparison: Comparison) -> str:
    """The numbers of images on which the last model is better than the first: by wrong pixels, and by mIoU."""
    first, last = comparison.models[0].name, comparison.models[-1].name
    pixels, miou = comparison.by_wrong_pixels, comparison.by_miou
    bare = sum(not image.labeled for image in comparison.models[0].images)
    if not sum(pixels):
        return f"None of the {bare} images has a labeled pixel."
    return (
        f"Of {sum(pixels)} images, {last} has fewer wrong pixels on {pixels.better} and {first} on {pixels.worse}; on "
        f"{pixels.even} they differ by less than {LEAST} of the labeled pixels. By mIoU, {last} is higher on "
        f"{miou.better} and {first} on {miou.worse}."
        + (f" Images without a labeled pixel, which are not counted: {bare}." if bare else "")
    )


@dataclass(frozen=True)
class Sheet:
    """A figure for a paper, with one image per row."""

    kind: Literal["better", "worse", "layers"]
    indices: tuple[int, ...]
    """Of the images in the dataset; none where there is nothing to show."""
    columns: tuple[tuple[str, int], ...]
    """Model and mean shift steps of each label map, after image and ground truth."""
    model: str = ""
    """The model whose steps are the columns of a sheet "layers"."""
    suffix: str = ""
    """Of the file name, where several models have a sheet "layers"."""

    @property
    def name(self) -> str:
        """Of its files, without extension."""
        return f"sheet_{self.kind}{self.suffix}"

    @property
    def files(self) -> list[str]:
        """Names of its files; none without an image."""
        return [path.name for path in sheet_files(Path(self.name))] if self.indices else []

    @property
    def titles(self) -> list[str]:
        """Of its columns."""
        steps = self.kind == "layers"
        titles = [steps_title(count) if steps else plain_title(name) for name, count in self.columns]
        return ["Image", "Ground truth", *titles]

    def describe(self) -> str:
        """Its files and what they show, or why there are none."""
        first, last = self.columns[0][0], self.columns[-1][0]
        if self.kind == "layers":
            what, why = f"{self.model} after each number of mean shift steps", "no image has a labeled pixel"
        else:
            what = f"images on which {last} is {self.kind} than {first}"
            why = f"on no image is {last} {self.kind} than {first} by at least {LEAST} of the labeled pixels"
        return f"{', '.join(self.files)}: {what}" if self.indices else f"no {self.name}: {why}"

    def to_dict(self, names: Sequence[str]) -> dict[str, Any]:
        """Plain containers for JSON; `names` are those of all images."""
        images = [names[index] for index in self.indices]
        return {"kind": self.kind, "model": self.model or None, "files": self.files, "images": images}


def describe_sheets(comparison: Comparison) -> list[str]:
    """A line on each sheet of a comparison, or on why it does not exist."""
    if not has_matplotlib():
        return [f"no sheets: {NO_MATPLOTLIB}"]
    return [sheet.describe() for sheet in plan_sheets(comparison)]


def plan_sheets(comparison: Comparison) -> list[Sheet]:
    """The sheets, of `num_images` images each; where images were requested, of all that belong there.

    The steps are shown on the images chosen as best, or on the requested ones.
    """
    shown = tuple(choice.index for choice in comparison.choices if choice.group in ("best", "image"))
    own = tuple((model.name, model.predictor.mean_shift_layers) for model in comparison.models)
    if comparison.steps_of:
        return [Sheet("layers", shown, own, comparison.steps_of)]
    requested = [choice.index for choice in comparison.choices if choice.group == "image"]
    kinds: tuple[Literal["better", "worse"], ...] = ("better", "worse")
    sheets = []
    for kind in kinds:
        ranked = comparison.ranked(better=kind == "better")
        rows = [index for index in requested if index in ranked] if requested else ranked[: comparison.num_images]
        sheets.append(Sheet(kind, tuple(rows), own))
    shifted = [model.name for model in comparison.models if model.predictor.model.has_steps and comparison.depths]
    for name in shifted:
        columns = tuple((name, count) for count in comparison.depths)
        suffix = "" if len(shifted) == 1 else f"_{file_name(name)}"
        sheets.append(Sheet("layers", shown, columns, name, suffix))
    return sheets
