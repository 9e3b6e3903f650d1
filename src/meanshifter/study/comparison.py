"""Two or more models on the images of one data set: where the last is better than the first, and where it is worse."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
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
from meanshifter.study.comparison_page import Figure, comparison_page, figure_of, protocols, save_strip
from meanshifter.study.image_scores import Choice, Comparison, choose, find_images, score

PAGE, SCORES = "compare.html", "compare.json"
FORMAT_VERSION = 2
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

    Label maps are not kept: a first pass scores every image, a second one reads the chosen ones again.

    Args:
        models: what each is called, and how it is read; two or more.
        dataset: a data set whose classes are those of the models.
        out: folder for the results.
        pick: how many images are shown of each of best, median and worst (see `choose`).
        images: names of the images to show instead.
        depths: mean shift steps (L'_ms) at which the models with a block are shown.
        limit: compare on the first so many images only.
        overwrite: replace an earlier comparison in `out`; other files there stay.
        progress: show bars on standard error, where that is a terminal.

    Raises:
        InputError: fewer than two models; classes that are not the data set's; an argument outside its range; an
            unknown image; a folder that is taken. All of this before an image is read; afterwards a sample that
            cannot be read.
    """
    folder, names = Path(out), list(dataset.names)[: count_images(dataset, limit)]
    _check(models, dataset, pick, depths)
    named = find_images(images, names)
    old = _claim(folder, overwrite)
    scored = tuple(score(name, predictor, dataset, limit, progress) for name, predictor in models.items())
    comparison = Comparison(dataset, scored)
    choices = [Choice(index, "image", rank) for rank, index in enumerate(named, 1)]
    comparison = replace(comparison, choices=tuple(choices or choose(comparison.differences, pick)))
    for path in old:
        path.unlink(missing_ok=True)
    _write(comparison, folder, depths)
    return comparison


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
    if len(models) < 2:
        raise InputError(f"models: {len(models)} given; compare at least 2 of different names")
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
        chosen = json.loads((folder / SCORES).read_text("utf-8"))["chosen"]
        pictures = [folder / Path(entry["picture"]).name for entry in chosen]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder}: holds no earlier comparison (no readable {SCORES}) and is not replaced; use another --out DIR"
        ) from error
    return [folder / PAGE, folder / SCORES, *(path for path in pictures if path.suffix == ".png")]


def _write(comparison: Comparison, folder: Path, depths: Sequence[int]) -> None:
    """Pictures, then scores, then the page, so that a page is there only when all else is."""
    figures: list[Figure] = []
    for choice in comparison.choices:
        figure = figure_of(comparison, choice, depths)
        save_strip(figure, folder / figure.file, protocols(comparison))
        figures.append(figure)
    text = dump_json(_document(comparison, figures), indent=1, ensure_ascii=False)
    write_text(folder / SCORES, text)
    comparison_page(comparison, figures).save(folder / PAGE)


def _document(comparison: Comparison, figures: Sequence[Figure]) -> dict[str, Any]:
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
    }
