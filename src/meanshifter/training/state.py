"""The run folder: configuration, metrics, checkpoints, and everything needed to resume.

config.yaml · data.json · metrics.jsonl · events.* · checkpoints/{last,best}/{model.safetensors, config.json}
checkpoints/last/training.safetensors    raw weights, optimizer state, step and best score

Files are replaced atomically, one by one. Resuming reads training.safetensors only, and prediction the other two, so
that each finds a complete checkpoint whenever the run is killed.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from meanshifter.errors import InputError, RunError, summarize_error
from meanshifter.model.config import FORMAT_VERSION
from meanshifter.model.migration import migrate_tensors
from meanshifter.model.saving import CONFIG, WEIGHTS, save_model, save_tensors
from meanshifter.model.segmenter import Segmenter
from meanshifter.training.adapters import frozen_names, without_adapters
from meanshifter.training.config import TrainConfig
from meanshifter.training.data import Batch
from meanshifter.training.data_record import RECORD, DataRecord
from meanshifter.training.optimizer import WeightAverage, group_values
from meanshifter.training.parsing import read_run_config
from meanshifter.training.stored_config import changed_fields, crops_per_step, first_save
from meanshifter.utils.distributed import Processes
from meanshifter.utils.files import Lock, dump_json, write_text

STATE = "training.safetensors"
FREE = (
    *("out", "format_version", "data.root", "data.workers", "data.cache", "accelerator", "evaluation"),
    *(
        "log_every",
        "log_images",
        "loggers",
        "save_every",
        "devices",
        "num_nodes",
        "batch_size",
        "accumulate",
        "gradient_checkpointing",
    ),
)
"""Fields that may differ when a run is resumed: they do not change its weights, as long as a step has as many crops."""


@dataclass
class Progress:
    """How far a run has got."""

    step: int = 0
    """Steps that are done."""
    best: float = -math.inf
    """Best mIoU so far."""
    loss_sum: tuple[float, int] = (0.0, 0)
    """Sum and number of the losses since the last line of the log."""
    scored: bool = True
    """Whether the evaluation that is due after `step` is done."""
    since_best: int = 0
    """Evaluations since the one with the best mIoU, for `evaluation.patience`."""

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """The inverse of `json.dumps(asdict(progress))`."""
        facts = json.loads(text)
        total, count = facts["loss_sum"] if "loss_sum" in facts else facts["tally"]  # its name in format 1
        best, scored = float(facts["best"]), bool(facts.get("scored", True))
        return cls(int(facts["step"]), best, (float(total), int(count)), scored, int(facts.get("since_best", 0)))


@dataclass
class TrainState:
    """What a checkpoint holds of a training, and what resuming restores."""

    model: Segmenter
    """The raw model, whose weights are trained."""
    optimizer: Optimizer
    average: WeightAverage | None
    progress: Progress

    @property
    def evaluated(self) -> Segmenter:
        """The model that is evaluated and saved: the running average if there is one, with adapters merged."""
        return without_adapters(self.model if self.average is None else self.average.average)

    def tensors(self) -> dict[str, Tensor]:
        """Raw weights, optimizer state and average as flat tensors."""
        packed = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        values: dict[str, Any] = {}
        for index, entry in self.optimizer.state_dict()["state"].items():
            _pack(f"optimizer.{index}", entry, packed, values)
        for number, name, value in group_values(self.optimizer):
            _pack(f"optimizer_groups.{number}.{name}", value, packed, values)
        if values:
            packed[VALUES] = torch.frombuffer(bytearray(json.dumps(values, sort_keys=True).encode()), dtype=torch.uint8)
        if self.average is not None:
            averaged, shared = self.average.average.state_dict(), frozen_names(self.model)
            packed |= {f"average.{name}": value for name, value in averaged.items() if name not in shared}
        return packed

    def load(self, packed: Mapping[str, Tensor]) -> None:
        """The inverse of `tensors`; raises torch's errors if they do not fit."""
        self.model.load_state_dict(_part_of(packed, "model."))
        stored = json.loads(bytes(packed[VALUES].tolist())) if VALUES in packed else {}
        found = {**packed, **stored}
        entries: dict[int, dict[str, Any]] = {}
        for key, value in _part_of(found, "optimizer.").items():
            index, name = key.split(".", 1)
            _unpack(name, value, entries.setdefault(int(index), {}))
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": entries})
        for key, value in _part_of(found, "optimizer_groups.").items():
            number, name = key.split(".", 1)
            self.optimizer.param_groups[int(number)][name] = value
        if self.average is not None:
            own, shared = self.average.average.state_dict(), frozen_names(self.model)
            kept = {name: value for name, value in own.items() if name in shared}
            self.average.average.load_state_dict({**kept, **_part_of(packed, "average.")})


VALUES: Final = "optimizer_values"
"""Tensor with the JSON text of what an optimizer keeps that is no tensor, such as novograd's step; absent if nothing
is, as for sgd and adamw."""


def _pack(key: str, value: Any, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Add an entry of an optimizer's state to the tensors or to the other values; None is left out."""
    if isinstance(value, Tensor):
        tensors[key] = value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            _pack(f"{key}.{name}", part, tensors, values)
    elif isinstance(value, list) and any(isinstance(part, Tensor) for part in value):
        _pack(key, {f"[{place}]": part for place, part in enumerate(value)}, tensors, values)
    elif value is not None:
        values[key] = value


def _unpack(name: str, value: Any, entry: dict[str, Any]) -> None:
    """Add what `_pack` made of a part of a parameter's state; tensors of a list are in order."""
    name, bracket, place = name.partition(".[")
    if not bracket:
        entry[name] = value
        return
    parts = entry.setdefault(name, [])
    index = int(place.removesuffix("]"))
    parts.extend([None] * (index + 1 - len(parts)))
    parts[index] = value


def _part_of(packed: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): value for key, value in packed.items() if key.startswith(prefix)}


class RunFolder:
    """A training run on disk. Every file is written atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = Lock(path / ".lock")

    def check(self, config: TrainConfig, data: DataRecord, *, resume: bool) -> None:
        """Check, without writing, that a run can start in the folder, or with `resume` continue from it.

        Raises:
            InputError: the folder exists (without `resume`), holds no run or a different one, lacks its newest
                checkpoint, or the data have changed.
        """
        if resume:
            stored = self._check_same(config)
            self._check_data(data)
            self._check_whole(stored)
        elif self.path.exists() and (not self.path.is_dir() or any(not is_leftover(p) for p in self.path.iterdir())):
            raise InputError(f"{self.path}: already exists; continue it with --resume, or start another run with --out")

    def claim(self, config: TrainConfig, data: DataRecord, *, resume: bool) -> None:
        """Lock the folder for this process until it exits or calls `release`, and `check` it."""
        self.lock.take(f"{self.path}: another process is training in this folder")
        with ExitStack() as undo:
            undo.callback(self.release)
            self.check(config, data, resume=resume)
            for left in self.path.rglob(".*.tmp"):  # partial files of a process that was killed
                left.unlink()
            self.write_config(config)
            if resume:
                self._warn_missing()
            if not (self.path / RECORD).exists():
                write_text(self.path / RECORD, data.to_json())
            undo.pop_all()

    def write_config(self, config: TrainConfig) -> None:
        """Write config.yaml, replacing an old one."""
        text = yaml.safe_dump({"format_version": FORMAT_VERSION, **config.to_dict()}, sort_keys=False)
        write_text(self.path / "config.yaml", text)

    def release(self) -> None:
        """Release the lock."""
        self.lock.drop()

    def _check_same(self, config: TrainConfig) -> dict[str, Any]:
        try:
            stored = read_run_config(self.path)
            if not isinstance(stored, dict):
                raise InputError("not a mapping")
        except InputError as error:
            raise InputError(f"{self.path}: no run to resume (no readable config.yaml); leave --resume out") from error
        changed = [found for found in changed_fields(stored, config.to_dict()) if not found[0].startswith(FREE)]
        changed.sort(key=lambda found: found[0] != "steps")
        listed = "; ".join(f"{name} is {new!r:.60}, but was {old!r:.60} at the start" for name, old, new in changed[:3])
        if "steps" in (name for name, _, _ in changed):
            raise InputError(
                f"{self.path}: {listed}; the learning rate schedule depends on it. To train longer, start another run "
                f"from these weights with --model.init_from {self.path} --out DIR"
            )
        if changed:
            raise InputError(f"{self.path}: {listed}; resume with the same fields, or start another run with --out DIR")
        if (crops := crops_per_step(stored)) != config.crops_per_step:
            raise InputError(
                f"{self.path}: batch_size × accumulate × devices × num_nodes is {config.crops_per_step}, but was "
                f"{crops} at the start; keep the product the same, or start another run with --out"
            )
        if config.loss.is_per_pass and (size := stored.get("batch_size")) != config.batch_size:
            raise InputError(
                f"{self.path}: batch_size is {config.batch_size}, but was {size} at the start; loss.dice, loss.lovasz "
                "and loss.ohem_share depend on the crops of a pass: keep it, and change accumulate or devices"
            )
        return stored

    def _check_data(self, now: DataRecord) -> None:
        path = self.path / RECORD
        changes = DataRecord.read(path).changes(now) if path.exists() else []
        if changes:
            more = "" if len(changes) <= 3 else f"; and {len(changes) - 3} more"
            raise InputError(
                f"{self.path}: the data have changed since the run started: {'; '.join(changes[:3])}{more}; restore "
                f"them, or start another run with --out DIR, from the same weights with --model.init_from {self.path}"
            )

    def _check_whole(self, stored: Mapping[str, Any]) -> None:
        """Reject a run whose newest checkpoint is missing: starting at step 0 would overwrite the rest."""
        path = self.checkpoint("last") / STATE
        if path.is_file():
            return
        left = [self.checkpoint(name) for name in ("best", "last") if self.has(name)]
        first, logged = first_save(stored), [_entry(line) for line in self._lines()]
        proof = [step for step, scored in logged if scored or step > first]
        if left or proof:
            found = f"{left[0]} exists" if left else f"metrics.jsonl reaches step {max(proof)}"
            weights = f", from the weights that are left with --model.init_from {left[0]}" if left else ""
            raise InputError(
                f"{path}: missing, though {found}; restore it from a copy, or start another run with --out DIR{weights}"
            )

    def _warn_missing(self) -> None:
        if not (path := self.path / RECORD).exists():
            warnings.warn(f"{path}: missing; created without checking whether the data have changed", stacklevel=2)
        if not (self.checkpoint("last") / STATE).is_file() and self._lines():
            warnings.warn(f"{self.path}: stopped before its first checkpoint; restarting at step 0", stacklevel=2)

    def checkpoint(self, name: str) -> Path:
        """The folder of checkpoint "last" or "best"."""
        return self.path / "checkpoints" / name

    def has(self, name: str) -> bool:
        """Whether checkpoint "last" or "best" has any model file."""
        return any((self.checkpoint(name) / file).exists() for file in (CONFIG, WEIGHTS))

    def save(self, name: str, model: Segmenter, state: Mapping[str, Tensor] | None = None, **facts: Any) -> None:
        """Replace a checkpoint, file by file; a RunError if it cannot be written, and the old one is kept."""
        folder = self.checkpoint(name)
        try:
            if state is not None:
                save_tensors(folder / STATE, state, {"facts": json.dumps(facts)})
            save_model(model, folder)
        except (InputError, OSError) as error:
            kept = "the previous checkpoint is intact" if (folder / CONFIG).is_file() else "there is no checkpoint yet"
            reason = str(error).split(";")[0]
            raise RunError(f"{reason}; training stopped, {kept}: free some space, then resume with --resume") from error

    def save_last(self, state: TrainState, processes: Processes) -> None:
        """Write checkpoints/last with everything needed to resume; all processes call it, the main process writes."""
        total, count = state.progress.loss_sum
        total = float(processes.sum(torch.tensor(total, dtype=torch.float64)))
        if processes.is_main:
            facts = asdict(replace(state.progress, loss_sum=(total, count)))
            self.save("last", state.evaluated, state.tensors(), **facts)

    def save_best(self, state: TrainState, score: float, processes: Processes) -> None:
        """Write checkpoints/best if no evaluation scored higher."""
        if score >= state.progress.best:
            state.progress.best = score
            if processes.is_main:
                self.save("best", state.evaluated)

    def restore(self, state: TrainState, *, is_main: bool) -> None:
        """Load the newest checkpoint into `state`; unchanged if the run stopped before its first checkpoint.

        If checkpoints/best is missing, the best of the remaining evaluations becomes the best; `is_main` warns.

        Raises:
            InputError: the checkpoint is damaged or does not fit.
        """
        loaded = self.load_state()
        if loaded is None:
            return
        tensors, state.progress = loaded
        try:
            state.load(tensors)
        except (RuntimeError, KeyError, ValueError) as error:
            raise InputError(
                f"{self.checkpoint('last')}: does not fit this configuration ({summarize_error(error)}); start another "
                "run with --out"
            ) from error
        if state.progress.best > -math.inf and not self.has("best"):
            if is_main:
                warnings.warn(
                    f"{self.checkpoint('best')}: missing, though an evaluation scored {state.progress.best:.2f}; "
                    "replaced by the best of the remaining evaluations",
                    stacklevel=2,
                )
            state.progress.best = -math.inf

    def load_state(self) -> tuple[dict[str, Tensor], Progress] | None:
        """Tensors and progress of the newest checkpoint; None if there is none, an InputError if it is damaged."""
        path = self.checkpoint("last") / STATE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                progress = Progress.from_json((file.metadata() or {})["facts"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
                return migrate_tensors(tensors), progress
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            remedy = "restore it from a copy, or start another run with --out"
            raise InputError(f"{path}: damaged ({summarize_error(error)}); {remedy}") from error

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl; a RunError if it cannot be written."""
        path = self.path / "metrics.jsonl"
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(dump_json(line) + "\n")
        except OSError as error:
            reason = summarize_error(error)
            raise RunError(
                f"{path}: cannot be written ({reason}); training stopped: free some space, then resume with --resume"
            ) from error

    def forget_after(self, progress: Progress) -> None:
        """Drop the lines of metrics.jsonl that a run resumed at `progress` writes again, and incomplete ones."""
        lines, kept = self._lines(), []
        for line in lines:
            step, scored = _entry(line)
            if 0 <= step < progress.step or (step == progress.step and (progress.scored or not scored)):
                kept.append(line)
        if len(kept) < len(lines):
            write_text(self.path / "metrics.jsonl", "".join(f"{line}\n" for line in kept))

    def _lines(self) -> list[str]:
        path = self.path / "metrics.jsonl"
        return path.read_text("utf-8").splitlines() if path.is_file() else []

    def keep_batch(self, step: int, parts: Sequence[Batch], rank: int) -> Path:
        """Save the crops of a loss or gradient that is not finite, or their tokens if these are cached.

        The file is named after step and process.
        """
        name = f"step_{step}.safetensors" if rank == 0 else f"step_{step}_process_{rank}.safetensors"
        path = self.path / "nonfinite" / name
        images, labels = (torch.cat([part[i] for part in parts]) for i in (0, 1))  # type: ignore[misc]
        names = [name for part in parts for name in part[2]]
        content = "tokens" if images.ndim == 3 else "images"
        save_tensors(path, {content: images, "labels": labels}, {"names": json.dumps(names)})
        return path


def is_leftover(path: Path) -> bool:
    """Whether a file may be left by a process that was killed before it wrote anything: its lock, or a partial file."""
    return path.name == ".lock" or (path.name.startswith(".") and path.suffix == ".tmp")


def _entry(line: str) -> tuple[int, bool]:
    """Step of a line of metrics.jsonl, and whether it is an evaluation; step -1 for an incomplete line."""
    try:
        values = json.loads(line)
        return int(values["step"]), "mIoU" in values
    except (ValueError, KeyError, TypeError):
        return -1, False
