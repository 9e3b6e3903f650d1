"""The run folder: configuration, metrics, checkpoints, and what a run needs to continue.

config.yaml · metrics.jsonl · events.* · checkpoints/{last,best}/{model.safetensors, config.json}
checkpoints/last/training.safetensors    raw weights, optimiser state, step and best score

Files are renamed into place one by one. Resuming reads training.safetensors alone, predicting the other two, so that
each always finds a whole checkpoint, whenever the run was killed.
"""

from __future__ import annotations

import json
import math
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

from meanshifter.documents import parse_yaml, read_text
from meanshifter.errors import InputError, RunError
from meanshifter.files import write_text
from meanshifter.model.checkpoint import CONFIG, save_model, save_tensors
from meanshifter.model.segmenter import Segmenter
from meanshifter.training.batches import Batch
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

    def check(self, config: TrainConfig, *, resume: bool) -> None:
        """See whether a run can begin there, or with `resume` go on; nothing is written.

        Raises:
            InputError: the folder is taken (without `resume`), or holds no run to continue or another one.
        """
        if resume:
            self._check_same(config)
        elif self.path.exists() and (not self.path.is_dir() or any(p.name != ".lock" for p in self.path.iterdir())):
            raise InputError(f"{self.path}: already exists; --resume continues it, --out DIR starts another run")

    def claim(self, config: TrainConfig, *, resume: bool) -> None:
        """Make the folder this process's own until it ends, or `release`.

        Raises:
            InputError: as `check`, and where another process is training there.
        """
        self.lock.take(f"{self.path}: another process is training there")
        with ExitStack() as undo:
            undo.callback(self.release)
            self.check(config, resume=resume)
            for left in self.path.rglob(".*.tmp"):  # half-written files of a process that was killed
                left.unlink()
            text = yaml.safe_dump({"format_version": FORMAT_VERSION, **config.to_dict()}, sort_keys=False)
            write_text(self.path / "config.yaml", text)
            undo.pop_all()

    def release(self) -> None:
        """Let other processes in."""
        self.lock.drop()

    def _check_same(self, config: TrainConfig) -> None:
        try:
            stored = parse_yaml(read_text(self.path / "config.yaml"), self.path)
        except InputError as error:
            raise InputError(
                f"{self.path}: holds no run to resume (no readable config.yaml); leave --resume out"
            ) from error
        ours = config.to_dict()
        changed = [key for key in _differences(stored, ours) if not key.startswith(FREE)]
        if changed:
            raise InputError(
                f"{self.path}: {', '.join(changed[:3])} differ from its config.yaml; resume with the same fields, "
                "or start another run with --out"
            )
        if (crops := _crops_per_step(stored)) != config.crops_per_step:
            raise InputError(
                f"{self.path}: batch_size × accumulate × devices × num_nodes is {config.crops_per_step}, but the run "
                f"began with {crops} crops a step; keep the product, or start another run with --out"
            )

    def checkpoint(self, name: str) -> Path:
        """The folder of checkpoint "last" or "best"."""
        return self.path / "checkpoints" / name

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
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror}); the run has stopped; make space and go on with --resume"
            ) from error

    def forget_after(self, progress: Progress) -> None:
        """Drop the lines of metrics.jsonl that a run which goes on from there will write again."""
        path = self.path / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text("utf-8").splitlines()
            kept = [line for line in lines if _is_before(line, progress)]
            if kept != lines:
                write_text(path, "".join(f"{line}\n" for line in kept))

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
    try:
        values = json.loads(line)
        step = int(values["step"])
    except (ValueError, KeyError, TypeError):
        return False
    return step < progress.step or (step == progress.step and (progress.scored or "mIoU" not in values))


def _crops_per_step(stored: Any) -> int | None:
    """`TrainConfig.crops_per_step` of a config.yaml."""
    with suppress(KeyError, TypeError):
        product: int = stored["batch_size"] * stored["accumulate"]
        for name in ("devices", "num_nodes"):
            product *= 1 if stored.get(name) is None else stored[name]
        return product
    return None


def _differences(stored: Any, ours: Any, prefix: str = "") -> list[str]:
    if isinstance(stored, dict) and isinstance(ours, dict):
        keys = [*stored, *(key for key in ours if key not in stored)]
        return [
            name for key in keys for name in _differences(stored.get(key), ours.get(key), f"{prefix}.{key}".lstrip("."))
        ]
    return [] if stored == ours else [prefix]


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
