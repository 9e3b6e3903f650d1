"""Two or more models on the images of one data set: where the last is better than the first, and where it is worse.

Or one model with itself, after several numbers of mean shift steps.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from meanshifter.data.datasets import Dataset
from meanshifter.documents import dump_json
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import check_classes, count_images
from meanshifter.evaluation.result import null
from meanshifter.files import write_text
from meanshifter.inference.predictor import Predictor
from meanshifter.report.sheet import SheetRow, has_matplotlib
from meanshifter.study.comparison_page import Figure, comparison_page, figure_of, protocols, read, save_strip
from meanshifter.study.comparison_sheets import Sheet, describe_sheets, plan_sheets, row_of, write_sheet
from meanshifter.study.image_scores import Choice, Comparison, choose, find_images, score

PAGE, SCORES = "compare.html", "compare.json"
FORMAT_VERSION = 3
PICK = 3
DEPTHS = (0, 1, 2, 3)
"""Mean shift steps (L'_ms) at which the models with a block are shown."""


def run_comparison(
    models: Mapping[str, Predictor],
    dataset: Dataset,
    out: str | Path,
    *,
    pick: int = PICK,
    images: Sequence[str] = (),
    depths: Sequence[int] = DEPTHS,
    limit: int | None = None,
    overwrite: bool = False,
    progress: bool = False,
) -> Comparison:
    """Score all models on all images, choose some, and write `compare.html`, `compare.json` and a PNG for each.

    Beside them go the sheets of `comparison_sheets.plan_sheets`, where matplotlib is installed; `describe_sheets` there
    says which. One model with a mean shift block is compared with itself, after each of `depths` steps. Label maps are
    not kept: a first pass scores every image, a second one reads the chosen ones again.

    Args:
        models: what each is called, and how it is read; two or more, or one with a mean shift block.
        dataset: a data set whose classes are those of the models.
        out: folder for the results.
        pick: how many images are shown of each of best, median and worst (see `choose`), and on each sheet.
        images: names of the images to show instead.
        depths: mean shift steps (L'_ms) at which the models with a block are shown.
        limit: compare on the first so many images only.
        overwrite: replace an earlier comparison in `out`; other files there stay.
        progress: show bars on standard error, where that is a terminal.

    Raises:
        InputError: fewer than two models, unless it is one with a block and two numbers of steps or more; classes that
            are not the data set's; an argument outside its range; an unknown image; a folder that is taken. All of
            this before an image is read; afterwards a sample that cannot be read.
    """
    folder, names = Path(out), list(dataset.names)[: count_images(dataset, limit)]
    _check(models, dataset, pick, depths)
    named = find_images(images, names)
    old = _claim(folder, overwrite)
    if len(models) == 1:
        ((steps_of, predictor),) = models.items()
        scored = score(_at_each(predictor, depths), dataset, limit, progress)
    else:
        steps_of = ""
        scored = tuple(
            of_one
            for name, predictor in models.items()
            for of_one in score({name: predictor}, dataset, limit, progress)
        )
    comparison = Comparison(dataset, scored, pick=pick, depths=tuple(dict.fromkeys(depths)), steps_of=steps_of)
    choices = [Choice(index, "image", rank) for rank, index in enumerate(named, 1)]
    comparison = replace(comparison, choices=tuple(choices or choose(comparison.differences, pick)))
    for path in old:
        path.unlink(missing_ok=True)
    _write(comparison, folder)
    return comparison


def _at_each(predictor: Predictor, depths: Sequence[int]) -> dict[str, Predictor]:
    """The predictor with each number of mean shift steps, by what it is called then."""
    found = {}
    for steps in dict.fromkeys(depths):
        found[f"L'_ms = {steps}"] = twin = copy(predictor)
        twin.mean_shift_layers = predictor.resolve_layers(steps)
    return found


def short_names(paths: Sequence[str | Path]) -> list[str]:
    """A name for each path: its last part, with as many before it as tell all apart; equal paths are numbered."""
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


def _check(models: Mapping[str, Predictor], dataset: Dataset, pick: int, depths: Sequence[int]) -> None:
    if not models or (len(models) == 1 and not next(iter(models.values())).model.has_steps):
        raise InputError(
            f"models: {len(models)} given; compare at least 2 of different names, or give one with a mean shift block"
        )
    if len(models) == 1 and len(set(depths)) < 2:
        raise InputError(
            f"mean_shift_layers: {', '.join(map(str, depths)) or 'none'} for one model; give 2 numbers of steps or more"
        )
    if pick < 1:
        raise InputError(f"pick: {pick} images; show at least 1 of each of best, median and worst")
    for predictor in models.values():
        check_classes(predictor.model.labels, dataset.labels, f"{dataset.name} {dataset.split}")
        if predictor.model.has_steps:
            for depth in depths:
                predictor.resolve_layers(depth)


def _claim(folder: Path, overwrite: bool) -> list[Path]:
    """Make sure that results can go to `folder`; with `overwrite`, the files of an earlier comparison there.

    Raises:
        InputError: something else is there, or the folder cannot be written to.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a folder with --out DIR")
    taken = folder.is_dir() and any(folder.iterdir())
    if taken and not overwrite:
        raise InputError(
            f"{folder}: already exists; --out DIR chooses another folder, --overwrite replaces a comparison in it"
        )
    old = _earlier(folder) if taken else []
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written to; choose another --out DIR")
    return old


def _earlier(folder: Path) -> list[Path]:
    """The files that the comparison in `folder` consists of."""
    try:
        document = json.loads((folder / SCORES).read_text("utf-8"))
        sheets = [name for sheet in document.get("sheets", ()) for name in sheet["files"]]
        pictures = [folder / Path(name).name for name in [*(entry["picture"] for entry in document["chosen"]), *sheets]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder}: holds no earlier comparison (no readable {SCORES}) and is not replaced; use another --out DIR"
        ) from error
    return [folder / PAGE, folder / SCORES, *(path for path in pictures if path.suffix in (".png", ".pdf"))]


def _write(comparison: Comparison, folder: Path) -> None:
    """Pictures, then scores, then the page, so that a page is there only when all else is."""
    sheets = plan_sheets(comparison) if has_matplotlib() else []
    rows: dict[Sheet, dict[int, SheetRow]] = {sheet: {} for sheet in sheets}
    chosen = {choice.index: choice for choice in comparison.choices}
    figures: dict[int, Figure] = {}
    for index in dict.fromkeys([*chosen, *(index for sheet in sheets for index in sheet.indices)]):
        sample = comparison.dataset[index]
        readings = read(comparison, sample)
        if index in chosen:
            figures[index] = figure = figure_of(comparison, chosen[index], sample, readings)
            save_strip(figure, folder / figure.file, protocols(comparison))
        for sheet in sheets:
            if index in sheet.indices:
                rows[sheet][index] = row_of(sheet, sample, readings)
    for sheet in sheets:
        write_sheet(comparison, sheet, rows[sheet], folder)
    text = dump_json(_document(comparison, list(figures.values()), sheets), indent=1, ensure_ascii=False)
    write_text(folder / SCORES, text)
    comparison_page(comparison, list(figures.values()), describe_sheets(comparison)).save(folder / PAGE)


def _document(comparison: Comparison, figures: Sequence[Figure], sheets: Sequence[Sheet]) -> dict[str, Any]:
    """Plain containers for JSON; NaN becomes None."""
    models, differences = comparison.models, comparison.differences
    images = [
        {
            "name": comparison.dataset.names[index],
            "labelled": scores[0].labelled,
            "wrong": {model.name: image.wrong for model, image in zip(models, scores, strict=True)},
            "mIoU": {model.name: null(image.mIoU) for model, image in zip(models, scores, strict=True)},
            "difference": int(differences[index]) if scores[0].labelled else None,
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
