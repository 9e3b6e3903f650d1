"""How a study trains a row: once, in folds whose models become an ensemble, or twice, with pseudo labels in between."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from meanshifter.analysis.study_plan import PSEUDO, Cell
from meanshifter.data.datasets import Dataset
from meanshifter.data.layout import Pair
from meanshifter.errors import InputError, RunError
from meanshifter.inference.protocol import PatchModel
from meanshifter.training.config import TrainConfig
from meanshifter.training.setup import open_split

MEASURE: Final = "margin"


def is_begun(cell: Cell) -> bool:
    """Whether there are checkpoints to resume from."""
    return any(_has_run(path) for path in (_run(cell), _run(cell) / "fold0", cell.folder / "teacher"))


def train_cell(cell: Cell, splits: Sequence[str]) -> float:
    """Train what is missing of a row with one seed; returns the CPU seconds of this process and its workers.

    `splits` will be scored: no image of them gets pseudo labels.

    Raises:
        InputError, RunError: as `train`, and for a teacher as `label_unused`.
    """
    began = _cpu_seconds()
    if cell.encoder is not None and (cell.teacher is not None or is_cross_validated(cell)):
        raise InputError(f"{cell.row}: encoder: given, but neither folds nor self-training take one; leave it out")
    if cell.teacher is not None:
        _train(cell.teacher)
        label_unused(cell.teacher, cell.folder / PSEUDO, [open_split(cell.config.data, split) for split in splits])
    if is_cross_validated(cell):
        from meanshifter.training.folds import cross_validate

        if not (resume := _has_run(_run(cell) / "fold0")):
            shutil.rmtree(_run(cell), ignore_errors=True)  # of a process that ended before the run began
        cross_validate(cell.config, resume=resume, quiet=True)
    else:
        _train(cell.config, cell.encoder)
    return _cpu_seconds() - began


def trained_model(cell: Cell) -> PatchModel:
    """The model that is scored: last weights, best ones if the row stops early, or the ensemble of all folds."""
    from meanshifter.checkpoints.load import load_model
    from meanshifter.model.saving import read_model

    if is_cross_validated(cell):
        return load_model(_run(cell))
    encoder = None if cell.encoder is None else cell.encoder()
    return read_model(_run(cell) / "checkpoints" / checkpoint(cell.config), encoder=encoder)


def checkpoint(config: TrainConfig) -> str:
    """Which weights are scored: "last", or "best" where validation decides when to stop, or on a model of each fold."""
    if config.evaluation.patience is not None:
        return "best"
    chosen = _has_folds(config) and config.data.val_split is not None  # as `cross_validate` does
    return "best" if chosen and 0 < config.evaluation.interval < config.steps else "last"


def is_cross_validated(cell: Cell) -> bool:
    """Whether a model is trained for every fold."""
    return _has_folds(cell.config)


def _has_folds(config: TrainConfig) -> bool:
    return config.data.folds is not None and config.data.fold is None


def number_of_trainings(cell: Cell) -> int:
    """How many models are trained for a row with one seed."""
    if is_cross_validated(cell):
        return int(str(cell.config.data.folds))
    return 1 if cell.teacher is None else 2


def label_unused(teacher: TrainConfig, folder: Path, scored: Sequence[Dataset]) -> None:
    """Write the label maps and margins that a trained teacher predicts for the images that it was not trained on.

    Images that are also in a dataset that is scored are left out; some datasets have one in two splits.

    Raises:
        RunError: an image cannot be read.
        InputError: a dataset has no files.
    """
    from meanshifter.data.predictions import RECORD, record_predictions
    from meanshifter.inference.predictor import Predictor
    from meanshifter.jobs.archive import label_images
    from meanshifter.jobs.inputs import Job
    from meanshifter.model.saving import read_model
    from meanshifter.training.setup import open_unused_data

    if (folder / RECORD).is_file():
        return
    known = {digest for dataset in scored for digest, _ in _images(dataset)}
    jobs = [
        Job(pair.image, folder / f"{pair.name}.png", None, (folder / "confidence" / MEASURE / f"{pair.name}.png",))
        for digest, pair in _images(open_unused_data(teacher))
        if digest not in known
    ]
    model = read_model(Path(str(teacher.out)) / "checkpoints" / checkpoint(teacher))
    predictor = Predictor(model, confidence=(MEASURE,), precision=teacher.precision, **teacher.evaluation.reading)
    failed = label_images(predictor, [[job] for job in jobs], [predictor.mean_shift_layers], maps=[MEASURE])
    if failed:
        raise RunError(failed[0])
    record_predictions(folder, model.label_space, {job.mask: job.source for job in jobs})


def _images(dataset: Dataset) -> Iterator[tuple[bytes, Pair]]:
    """The content, as a hash, and the files of each sample."""
    for place in range(len(dataset)):
        if (pair := dataset.pair(place)) is None:
            raise InputError(f"{dataset.name}: has no image files to label; self-training needs them")
        yield hashlib.sha256(pair.image.read_bytes()).digest(), pair


def _run(cell: Cell) -> Path:
    return Path(str(cell.config.out))


def _has_run(path: Path) -> bool:
    return (path / "config.yaml").is_file()


def _train(config: TrainConfig, encoder: Callable[[], Any] | None = None) -> None:
    from meanshifter.training.loop import train

    path = Path(str(config.out))
    if not (resume := _has_run(path)):
        shutil.rmtree(path, ignore_errors=True)  # of a process that ended before the run began
    train(config, resume=resume, quiet=True, encoder=None if encoder is None else encoder())


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
