"""Scores of the finished trainings of a study, and the files that hold them.

Glossary: I images, K classes.
"""

from __future__ import annotations

import json
import math
from array import array
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from meanshifter.analysis.study_plan import Cell
from meanshifter.analysis.study_training import trained_model
from meanshifter.errors import InputError, summarize_error
from meanshifter.evaluation.metrics import Confusion
from meanshifter.model.presets import Size
from meanshifter.training.setup import open_split
from meanshifter.utils.files import dump_json, write_atomically, write_text

SCORES, COUNTS = "scores.json", "confusions.npz"
FORMAT_VERSION = 2
"""Version 1 had no aAcc and mAcc."""
METRICS = ("aAcc", "mAcc", "mIoU")


def has_scores(cell: Cell) -> bool:
    """Whether it was scored, with any number of steps and splits, or diverged."""
    return (cell.folder / SCORES).is_file()


def is_finished(cell: Cell, depths: Sequence[int] = (), splits: Sequence[str] = ()) -> bool:
    """Whether it was scored with these numbers of steps and splits, or diverged."""
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
    """Load protocol, scores and size of a finished training, or its `failure` if it diverged."""
    facts: dict[str, Any] = json.loads((cell.folder / SCORES).read_text("utf-8"))
    return facts | {name: _numbers(facts[name]) for name in (*METRICS, "boundary", "diagnostics") if name in facts}


def _numbers(value: Any) -> Any:
    """Restore NaN, which JSON has as null."""
    if isinstance(value, dict):
        return {key: _numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return math.nan if value is None else value


def write_scores(cell: Cell, facts: Mapping[str, Any]) -> None:
    """Write the results of a training, which marks it as finished."""
    head = {"format_version": FORMAT_VERSION, "row": cell.row, "seed": cell.seed}
    write_text(cell.folder / SCORES, dump_json({**head, **facts}, indent=1) + "\n")


def score_run(cell: Cell, depths: Sequence[int], splits: Sequence[str]) -> dict[str, Any]:
    """Score `trained_model` with every number of steps on every split, and save each image's confusion matrix.

    Numbers of steps and splits of earlier scores are included, so that none is lost.
    """
    from meanshifter.evaluation.diagnostics import boundary_figures, diagnose_model
    from meanshifter.evaluation.metrics import mean_accuracy, mean_iou, pixel_accuracy
    from meanshifter.inference.ensemble import members_of, model_hash
    from meanshifter.inference.protocol import as_segmenter

    model = trained_model(cell)
    members = members_of(model)
    predictor = reader(cell, model)
    before = scores_of(cell) if has_scores(cell) else {}
    own, splits = predictor.mean_shift_layers, list(dict.fromkeys([*before.get("images", ()), *splits]))
    steps = sorted({own, *depths, *before.get("depths", ())}) if model.has_steps else [0]
    counts: dict[str, dict[int, ImageCounts]] = {}
    boundary = {}
    for split in splits:
        counts[split], near = count(
            predictor, open_split(cell.config.data, split), steps, own, cell.config.evaluation.limit
        )
        boundary[split] = boundary_figures(near)
    write_atomically(cell.folder / COUNTS, lambda file: save_counts(file, counts))
    totals = {split: np.stack([each.total() for each in by_depth.values()]) for split, by_depth in counts.items()}
    metrics = dict(zip(METRICS, (pixel_accuracy, mean_accuracy, mean_iou), strict=True))
    protocol = {**predictor.protocol(), "weights": model_hash(model)}
    del protocol["mean_shift_layers"]
    return {
        "protocol": protocol,
        "parameters": sum(tensor.numel() for member in members for tensor in as_segmenter(member).parameters()),
        "multiply_adds": _multiply_adds(as_segmenter(model)) if len(members) == 1 else None,
        "steps": cell.config.steps,
        "has_steps": model.has_steps,
        "trained_depth": own,
        "depths": steps,
        "images": {split: len(by_depth[own]) for split, by_depth in counts.items()},
        **{
            name: {split: metric(total).tolist() for split, total in totals.items()} for name, metric in metrics.items()
        },
        "boundary": boundary,
        "diagnosed_split": splits[0],
        "diagnostics": []
        if len(members) > 1
        else diagnose_model(predictor, open_split(cell.config.data, splits[0]), max(steps)),
    }


def size_of_folder(folder: Path) -> Size:
    """The parameters and multiply-adds of a saved model at the `image_size` of its configuration."""
    import torch

    from meanshifter.model.saving import read_model_config
    from meanshifter.model.segmenter import Segmenter

    config, labels = read_model_config(folder)
    with torch.device("meta"):
        model = Segmenter(config, labels)
    return size_of_model(model, config.image_size)


def size_of_model(model: Any, image_size: tuple[int, int]) -> Size:
    """The parameters and multiply-adds of a model on the meta device, for an image of (height, width)."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(torch.empty(1, 3, *image_size))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(parameters, counter.get_total_flops() // 2)


def _multiply_adds(model: Any) -> int:
    return size_of_model(deepcopy(model).to("meta"), model.config.image_size).multiply_adds


def reader(cell: Cell, model: Any) -> Any:
    """A `Predictor` with the inference settings of the recipe."""
    from meanshifter.inference.predictor import Predictor

    reading = cell.config.evaluation
    return Predictor(
        model,
        window=reading.window,
        window_stride=reading.window_stride,
        short_side=reading.short_side,
        long_side=reading.long_side,
        precision=cell.config.precision,
    )


def count(
    predictor: Any, dataset: Any, steps: Sequence[int], own: int, limit: int | None
) -> tuple[dict[int, ImageCounts], Any]:
    """Confusion matrices of each image by number of steps, and near boundaries after `own` steps (radii, K, K)."""
    from meanshifter.evaluation.diagnostics import near_boundaries
    from meanshifter.evaluation.evaluate import image_maps
    from meanshifter.evaluation.metrics import confusion_matrix

    K, ignore = dataset.label_space.num_classes, dataset.label_space.ignore
    counts, near = {depth: ImageCounts(K) for depth in steps}, 0
    for sample, maps in image_maps(predictor, dataset, list(steps), limit=limit):
        for depth, each in zip(steps, maps, strict=True):
            counts[depth].append(confusion_matrix(sample.labels, each, K, ignore=ignore))
        near = near + near_boundaries(sample.labels, [maps[list(steps).index(own)]], K, ignore)[0]
    return counts, near


COUNTS_VERSION = 2
"""Version 1 had a dense (depths, images, K, K) array for each split."""


class ImageCounts:
    """Sparse confusion matrices of the images of a split, after one number of mean shift steps.

    An entry is a pair of classes, true × K + predicted, and its number of pixels; `ends` has the end of each image's
    entries. An entry takes 12 bytes, and no image has more entries than pixels.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self._pairs, self._pixels, self._ends = array("I"), array("q"), array("q")

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, confusion: Confusion) -> None:
        """Add the confusion matrix (K, K) of the next image."""
        flat = confusion.reshape(-1)
        places = np.flatnonzero(flat)
        self._pairs.frombytes(places.astype(np.uint32).tobytes())
        self._pixels.frombytes(flat[places].astype(np.int64).tobytes())
        self._ends.append(len(self._pairs))

    def total(self) -> Confusion:
        """(K, K) pixels of all images."""
        total = np.zeros(self.num_classes**2, np.int64)
        np.add.at(total, np.asarray(self._pairs), np.asarray(self._pixels))
        return total.reshape(self.num_classes, self.num_classes)

    def by_class(self) -> npt.NDArray[np.float64]:
        """(3, I, K) pixels of each image per true class, per predicted class, and correct per class."""
        pairs, pixels = np.asarray(self._pairs), np.asarray(self._pixels)
        true, predicted = np.divmod(pairs.astype(np.int64), self.num_classes)
        shape = (len(self), self.num_classes)
        first = np.repeat(np.arange(shape[0]) * self.num_classes, np.diff(np.asarray(self._ends), prepend=0))
        parts = ((true, pixels), (predicted, pixels), (true, np.where(true == predicted, pixels, 0)))
        return np.stack(
            [np.bincount(first + k, weight, minlength=shape[0] * shape[1]).reshape(shape) for k, weight in parts]
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays to save."""
        named = {"pairs": self._pairs, "pixels": self._pixels, "ends": self._ends}
        return {name: np.asarray(values) for name, values in named.items()}

    @classmethod
    def of(cls, num_classes: int, arrays: Mapping[str, npt.NDArray[Any]]) -> ImageCounts:
        """The inverse of `arrays`."""
        counts = cls(num_classes)
        for into, name in ((counts._pairs, "pairs"), (counts._pixels, "pixels"), (counts._ends, "ends")):
            into.frombytes(np.ascontiguousarray(arrays[name]).tobytes())
        return counts


def save_counts(file: IO[bytes], counts: Mapping[str, Mapping[int, ImageCounts]]) -> None:
    """Write counts, by split and number of steps, as an .npz file."""
    parts: dict[str, Any] = {"format_version": COUNTS_VERSION}
    for split, by_depth in counts.items():
        for depth, entry in by_depth.items():
            parts |= {f"{split}/{depth}/{name}": values for name, values in entry.arrays().items()}
            parts[f"{split}/num_classes"] = entry.num_classes
    np.savez_compressed(file, **parts)


def load_counts(path: Path, split: str, depth: int) -> ImageCounts:
    """Load the counts of one split after one number of steps.

    Raises:
        InputError: a file that is missing, damaged or of another version, or lacks them.
    """
    try:
        with np.load(path) as stored:
            if (version := int(stored["format_version"])) != COUNTS_VERSION:
                raise InputError(
                    f"{path}: format_version {version}; this version of meanshifter reads {COUNTS_VERSION}"
                )
            arrays = {name: stored[f"{split}/{depth}/{name}"] for name in ("pairs", "pixels", "ends")}
            return ImageCounts.of(int(stored[f"{split}/num_classes"]), arrays)
    except InputError:
        raise
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise InputError(
            f"{path}: cannot be read ({summarize_error(error)}); delete scores.json in its folder and run the study "
            "again to restore it"
        ) from error
