"""What a run folder, or the folder of a cross-validation, records: configuration, metrics, data, checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from meanshifter.data.datasets import Dataset
from meanshifter.errors import InputError
from meanshifter.evaluation.result import Result
from meanshifter.model.saving import CONFIG, WEIGHTS
from meanshifter.training.config import TrainConfig
from meanshifter.training.data_record import RECORD, DataRecord
from meanshifter.training.folds import FOLDS, MAPS
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.setup import open_data, open_training_data
from meanshifter.training.state import RunFolder
from meanshifter.utils.files import parse_json, read_text

SCORES: Final = ("mIoU", "mAcc", "aAcc")


@dataclass(frozen=True)
class RunRecord:
    """A run, or the runs of a cross-validation, as far as they got."""

    path: Path
    config: TrainConfig
    """Of a cross-validation: without a fold."""
    logs: dict[str, list[dict[str, Any]]]
    """Lines of metrics.jsonl by name of the run: "" for a single one, else "fold 0", …."""
    data: DataRecord | None
    """None if data.json is missing."""

    @classmethod
    def read(cls, path: str | Path) -> RunRecord:
        """Read a run folder, or the folder of a cross-validation.

        Raises:
            InputError: neither, or a file of it is damaged.
        """
        path = Path(path)
        folds = sorted(path.glob("fold*/config.yaml"), key=lambda file: (len(file.parent.name), file.parent.name))
        single = (path / "config.yaml").is_file()
        if not single and not folds:
            raise InputError(
                f"{path}: not a run (no config.yaml); give the folder of a run, the --out of `meanshifter train`"
            )
        runs = {"": path} if single else {f"fold {file.parent.name[4:]}": file.parent for file in folds}
        first = next(iter(runs.values()))
        config = parse_recipe(first / "config.yaml")
        if not single:
            config = replace(config, out=str(path), data=replace(config.data, fold=None))
        record = first / RECORD
        data = DataRecord.read(record) if single and record.is_file() else None
        return cls(path, config, {name: read_lines(run / "metrics.jsonl") for name, run in runs.items()}, data)

    @property
    def is_cross_validation(self) -> bool:
        """Whether the folder holds one run per fold."""
        return "" not in self.logs

    @property
    def steps(self) -> int:
        """Steps done, as far as they are logged; of the fold that got least far in a cross-validation."""
        return min((max((line["step"] for line in lines), default=0) for lines in self.logs.values()), default=0)

    def points(self, key: str) -> dict[str, list[tuple[float, float]]]:
        """(step, value) of a metric by name of the run, without values that were not finite."""
        return {
            name: [(line["step"], float(line[key])) for line in lines if line.get(key) is not None]
            for name, lines in self.logs.items()
        }

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of the evaluations of a single run."""
        return [line for line in self.logs.get("", ()) if "mIoU" in line]

    @property
    def checkpoint(self) -> str | None:
        """ "best", else "last", else None: the checkpoint that there is of a single run."""
        folder = RunFolder(self.path)
        whole = (name for name in ("best", "last") if _is_complete(folder.checkpoint(name)))
        return next(whole, None)

    @property
    def has_model(self) -> bool:
        """Whether there is something to score: a checkpoint, or the label maps of a cross-validation."""
        return (self.path / FOLDS).is_file() if self.is_cross_validation else self.checkpoint is not None

    @property
    def pooled(self) -> Result | None:
        """The pooled scores of a cross-validation that is complete; an InputError if their file is damaged."""
        path = self.path / FOLDS
        if not path.is_file():
            return None
        try:
            return Result.from_dict(parse_json(read_text(path), path)["pooled"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: not the scores of a cross-validation ({error})") from error

    def map_path(self, name: str) -> Path:
        """The out-of-fold label map of a training image of a cross-validation."""
        return self.path / MAPS / f"{name}.png"

    def open_scored(self) -> Dataset:
        """The images that the scores are of: validation images, or all training images of a cross-validation.

        Raises:
            InputError: as `open_data`.
        """
        return open_training_data(self.config)[0] if self.is_cross_validation else open_data(self.config)[1]

    @property
    def training_seconds(self) -> float | None:
        """Time of the logged steps without evaluations, about; None if nothing is logged. Summed over folds."""
        seconds = [_seconds(lines, self.config.crops_per_step) for lines in self.logs.values()]
        return sum(seconds) if any(seconds) else None


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl in the order of their steps, without one that is being written."""
    found = []
    for text in path.read_text("utf-8").splitlines() if path.is_file() else ():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, Mapping) and isinstance(line.get("step"), int):
            found.append(dict(line))
    return sorted(found, key=lambda line: line["step"])


def _is_complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (CONFIG, WEIGHTS))


def _seconds(lines: list[dict[str, Any]], crops: int) -> float:
    """Crops between two lines, over the speed that the second states."""
    total, before = 0.0, 0
    for line in lines:
        speed = line.get("images_per_second")
        if speed is None or not math.isfinite(speed) or speed <= 0:
            continue
        total += (line["step"] - before) * crops / speed
        before = line["step"]
    return total
