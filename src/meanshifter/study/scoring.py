"""What a finished training of a study is scored with, and the files that hold its scores."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meanshifter.documents import dump_json
from meanshifter.errors import InputError
from meanshifter.files import write_beside, write_text
from meanshifter.study.counts import ImageCounts, load_counts, save_counts
from meanshifter.study.plan import Cell

SCORES, COUNTS = "scores.json", "confusions.npz"
FORMAT_VERSION = 2
"""Version 1 had no aAcc and mAcc."""
METRICS = ("aAcc", "mAcc", "mIoU")


def has_scores(cell: Cell) -> bool:
    """Whether it was scored, or diverged, in whatever way."""
    return (cell.folder / SCORES).is_file()


def is_finished(cell: Cell, depths: Sequence[int] = (), splits: Sequence[str] = ()) -> bool:
    """Whether its scores are there, with these numbers of steps and splits; or that it diverged."""
    if not has_scores(cell):
        return False
    facts = scores_of(cell)
    if "failure" in facts:
        return True
    wanted = {facts["trained_depth"], *depths} if facts.get("has_steps") else set()
    return (
        facts["format_version"] == FORMAT_VERSION
        and wanted <= set(facts["depths"])
        and set(splits) <= set(facts["images"])
    )


def scores_of(cell: Cell) -> dict[str, Any]:
    """What a finished training left: protocol, scores, parameters; `failure` in their place if it diverged."""
    facts: dict[str, Any] = json.loads((cell.folder / SCORES).read_text("utf-8"))
    return facts | {name: _numbers(facts[name]) for name in (*METRICS, "boundary", "diagnostics") if name in facts}


def _numbers(value: Any) -> Any:
    """Figures as they were before JSON, which has no NaN and holds null for it."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return math.nan if value is None else value


def counts_of(cell: Cell, split: str, depth: int) -> ImageCounts:
    """The confusion matrix of each image."""
    return load_counts(cell.folder / COUNTS, split, depth)


def write_scores(cell: Cell, facts: Mapping[str, Any]) -> None:
    """Note what came of a training, which is finished with that."""
    head = {"format_version": FORMAT_VERSION, "row": cell.row, "seed": cell.seed}
    write_text(cell.folder / SCORES, dump_json({**head, **facts}, indent=1) + "\n")


def score_run(cell: Cell, run: Path, depths: Sequence[int], splits: Sequence[str]) -> dict[str, Any]:
    """Read the last weights out at every depth on every split; the confusion matrix of each image is kept too.

    Depths and splits that were scored before are scored again, so that none is lost.
    """
    from meanshifter.evaluation.diagnosis import boundary_figures, diagnose_model
    from meanshifter.interop.weights import weights_hash
    from meanshifter.model.checkpoint import load_model

    model = load_model(run / "checkpoints" / "last")
    predictor = reader(cell, model)
    before = scores_of(cell) if has_scores(cell) else {}
    own, splits = predictor.mean_shift_layers, list(dict.fromkeys([*before.get("images", ()), *splits]))
    steps = sorted({own, *depths, *before.get("depths", ())}) if model.has_steps else [0]
    counts: dict[str, dict[int, ImageCounts]] = {}
    boundary = {}
    for split in splits:
        counts[split], near = count(predictor, open_split(cell, split), steps, own, cell.config.evaluation.limit)
        boundary[split] = boundary_figures(near)
    write_beside(cell.folder / COUNTS, lambda file: save_counts(file, counts))
    protocol = {**predictor.protocol(), "weights": weights_hash(model)}
    del protocol["mean_shift_layers"]
    return {
        "protocol": protocol,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "has_steps": model.has_steps,
        "trained_depth": own,
        "depths": steps,
        "images": {split: len(by_depth[own]) for split, by_depth in counts.items()},
        **_metrics(counts),
        "boundary": boundary,
        "diagnosed_split": splits[0],
        "diagnostics": diagnose_model(predictor, open_split(cell, splits[0]), max(steps)),
    }


def _metrics(counts: Mapping[str, Mapping[int, ImageCounts]]) -> dict[str, dict[str, list[float]]]:
    """aAcc, mAcc and mIoU: split → a score for each number of steps."""
    from meanshifter.evaluation.confusion import mean_accuracy, mean_iou, pixel_accuracy

    totals = {split: np.stack([each.total() for each in by_depth.values()]) for split, by_depth in counts.items()}
    metrics = dict(zip(METRICS, (pixel_accuracy, mean_accuracy, mean_iou), strict=True))
    return {
        name: {split: metric(total).tolist() for split, total in totals.items()} for name, metric in metrics.items()
    }


def reader(cell: Cell, model: Any) -> Any:
    """What reads images out as the recipe says, a `Predictor`."""
    from meanshifter.inference.predictor import Predictor

    reading = cell.config.evaluation
    return Predictor(
        model,
        window=reading.window,
        stride=reading.stride,
        short_side=reading.short_side,
        long_side=reading.long_side,
        precision=cell.config.precision,
    )


def count(
    predictor: Any, dataset: Any, steps: Sequence[int], own: int, limit: int | None
) -> tuple[dict[int, ImageCounts], Any]:
    """Confusions of each image by number of steps, and those near boundaries after `own` steps (radii, K, K)."""
    from meanshifter.evaluation.confusion import confusion_matrix
    from meanshifter.evaluation.diagnosis import near_boundaries
    from meanshifter.evaluation.evaluate import image_maps

    K, ignore = dataset.labels.num_classes, dataset.labels.ignore
    counts, near = {depth: ImageCounts(K) for depth in steps}, 0
    for sample, maps in image_maps(predictor, dataset, list(steps), limit=limit):
        for depth, each in zip(steps, maps, strict=True):
            counts[depth].append(confusion_matrix(sample.labels, each, K, ignore=ignore))
        near = near + near_boundaries(sample.labels, [maps[list(steps).index(own)]], K, ignore)[0]
    return counts, near


def open_split(cell: Cell, split: str) -> Any:
    """The data set that a split of the plan names.

    Raises:
        InputError: as `open_dataset`, and for held-out images where the recipe holds none out.
    """
    from meanshifter.data.catalog import open_dataset
    from meanshifter.data.subset import Subset

    data = cell.config.data
    if split != "held_out":
        return open_dataset(data.name, data.root, split, data.layout)
    if data.hold_out is None:
        raise InputError("splits: held_out, but data.hold_out is null; set it to a pattern such as 0006R0_*")
    return Subset(open_dataset(data.name, data.root, data.train_split, data.layout), data.hold_out, matching=True)
