"""K-fold cross-validation: one run per fold, its out-of-fold label maps and scores, and the ensemble of its models.

OUT/fold0 … OUT/foldK-1    ordinary run folders, and out_of_fold.json with the scores on the fold
OUT/out_of_fold/NAME.png   every training image, labeled by the model of its fold, which was not trained on it
OUT/folds.json             scores of each fold, their mean and standard deviation, and the pooled scores
OUT/ensemble.json          the models, which `load_model(OUT)` loads as an `Ensemble`

The folds divide the training split, less what matches `data.val_pattern`. The validation split keeps its role in each
run: it chooses checkpoints/best and stops early, and the fold is scored once, with that checkpoint. Without a
validation split (`data.val_split: null`), the fold is also what the run evaluates on; it must then choose nothing, so
the final weights, checkpoints/last, are scored.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from meanshifter.checkpoints.ensemble import Member, write_members
from meanshifter.checkpoints.load import load_segmenter
from meanshifter.data.datasets import Dataset, Sample
from meanshifter.data.labels import Labels
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import protocol_of, sum_counts
from meanshifter.evaluation.metrics import Confusion, confusion_matrix, null
from meanshifter.evaluation.result import Result
from meanshifter.inference.ensemble import model_hash
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.segmentation import Segmentation
from meanshifter.training.budget import read_plan
from meanshifter.training.config import TrainConfig
from meanshifter.training.loop import RESUME_HINT, train_config
from meanshifter.training.parsing import config_of, read_run_config
from meanshifter.training.setup import open_training_data, record_data, resolve
from meanshifter.training.state import RunFolder, is_leftover
from meanshifter.utils.distributed import Processes, create_fabric, launch
from meanshifter.utils.files import dump_json, parse_json, read_text, write_text

MAPS: Final = "out_of_fold"
SCORES: Final = "out_of_fold.json"
FOLDS: Final = "folds.json"
MEASURES: Final = ("mIoU", "mAcc", "aAcc")


@dataclass(frozen=True)
class CrossValidation:
    """The outcome of a cross-validation."""

    path: Path
    """The folder; `load_model(path)` loads the models of all folds as an ensemble."""
    folds: tuple[Result, ...]
    """Scores of each fold, by the model that was not trained on it."""
    pooled: Result
    """Scores of all out-of-fold label maps together, from a single confusion matrix."""
    checkpoint: str
    """The checkpoint of each run that was scored: best, on the validation split, or last."""
    seconds: float
    """Wall time of this process; without earlier, resumed parts."""
    is_main_process: bool
    """Whether this process wrote the folder."""

    def mean(self, measure: str = "mIoU") -> float:
        """Mean of a measure ("mIoU", "mAcc" or "aAcc") over the folds, in percent."""
        values: list[float] = [getattr(result, measure) for result in self.folds]
        return statistics.fmean(values)

    def sd(self, measure: str = "mIoU") -> float:
        """Standard deviation over the folds, with one degree of freedom less than folds, in points."""
        values: list[float] = [getattr(result, measure) for result in self.folds]
        return statistics.stdev(values)

    def table(self) -> str:
        """A Markdown table of the folds, their mean and standard deviation, and the pooled scores with the protocol."""
        lines = ["| fold      | images |         mIoU |         mAcc |         aAcc |"]
        lines.append("| --------- | -----: | -----------: | -----------: | -----------: |")
        for k, result in enumerate(self.folds):
            lines.append(_row(str(k), result.protocol.images, [f"{getattr(result, name):.2f}" for name in MEASURES]))
        spread = [f"{self.mean(name):.2f} ± {self.sd(name):.2f}" for name in MEASURES]
        lines.append(_row("mean ± sd", None, spread))
        pooled = [f"{getattr(self.pooled, name):.2f}" for name in MEASURES]
        lines.append(_row("pooled", self.pooled.protocol.images, pooled))
        return "\n".join([*lines, "", f"{self.pooled.protocol}; checkpoints/{self.checkpoint} of each fold"])

    def __str__(self) -> str:
        """`table`."""
        return self.table()

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return {
            "checkpoint": self.checkpoint,
            "mean": {name: null(self.mean(name)) for name in MEASURES},
            "sd": {name: null(self.sd(name)) for name in MEASURES},
            "pooled": self.pooled.to_dict(),
            "folds": [result.to_dict() for result in self.folds],
        }


def _row(name: str, images: int | None, scores: Sequence[str]) -> str:
    count = "" if images is None else f"{images:,}"
    return f"| {name:<9} | {count:>6} | {' | '.join(f'{score:>12}' for score in scores)} |"


def cross_validate(
    data: str | Path | Mapping[str, Any] | TrainConfig | None = None,
    *,
    folds: int | None = None,
    fold_groups: str | None = None,
    recipe: str | Path = "folder",
    resume: bool = False,
    quiet: bool = False,
    **fields: Any,
) -> CrossValidation:
    """Train one model per fold of the training images, and score each on the fold that it was not trained on.

    Runs are trained one after the other, with the same seed: they differ only in their images. With `minutes`, the
    first run is timed, and all of them have its number of steps.

    Args:
        data: as for `train`.
        folds: `data.folds`; None: as in the recipe.
        fold_groups: `data.fold_groups`; None: as in the recipe.
        recipe: as for `train`.
        resume: continue in the folder: finished folds are kept, and the one that was stopped is resumed exactly.
        quiet: show no progress.
        **fields: as for `train`; `out` is the folder of the cross-validation.

    Raises:
        InputError: the configuration or the data are invalid, or a run in the folder has other settings; raised before
            training.
        RunError, KeyboardInterrupt: as `train`.
    """
    began = time.perf_counter()
    if isinstance(data, TrainConfig):
        config = data
    else:
        given = {"data.folds": folds, "data.fold_groups": fold_groups}
        fields = {**fields, **{name: value for name, value in given.items() if value is not None}}
        config = config_of(data, recipe, fields)
    if config.data.folds is None or config.data.fold is not None:
        raise InputError(
            f"data.folds: {config.data.folds} with data.fold {config.data.fold}; cross-validation needs a number of "
            "folds, and no single one"
        )
    return _Folds(config, config.data.folds, quiet=quiet).run(began, resume=resume)


class _Folds:
    """The runs of a cross-validation."""

    def __init__(self, config: TrainConfig, count: int, *, quiet: bool) -> None:
        self.config, self.count, self.quiet = config, count, quiet
        self.out = Path(str(config.out))
        self.checkpoint = "last" if config.data.val_split is None else "best"

    def run(self, began: float, *, resume: bool) -> CrossValidation:
        self.check(resume=resume)
        results, processes = [], None
        for k in range(self.count):
            result = self.finished(k)
            if result is None:
                result, processes = self.train(k)
            results.append(result)
        if processes is None:  # only this one, unless torchrun or SLURM started others
            config = self.fold_config(0)
            processes = launch(
                create_fabric(accelerator=config.accelerator, devices=config.devices, num_nodes=config.num_nodes)
            )
        seconds = time.perf_counter() - began
        done = CrossValidation(
            self.out, tuple(results), self.pooled(results), self.checkpoint, seconds, processes.is_main
        )
        processes.broadcast(lambda: self.write(done))
        return done

    def folder(self, k: int) -> Path:
        return self.out / f"fold{k}"

    def fold_config(self, k: int) -> TrainConfig:
        """The configuration of one run, with the number of steps of the first one if that was timed."""
        config = self.config
        if config.minutes is not None and self.started(0):
            config = read_plan(replace(config, out=str(self.folder(0))))
        return resolve(replace(config, out=str(self.folder(k)), data=replace(config.data, fold=k)))

    def started(self, k: int) -> bool:
        return (self.folder(k) / "config.yaml").is_file()

    def check(self, *, resume: bool) -> None:
        """Check, without writing, that all runs can start or resume."""
        started = [k for k in range(self.count) if self.started(k)]
        files = (path for path in self.out.rglob("*") if not path.is_dir() and not is_leftover(path))
        if not resume and next(files, None) is not None:
            raise InputError(
                f"{self.out}: already exists; continue it with --resume, or choose another folder with --out"
            )
        if resume and not started:
            raise InputError(f"{self.out}: no folds to resume (no fold0/config.yaml); leave --resume out")
        for k in range(self.count):
            config = self.fold_config(k)
            RunFolder(self.folder(k)).check(config, record_data(config), resume=k in started)
            if k in started:
                self.check_evaluation(k, config)

    def check_evaluation(self, k: int, config: TrainConfig) -> None:
        """Refuse other evaluation settings, which a single run may change, as they change scores of finished folds."""
        stored, now = read_run_config(self.folder(k))["evaluation"], asdict(config.evaluation)
        changed = [name for name, value in now.items() if stored.get(name) != value]
        if changed:
            name = changed[0]
            raise InputError(
                f"{self.folder(k)}: evaluation.{name} is {now[name]!r}, but was {stored.get(name)!r} at the start; "
                "resume with the same fields, or choose another folder with --out"
            )

    def finished(self, k: int) -> Result | None:
        """The scores of a fold whose run is complete and scored with all label maps; None if there is work left."""
        path = self.folder(k) / SCORES
        if not path.is_file():
            return None
        try:
            result = Result.from_dict(parse_json(read_text(path), path)["results"][0])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise InputError(
                f"{path}: not the scores of a fold ({error}); remove it to score the fold again"
            ) from error
        there = all(self.map_path(name).is_file() for name in self.held_out(k).names)
        model = load_segmenter(self.folder(k) / "checkpoints" / self.checkpoint) if there else None
        return None if model is None or model_hash(model) != result.protocol.weights else result

    def held_out(self, k: int) -> Dataset:
        held_out = open_training_data(self.fold_config(k))[1]
        assert held_out is not None  # `fold_config` sets both fields
        return held_out

    def map_path(self, name: str) -> Path:
        return self.out / MAPS / f"{name}.png"

    def train(self, k: int) -> tuple[Result, Processes]:
        """Train or resume one run, and score its fold."""
        trained, learner = train_config(self.fold_config(k), resume=self.started(k), quiet=self.quiet)
        try:
            return self.score(k, learner.fabric.device, learner.processes), learner.processes
        except KeyboardInterrupt as stop:
            stop.args = (f"{trained.path}: interrupted while scoring the fold; {RESUME_HINT}",)
            raise

    def score(self, k: int, device: torch.device, processes: Processes) -> Result:
        """Write the label maps and scores of one fold."""
        config, dataset = self.fold_config(k), self.held_out(k)
        space, K = dataset.label_space, dataset.label_space.num_classes
        model = load_segmenter(self.folder(k) / "checkpoints" / self.checkpoint)
        predictor = Predictor(model, device=device, precision=config.precision, **config.evaluation.reading)

        def count(sample: Sample, maps: list[Labels]) -> Confusion:
            Segmentation(maps[0], sample.image, space).save(self.map_path(sample.name))
            return confusion_matrix(sample.labels, maps[0], K, ignore=space.ignore)

        steps, shown = [predictor.mean_shift_layers], not self.quiet and processes.is_main
        totals, ignored = sum_counts(
            predictor, dataset, steps, (K, K), count, limit=None, processes=processes, progress=shown
        )
        result = Result(totals, space.names, protocol_of(predictor, dataset), ignored=ignored)
        processes.broadcast(lambda: result.save(self.folder(k) / SCORES))
        return result

    def pooled(self, results: Sequence[Result]) -> Result:
        """The scores of all folds together."""
        first, images = results[0], sum(result.protocol.images for result in results)
        protocol = replace(
            first.protocol,
            split=f"{first.protocol.split.rpartition(', fold')[0]}, out of fold ({self.count} folds)",
            images=images,
            images_in_split=images,
            weights="+".join(result.protocol.weights for result in results),
        )
        confusion = np.sum([result.confusion for result in results], axis=0)
        return Result(confusion, first.names, protocol, ignored=sum(result.ignored or 0 for result in results))

    def write(self, done: CrossValidation) -> None:
        data = self.config.data
        settings = {"count": self.count, "groups": data.fold_groups, "seed": self.config.seed}
        document = {"format_version": 1, "division": settings, **done.to_dict()}
        write_text(self.out / FOLDS, dump_json(document, indent=1, ensure_ascii=False))
        paths = [f"{self.folder(k).name}/checkpoints/{self.checkpoint}" for k in range(self.count)]
        members = [Member(path, result.protocol.weights) for path, result in zip(paths, done.folds, strict=True)]
        write_members(self.out, members)
