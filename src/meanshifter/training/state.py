"""The run folder: configuration, metrics, checkpoints, and what a run needs to continue.

config.yaml · metrics.jsonl · events.* · checkpoints/{last,best}/{model.safetensors, config.json}
checkpoints/last/training.safetensors    raw weights, optimiser state, step and best score
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.optim import Optimizer

from meanshifter.documents import parse_yaml, read_text
from meanshifter.errors import InputError
from meanshifter.files import write_text
from meanshifter.model.checkpoint import save_model, save_tensors
from meanshifter.model.segmenter import Segmenter
from meanshifter.training.parsing import FORMAT_VERSION
from meanshifter.training.recipe import TrainConfig

STATE = "training.safetensors"
FREE = (
    *("out", "format_version", "data.root", "data.workers", "data.cache", "accelerator", "evaluation"),
    *("log_every", "save_every"),
)
"""Fields that may differ when a run is resumed: they do not change its weights."""


class RunFolder:
    """One training run on disk. Every file is written beside and renamed into place."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, config: TrainConfig, *, resume: bool) -> RunFolder:
        """A new run folder, or with `resume` the one that is there.

        Raises:
            InputError: the folder is taken (without `resume`), or holds no run to continue or another one.
        """
        run = cls(Path(str(config.out)))
        if resume:
            run._check_same(config)
        elif run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
            raise InputError(f"{run.path}: already exists; --resume continues it, --out DIR starts another run")
        text = yaml.safe_dump({"format_version": FORMAT_VERSION, **config.to_dict()}, sort_keys=False)
        write_text(run.path / "config.yaml", text)
        return run

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

    def checkpoint(self, name: str) -> Path:
        """The folder of checkpoint "last" or "best"."""
        return self.path / "checkpoints" / name

    def save(self, name: str, model: Segmenter, state: Mapping[str, Tensor] | None = None, **facts: Any) -> None:
        """Write a checkpoint as a new folder and put it in the place of the old one."""
        target = self.checkpoint(name)
        beside = target.with_name(f".{name}.new")
        shutil.rmtree(beside, ignore_errors=True)
        save_model(model, beside)
        if state is not None:
            save_tensors(beside / STATE, state, {"facts": json.dumps(facts)})
        old = target.with_name(f".{name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.replace(old)
        beside.replace(target)
        shutil.rmtree(old, ignore_errors=True)

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and facts of the newest whole checkpoint that a run can continue from; None: there is none."""
        for name in ("last", ".last.old"):
            try:
                with safe_open(self.checkpoint(name) / STATE, "pt") as file:
                    facts = json.loads((file.metadata() or {})["facts"])
                    return {key: file.get_tensor(key) for key in file.keys()}, facts  # noqa: SIM118 (no mapping)
            except (OSError, SafetensorError, KeyError, ValueError):
                continue
        return None

    def log(self, line: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the lines of metrics.jsonl that a resumed run from `step` will write again."""
        path = self.path / "metrics.jsonl"
        if path.is_file():
            lines = path.read_text("utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            write_text(path, "".join(f"{line}\n" for line in kept))

    def keep_batch(self, step: int, images: Tensor, labels: Tensor, names: list[str]) -> Path:
        """Write the batch that made the loss not finite."""
        path = self.path / "nonfinite" / f"step_{step}.safetensors"
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


def _step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite for a line that a kill cut off."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


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
