"""Where a run's metrics and validation pictures go beside metrics.jsonl: TensorBoard, Weights & Biases, MLflow.

Each keeps to its own environment variables (WANDB_MODE, WANDB_PROJECT, MLFLOW_TRACKING_URI, …). A logger that fails
later, as a server may, is dropped with a warning: it must not end a training.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from meanshifter.data.datasets import Sample
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.errors import InputError, summarize_error
from meanshifter.inference.segmentation import Segmentation
from meanshifter.utils.environment import require_installed
from meanshifter.utils.files import dump_json, parse_json, read_text, write_text

SIDE: Final = 320
"""Maximum of the longer side of each of the three pictures of an image, in pixels."""
PROJECT: Final = "meanshifter"
"""Project, or experiment, of runs that no environment variable puts into another."""
IDS: Final = "loggers.json"
"""File in the run folder with the id of the run at each logger, so that a resumed run continues there."""
Pixels = npt.NDArray[np.uint8]


class Logger(Protocol):
    """A place for metrics and pictures."""

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record finite metrics of a step."""

    def image(self, name: str, pixels: Pixels, step: int) -> None:
        """Record a picture (H, W, 3)."""

    def close(self, *, complete: bool) -> None:
        """Finish writing; `complete`: the training was neither stopped nor did it fail."""


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, path: Path, step: int) -> None:
        """Events after `step`, from which the run resumes, are no longer shown."""
        self._writer = SummaryWriter(str(path), purge_step=step + 1 if step else None)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Logger`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, pixels: Pixels, step: int) -> None:
        """See `Logger`."""
        self._writer.add_image(name, pixels, step, dataformats="HWC")

    def close(self, *, complete: bool) -> None:
        """See `Logger`."""
        with suppress(OSError):  # a full disk has already been reported
            self._writer.close()


class WandB:
    """Weights & Biases; WANDB_MODE=offline keeps the run in the run folder, for `wandb sync`."""

    def __init__(self, path: Path, settings: Mapping[str, Any], own_id: str | None) -> None:
        import wandb

        self.id = uuid4().hex[:12] if own_id is None else own_id
        project = os.environ.get("WANDB_PROJECT", PROJECT)
        self._image: Any = wandb.Image
        named: dict[str, Any] = {"project": project, "name": path.name, "id": self.id, "dir": str(path)}
        self._run: Any = wandb.init(**named, resume="allow", config=dict(settings))

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Logger`."""
        self._run.log(dict(values), step=step)

    def image(self, name: str, pixels: Pixels, step: int) -> None:
        """See `Logger`."""
        self._run.log({name: self._image(pixels)}, step=step)

    def close(self, *, complete: bool) -> None:
        """See `Logger`."""
        self._run.finish(exit_code=0 if complete else 1)


class MLflow:
    """MLflow, at MLFLOW_TRACKING_URI."""

    def __init__(self, path: Path, settings: Mapping[str, Any], own_id: str | None) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric: Any = Metric
        self._client: Any = MlflowClient()
        if own_id is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            found = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if found is None else found.experiment_id
            self.id = str(self._client.create_run(experiment, run_name=path.name).info.run_id)
            given = [Param(key, str(value)) for key, value in _flat(settings).items()]
            for start in range(0, len(given), 100):  # the most that it takes at once
                self._client.log_batch(self.id, params=given[start : start + 100])
        else:
            self.id = own_id
            self._client.update_run(self.id, status="RUNNING")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """See `Logger`."""
        now = int(1000 * time.time())
        metrics = [self._metric(_mlflow_name(name), value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), 1000):
            self._client.log_batch(self.id, metrics=metrics[start : start + 1000])

    def image(self, name: str, pixels: Pixels, step: int) -> None:
        """See `Logger`."""
        self._client.log_image(self.id, pixels, key=_mlflow_name(name), step=step)

    def close(self, *, complete: bool) -> None:
        """See `Logger`."""
        self._client.set_terminated(self.id, status="FINISHED" if complete else "KILLED")


KINDS: Final[Mapping[str, Callable[..., Any]]] = {"wandb": WandB, "mlflow": MLflow}
"""Loggers beside TensorBoard, by the names of `TrainConfig.loggers`."""


def check_loggers(names: Sequence[str]) -> None:
    """Raise an InputError if the package of a logger is missing."""
    for name in names:
        require_installed(f"loggers {name}", name, name)


class Loggers:
    """All loggers of a run."""

    def __init__(
        self, path: Path, step: int, names: Sequence[str] = (), settings: Mapping[str, Any] | None = None
    ) -> None:
        """`step`: where the run resumes; `settings`: those that other loggers than TensorBoard record.

        Raises:
            InputError: a logger cannot start.
        """
        self._all: dict[str, Logger] = {"tensorboard": TensorBoard(path, step)}
        known = _read_ids(path) if names else {}
        for name in dict.fromkeys(names):
            try:
                self._all[name] = logger = KINDS[name](path, {} if settings is None else settings, known.get(name))
            except Exception as error:  # any of its own, and those of its connection
                self.close(complete=False)
                raise InputError(
                    f"loggers: {name} cannot start ({summarize_error(error)}); log in or set its environment variables "
                    "and use --resume, or leave it out"
                ) from error
            known[name] = logger.id
            write_text(path / IDS, dump_json(known) + "\n")

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Record finite metrics of a step."""
        self._each(lambda logger: logger.scalars(values, step))

    def image(self, name: str, pixels: Pixels, step: int) -> None:
        """Record a picture (H, W, 3)."""
        self._each(lambda logger: logger.image(name, pixels, step))

    def close(self, *, complete: bool) -> None:
        """Finish writing; `complete`: the training was neither stopped nor did it fail."""
        self._each(lambda logger: logger.close(complete=complete))

    def _each(self, act: Callable[[Logger], None]) -> None:
        """Call all loggers; one that fails is dropped, except TensorBoard, whose files are the run's own."""
        for name, logger in list(self._all.items()):
            try:
                act(logger)
            except Exception as error:
                if name == "tensorboard":
                    raise
                del self._all[name]
                warnings.warn(
                    f"loggers: {name} failed and is left out from now on ({summarize_error(error)}); metrics.jsonl and "
                    "TensorBoard have everything",
                    stacklevel=2,
                )


def side_by_side(sample: Sample, prediction: Labels, label_space: LabelSpace) -> Pixels:
    """(h, 3w, 3) a small picture of an image, its labels and its prediction, both drawn over it."""
    H, W = prediction.shape
    scale = min(SIDE / max(H, W), 1)
    size = max(round(W * scale), 1), max(round(H * scale), 1)
    image = np.asarray(Image.fromarray(sample.image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2))
    parts = [image]
    for labels in (sample.labels, prediction):
        small: Any = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST), labels.dtype)
        parts.append(np.asarray(Segmentation(small, image, label_space).overlay(0.7)))
    return np.concatenate(parts, 1)


def _read_ids(path: Path) -> dict[str, str]:
    file = path / IDS
    stored = parse_json(read_text(file), file) if file.is_file() else {}
    return {str(name): str(own) for name, own in stored.items()} if isinstance(stored, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        nested = isinstance(value, Mapping) and value
        found |= _flat(value, f"{prefix}{key}.") if nested else {f"{prefix}{key}": value}
    return found


def _mlflow_name(name: str) -> str:
    """A name with the characters that MLflow takes."""
    return "".join(char if char.isalnum() or char in "_-./ " else "_" for char in name)
