"""The run folder: configuration, metrics, checkpoints, and what a run needs to continue.

config.yaml · data.json · metrics.jsonl · events.* · checkpoints/{last,best}/{model.safetensors, config.json}
checkpoints/last/training.safetensors    raw weights, optimiser state, step and best score

Files are renamed into place one by one. Resuming reads training.safetensors alone, predicting the other two, so that
each always finds a whole checkpoint, whenever the run was killed.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from meanshifter.documents import dump_json, parse_yaml, read_text
from meanshifter.errors import InputError, RunError
from meanshifter.files import write_text
from meanshifter.model.checkpoint import CONFIG, WEIGHTS, save_model, save_tensors
from meanshifter.model.segmenter import Segmenter
from meanshifter.training.batches import Batch
from meanshifter.training.data_record import RECORD, DataRecord
from meanshifter.training.lock import Lock
from meanshifter.training.parsing import FORMAT_VERSION
from meanshifter.training.recipe import TrainConfig

STATE = "training.safetensors"
FREE = (
    *("out", "format_version", "data.root", "data.workers", "data.cache", "accelerator", "evaluation"),
    *("log_every", "save_every", "devices", "num_nodes", "batch_size", "accumulate"),
)
"""Fields that may differ when a run is resumed: they do not change its weights, as long as a step has as many crops."""


@dataclass
class Progress:
    """How far a run has got."""

    step: int = 0
    """Steps that are done."""
    best: float = -math.inf
    """Best mIoU so far."""
    tally: tuple[float, int] = (0.0, 0)
    """Sum and number of the losses since the last line of the log."""
    scored: bool = True
    """Whether the evaluation that is due after `step` is done."""

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """The inverse of `json.dumps(asdict(progress))`."""
        facts = json.loads(text)
        total, count = facts["tally"]
        best, scored = float(facts["best"]), bool(facts.get("scored", True))
        return cls(int(facts["step"]), best, (float(total), int(count)), scored)


class RunFolder:
    """One training run on disk. Every file is written beside and renamed into place."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = Lock(path / ".lock")

    def check(self, config: TrainConfig, data: DataRecord, *, resume: bool) -> None:
        """See whether a run can begin there, or with `resume` go on; nothing is written.

        Raises:
            InputError: the folder is taken (without `resume`), holds no run to continue or another one, has lost its
                newest checkpoint, or its data have changed.
        """
        if resume:
            stored = self._check_same(config)
            self._check_data(data)
            self._check_whole(stored)
        elif self.path.exists() and (not self.path.is_dir() or any(p.name != ".lock" for p in self.path.iterdir())):
            raise InputError(f"{self.path}: already exists; --resume continues it, --out DIR starts another run")

    def claim(self, config: TrainConfig, data: DataRecord, *, resume: bool) -> None:
        """Make the folder this process's own until it ends, or `release`.

        Raises:
            InputError: as `check`, and where another process is training there.
        """
        self.lock.take(f"{self.path}: another process is training there")
        with ExitStack() as undo:
            undo.callback(self.release)
            self.check(config, data, resume=resume)
            for left in self.path.rglob(".*.tmp"):  # half-written files of a process that was killed
                left.unlink()
            self.write_config(config)
            if resume:
                self._tell_what_is_missing()
            if not (self.path / RECORD).exists():
                write_text(self.path / RECORD, data.to_json())
            undo.pop_all()

    def write_config(self, config: TrainConfig) -> None:
        """Write config.yaml, over an old one.

        Raises:
            InputError: it cannot be written.
        """
        text = yaml.safe_dump({"format_version": FORMAT_VERSION, **config.to_dict()}, sort_keys=False)
        write_text(self.path / "config.yaml", text)

    def release(self) -> None:
        """Let other processes in."""
        self.lock.drop()

    def _check_same(self, config: TrainConfig) -> dict[str, Any]:
        try:
            stored = parse_yaml(read_text(self.path / "config.yaml"), self.path)
            if not isinstance(stored, dict):
                raise InputError("no mapping")
        except InputError as error:
            raise InputError(
                f"{self.path}: holds no run to resume (no readable config.yaml); leave --resume out"
            ) from error
        changed = [found for found in _differences(stored, config.to_dict()) if not found[0].startswith(FREE)]
        changed.sort(key=lambda found: found[0] != "steps")
        told = "; ".join(f"{name} is {new!r:.60}, but the run began with {old!r:.60}" for name, old, new in changed[:3])
        if "steps" in (name for name, _, _ in changed):
            raise InputError(
                f"{self.path}: {told}; the learning rate of each step follows from their number, so --resume keeps "
                f"it: train longer with --model.start {self.path} --out DIR, which begins another run with its weights"
            )
        if changed:
            raise InputError(f"{self.path}: {told}; resume with the same fields, or start another run with --out DIR")
        if (crops := _crops_per_step(stored)) != config.crops_per_step:
            raise InputError(
                f"{self.path}: batch_size × accumulate × devices × num_nodes is {config.crops_per_step}, but the run "
                f"began with {crops} crops a step; keep the product, or start another run with --out"
            )
        return stored

    def _check_data(self, now: DataRecord) -> None:
        path = self.path / RECORD
        changes = DataRecord.read(path).changes(now) if path.exists() else []
        if changes:
            more = "" if len(changes) <= 3 else f"; and {len(changes) - 3} more"
            raise InputError(
                f"{self.path}: the data are not those of the run: {'; '.join(changes[:3])}{more}; put them back, or "
                f"start another run with --out DIR, and with --model.start {self.path} to begin with its weights"
            )

    def _check_whole(self, stored: Mapping[str, Any]) -> None:
        """Refuse a run whose newest checkpoint is gone: one that begins again would write over what is left."""
        path = self.checkpoint("last") / STATE
        if path.is_file():
            return
        left = [self.checkpoint(name) for name in ("best", "last") if self.has(name)]
        first, logged = _first_save(stored), [_entry(line) for line in self._lines()]
        proof = [step for step, scored in logged if scored or step > first]
        if left:
            raise InputError(
                f"{path}: missing, though {left[0]} is there; restore it from a copy, or start another run with "
                f"--out DIR, and with --model.start {left[0]} to begin with these weights"
            )
        if proof:
            raise InputError(
                f"{path}: missing, though metrics.jsonl has got to step {max(proof)}; restore it from a copy, or start "
                "another run with --out DIR"
            )

    def _tell_what_is_missing(self) -> None:
        if not (self.path / RECORD).exists():
            warnings.warn(
                f"{self.path / RECORD}: missing, so whether the data are still those of the run was not compared; "
                "from here on it will be",
                stacklevel=2,
            )
        if not (self.checkpoint("last") / STATE).is_file() and self._lines():
            warnings.warn(f"{self.path}: stopped before its first checkpoint; it begins again at step 0", stacklevel=2)

    def checkpoint(self, name: str) -> Path:
        """The folder of checkpoint "last" or "best"."""
        return self.path / "checkpoints" / name

    def has(self, name: str) -> bool:
        """Whether files of a model are in checkpoint "last" or "best"."""
        return any((self.checkpoint(name) / file).exists() for file in (CONFIG, WEIGHTS))

    def save(self, name: str, model: Segmenter, state: Mapping[str, Tensor] | None = None, **facts: Any) -> None:
        """Write a checkpoint over the old one of that name, each file whole before it replaces another.

        Raises:
            RunError: it cannot be written; the old one is as it was.
        """
        folder = self.checkpoint(name)
        try:
            if state is not None:
                save_tensors(folder / STATE, state, {"facts": json.dumps(facts)})
            save_model(model, folder)
        except (InputError, OSError) as error:
            kept = "the checkpoint before it is whole" if (folder / CONFIG).is_file() else "no checkpoint is there yet"
            reason = str(error).split(";")[0]
            raise RunError(f"{reason}; the run has stopped and {kept}; make space and go on with --resume") from error

    def load_state(self) -> tuple[dict[str, Tensor], Progress] | None:
        """Tensors and progress of the checkpoint that a run continues from; None: there is none.

        Raises:
            InputError: a checkpoint that is damaged.
        """
        path = self.checkpoint("last") / STATE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                progress = Progress.from_json((file.metadata() or {})["facts"])
                return {key: file.get_tensor(key) for key in file.keys()}, progress  # noqa: SIM118 (no mapping)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            text = " ".join(str(error).split())
            raise InputError(
                f"{path}: damaged ({text}); restore it from a copy, or start another run with --out"
            ) from error

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl.

        Raises:
            RunError: it cannot be written.
        """
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(dump_json(line) + "\n")
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror}); the run has stopped; make space and go on with --resume"
            ) from error

    def forget_after(self, progress: Progress) -> None:
        """Drop the lines of metrics.jsonl that a run which goes on from there will write again."""
        lines = self._lines()
        kept = [line for line in lines if _is_before(line, progress)]
        if kept != lines:
            write_text(self.path / "metrics.jsonl", "".join(f"{line}\n" for line in kept))

    def _lines(self) -> list[str]:
        path = self.path / "metrics.jsonl"
        return path.read_text("utf-8").splitlines() if path.is_file() else []

    def keep_batch(self, step: int, parts: Sequence[Batch], rank: int) -> Path:
        """Write the crops with which loss or gradient were not finite; the file is named after step and process."""
        name = f"step_{step}.safetensors" if rank == 0 else f"step_{step}_process_{rank}.safetensors"
        path = self.path / "nonfinite" / name
        images, labels = (torch.cat([part[i] for part in parts]) for i in (0, 1))  # type: ignore[misc]
        names = [name for part in parts for name in part[2]]
        save_tensors(path, {"images": images, "labels": labels}, {"names": json.dumps(names)})
        return path


def recipe_reading(path: str | Path) -> dict[str, Any]:
    """How the run in folder `path` read images out for its scores, as arguments of `Predictor`; empty for no run."""
    try:
        stored = parse_yaml(read_text(Path(path) / "config.yaml"), path)
        reading = {name: stored["evaluation"][name] for name in ("window", "stride", "short_side", "long_side")}
    except (InputError, KeyError, TypeError):
        return {}
    for name, value in reading.items():
        if value is not None and not isinstance(value, int):
            raise InputError(f"{path}: evaluation.{name} of its config.yaml is {value!r:.40}, no number of pixels")
    return reading


def _is_before(line: str, progress: Progress) -> bool:
    """Whether a line of metrics.jsonl stays; one that a kill cut off does not."""
    step, scored = _entry(line)
    return 0 <= step < progress.step or (step == progress.step and (progress.scored or not scored))


def _entry(line: str) -> tuple[int, bool]:
    """Step of a line of metrics.jsonl, and whether it is an evaluation's; step -1 for a line that a kill cut off."""
    try:
        values = json.loads(line)
        return int(values["step"]), "mIoU" in values
    except (ValueError, KeyError, TypeError):
        return -1, False


def _first_save(stored: Mapping[str, Any]) -> float:
    """The step after which a run with this config.yaml has written its first checkpoint."""
    evaluation = stored.get("evaluation")
    every = [
        stored.get("save_every"),
        stored.get("steps"),
        evaluation.get("every") if isinstance(evaluation, dict) else 0,
    ]
    return min((count for count in every if isinstance(count, int) and count > 0), default=math.inf)


def _crops_per_step(stored: Any) -> int | None:
    """`TrainConfig.crops_per_step` of a config.yaml."""
    with suppress(KeyError, TypeError):
        product: int = stored["batch_size"] * stored["accumulate"]
        for name in ("devices", "num_nodes"):
            product *= 1 if stored.get(name) is None else stored[name]
        return product
    return None


def _differences(stored: Any, ours: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """Name, stored and own value of each field that differs."""
    if isinstance(stored, dict) and isinstance(ours, dict):
        keys = [*stored, *(key for key in ours if key not in stored)]
        return [
            found
            for key in keys
            for found in _differences(stored.get(key), ours.get(key), f"{prefix}.{key}".lstrip("."))
        ]
    return [] if stored == ours else [(prefix, stored, ours)]


def pack(model: Segmenter, optimizer: Optimizer) -> dict[str, Tensor]:
    """Raw weights and optimiser state as flat tensors."""
    packed = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            if value is not None:
                packed[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    return packed


def unpack(packed: Mapping[str, Tensor], model: Segmenter, optimizer: Optimizer) -> None:
    """The inverse of `pack`."""
    weights = {key.removeprefix("model."): value for key, value in packed.items() if key.startswith("model.")}
    model.load_state_dict(weights)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in packed.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
