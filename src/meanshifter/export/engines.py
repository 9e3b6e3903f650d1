"""`Predictor(engine=…)`: run a model in another runtime, from an export that is kept, where that is faster than torch.

Which runtime is fastest depends on the processor: OpenVINO took 0.63 times torch's time on one with AVX-512, and
1.14 times on one with AVX2 (docs/benchmarks.md). So `engine="auto"` measures each installed one beside torch on windows
of the predictor's size, and keeps the result per model, machine and size.

Everything is kept in `cache_folder()`, a folder per model: its exports, by format, version and precision, and
`measured.json`. Deleting the folder loses nothing but time.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

import meanshifter
from meanshifter.data.catalog.shapes import MIN_SIDE, Shapes
from meanshifter.errors import InputError, RunError, counted, summarize_error
from meanshifter.export.export import export
from meanshifter.export.runtime import FORMATS, RuntimeModel, load_export
from meanshifter.inference.precision import AUTOCAST, fused_attention_pays
from meanshifter.model.config import ModelConfig
from meanshifter.model.saving import describe, is_export, weights_hash
from meanshifter.model.segmenter import Predicting, Segmenter
from meanshifter.ops import upsampled_argmax
from meanshifter.utils import environment as machine
from meanshifter.utils.environment import install_hint, require_installed
from meanshifter.utils.files import dump_json, parse_json, read_text, write_text
from meanshifter.utils.progress import ProgressBar

if TYPE_CHECKING:
    from meanshifter.inference.resolve import Engine

PACKAGES: Final[dict[str, tuple[str, ...]]] = {
    name: (*FORMATS[name].PACKAGES, *FORMATS[name].WRITING) for name in ("openvino", "onnx")
}
"""The packages that each engine needs to run and to export, the runtime first."""
PRECISIONS: Final = ("fp32", "bf16")
"""Those that both torch and an export may have, and in which activations are not quantized."""
MOST_DIFFERENT: Final = 1e-4
"""Largest share of pixels whose label may differ from torch's in fp32."""
GAIN: Final = 0.97
"""`auto` leaves torch only for an engine with at most this share of its time; smaller gains are noise."""
ROUNDS: Final = 3
NAME: Final = "measured.json"


class UnfitError(InputError):
    """An engine cannot compute the model, now or later, so that a measurement may remember it."""


@dataclass(frozen=True)
class Choice:
    """The engine of a model and, if it was chosen by a measurement, what was measured."""

    engine: str
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds for the windows `shape`, by engine."""
    shape: tuple[int, int, int, int] = (0, 3, 0, 0)
    """(windows, 3, height, width)."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why engines were not considered."""

    def __str__(self) -> str:
        """One line for people."""
        times = {name: seconds / self.seconds["torch"] for name, seconds in self.seconds.items() if name != "torch"}
        measured = ", ".join(f"{name} {ratio:.0%}" for name, ratio in times.items())
        parts = [f"of torch's time for {_named(self.shape)}: {measured}"] if times else []
        parts += [f"{name} {reason}" for name, reason in self.refused.items()]
        return f"engine: {self.engine}" + (f" ({'; '.join(parts)})" if parts else "")


class EngineModel(Predicting):
    """A `Segmenter` as a `PatchModel` whose patch logits another runtime computes.

    torch computes what the runtime cannot: other numbers of mean shift steps, and everything on another device.
    """

    def __init__(self, segmenter: Segmenter, runtime: RuntimeModel, choice: Choice) -> None:
        self.segmenter, self.runtime, self.choice = segmenter, runtime, choice
        self.label_space = segmenter.label_space
        self.output_stride, self.heads = segmenter.output_stride, segmenter.heads
        self.has_steps, self.own_precision = segmenter.has_steps, segmenter.own_precision
        self.fastest_device, self.normalize = "cpu", segmenter.normalize
        self.set_attention, self.state_dict, self.steps = segmenter.set_attention, segmenter.state_dict, segmenter.steps
        self._layers = runtime.steps(None)

    def __call__(self, images: Tensor, mean_shift_layers: int | None = None) -> Tensor:
        """Compute patch logits (B, K, h, w) of normalized images (B, 3, H, W)."""
        return self.logits_at(images, [mean_shift_layers])[0]

    @property
    def config(self) -> ModelConfig:
        """The configuration of the model."""
        return self.segmenter.config

    @config.setter
    def config(self, config: ModelConfig) -> None:
        self.segmenter.config = config

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.segmenter.device

    def engine_for(self, layers: Sequence[int | None]) -> str:
        """What computes the logits after these numbers of mean shift steps: an export has a single one built in."""
        fixed = self.device.type == "cpu" and {self.steps(count) for count in layers} == {self._layers}
        return self.choice.engine if fixed else "torch"

    def logits_at(self, images: Tensor, layers: Sequence[int | None]) -> list[Tensor]:
        """Compute patch logits (B, K, h, w) after each of several numbers of mean shift steps."""
        if self.engine_for(layers) != "torch":
            return self.runtime.logits_at(images, [self._layers] * len(layers))
        return self.segmenter.logits_at(images, layers)

    def evaluation_view(self) -> EngineModel:
        """Return the model with the weights' own module in evaluation mode."""
        return EngineModel(self.segmenter.evaluation_view(), self.runtime, self.choice)

    def to(self, device: Any) -> EngineModel:
        """Move the weights in place; on another device than the CPU, torch computes."""
        self.segmenter.to(device)
        return self


def with_engine(
    model: Segmenter, engine: Engine, *, layers: int, precision: str, shape: tuple[int, int, int, int]
) -> tuple[Segmenter | EngineModel, Choice]:
    """Return a model with the patch logits of `model`, from the engine that is asked for, and which one that is.

    Args:
        model: the model, which is exported once and found again by its weights and configuration.
        engine: "openvino" or "onnx"; "auto": the one that is fastest for `shape`, or torch.
        layers: number of mean shift steps, which an export fixes.
        precision: "fp32", or "bf16" with OpenVINO.
        shape: the windows of one forward pass, (windows, 3, height, width).

    Raises:
        InputError: the engine is not installed, has no such precision, or gives other labels than torch.
    """
    if model.device.type != "cpu":
        if engine == "auto":
            return model, Choice("torch", refused={"others": f"need the CPU, and the model is on {model.device}"})
        raise InputError(f"engine: {engine}, but the model is on {model.device}; use the CPU, or engine torch")
    exports = _Exports(model, layers, precision, shape)
    choice = exports.fastest() if engine == "auto" else Choice(engine)
    if choice.engine == "torch":
        return model, choice
    return EngineModel(model, exports.load(choice.engine), choice), choice


def cache_folder() -> Path:
    """Where exports and measurements are kept: `$XDG_CACHE_HOME/meanshifter/engines`, by default in ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(root) if root else Path.home() / ".cache") / "meanshifter" / "engines"


class _Exports:
    """The exports of one model for one number of mean shift steps, and the measurements with them."""

    def __init__(self, model: Segmenter, layers: int, precision: str, shape: tuple[int, int, int, int]) -> None:
        self._model, self._layers, self._precision, self._shape = model.evaluation_view(), layers, precision, shape
        described = {
            "weights": weights_hash(model.state_dict()),
            "described": describe(model),
            "layers": layers,
            "versions": [meanshifter.__version__, torch.__version__],
        }
        key = hashlib.sha256(dump_json(described).encode()).hexdigest()[:16]
        self._home = cache_folder() / key

    def load(self, engine: str) -> RuntimeModel:
        """The export for an engine, which is written and compared with the model first if it is not there.

        Raises:
            InputError: as `with_engine`.
        """
        if self._model.own_precision is not None:
            raise UnfitError(
                f"engine: {engine}, but the weights are in {self._model.own_precision}; use engine torch, or a model "
                "in fp32"
            )
        known = [name for name in PRECISIONS if name in FORMATS[engine].PRECISIONS]
        if self._precision not in known:
            raise UnfitError(
                f"engine: {engine} does not compute in {self._precision}; use {' or '.join(known)}, or engine torch"
            )
        require_installed(f"engine: {engine}", FORMATS[engine].EXTRA, *PACKAGES[engine])
        folder = self._home / f"{engine}-{_version(PACKAGES[engine][0])}-{self._precision}"
        if is_export(folder):
            with suppress(InputError):  # of a damaged file, which is written again
                return load_export(folder)
        with ProgressBar(f"export to {engine}", time_left=False):
            export(
                self._model,
                folder,
                format=engine,
                precision=self._precision,
                mean_shift_layers=self._layers,
                check=self._compare,
                overwrite=True,
            )
        return load_export(folder)

    def fastest(self) -> Choice:
        """The fastest engine for the windows on this machine, measured now or earlier."""
        available = {name: packages for name, packages in PACKAGES.items() if all(map(find_spec, packages))}
        if not available:
            return Choice("torch", refused={"openvino and onnx": f"are not installed; {install_hint('openvino')}"})
        place = self._home / NAME
        known = _read(place)
        versions = [f"{packages[0]} {_version(packages[0])}" for packages in available.values()]
        threads = counted(torch.get_num_threads(), "thread")
        situation = ", ".join([machine.processor(), threads, *versions, self._precision, _named(self._shape)])
        if situation not in known:
            known[situation], passing = self._measure(available)
            try:
                if not passing:
                    write_text(place, dump_json(known, indent=2) + "\n")
            except InputError as error:  # a read-only home: torch works all the same
                known[situation]["refused"]["the measurement"] = f"cannot be kept: {error}"
        seconds, refused = known[situation]["seconds"], known[situation]["refused"]
        best = min(seconds, key=seconds.__getitem__)
        return Choice(best if seconds[best] <= GAIN * seconds["torch"] else "torch", seconds, self._shape, refused)

    def _measure(self, engines: Iterable[str]) -> tuple[dict[str, dict[str, Any]], bool]:
        """Seconds per pass of torch and each engine that agrees with it, taking turns, and why others do not count.

        Also whether one of the reasons may pass, such as a full disk.
        """
        images = self._windows()
        ways: dict[str, Callable[[Tensor], object]] = {"torch": self._by_torch}
        refused, passing = {}, False
        for engine in engines:
            try:
                ways[engine] = self.load(engine)
            except (InputError, RunError) as error:
                passing = passing or not isinstance(error, UnfitError)
                refused[engine] = summarize_error(error).removeprefix(f"engine: {engine}").strip(" ,")
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(1 + ROUNDS):
            for name, run in ways.items():
                began = time.perf_counter()
                run(images)
                times[name].append(time.perf_counter() - began)
        return {"seconds": {name: min(several[1:]) for name, several in times.items()}, "refused": refused}, passing

    def _by_torch(self, images: Tensor) -> Tensor:
        B, _, H, W = self._shape
        tokens = -(-H // self._model.patch_size) * -(-W // self._model.patch_size)
        size = {"images": B, "heads": self._model.heads, "tokens": tokens}
        self._model.set_attention(fused=fused_attention_pays(images.device, self._precision, **size))
        with (
            torch.inference_mode(),
            torch.autocast("cpu", AUTOCAST[self._precision], enabled=self._precision != "fp32"),
        ):
            return self._model.logits_at(images, [self._layers])[0].float()

    def _windows(self) -> Tensor:
        """Generated scenes of the size of the windows, normalized."""
        B, _, H, W = self._shape
        scenes = Shapes(split="val", size=(max(H, MIN_SIDE), max(W, MIN_SIDE)), length=B)
        return self._model.normalize(np.stack([scenes[i].image[:H, :W] for i in range(B)]))

    def _compare(self, exported: RuntimeModel) -> None:
        """Raise an InputError if fp32 labels differ from torch's at more than `MOST_DIFFERENT` of the pixels."""
        if self._precision != "fp32":
            return
        images, size = self._windows(), self._shape[2:]
        labels, theirs = (upsampled_argmax(run(images), size) for run in (self._by_torch, exported))
        share = float((labels != theirs).float().mean())
        if not share <= MOST_DIFFERENT:
            name = exported.stated["format"]
            raise UnfitError(
                f"engine: {name}, but {100 * share:.3f} % of the pixels of generated scenes get another label than "
                f"with torch, above {100 * MOST_DIFFERENT:g} %; use engine torch"
            )


def _read(place: Path) -> dict[str, Any]:
    """Earlier measurements by situation; what does not look like one is dropped, and measured again."""
    if not place.is_file():
        return {}
    try:
        found = parse_json(read_text(place), place)
    except InputError:
        return {}
    whole = isinstance(found, dict) and all(_is_measurement(entry) for entry in found.values())
    return found if whole else {}


def _is_measurement(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("refused"), dict):
        return False
    seconds = entry.get("seconds")
    return isinstance(seconds, dict) and "torch" in seconds and all(isinstance(s, float) for s in seconds.values())


def _named(shape: tuple[int, int, int, int]) -> str:
    B, _, H, W = shape
    return f"{B} window{'' if B == 1 else 's'} of {H}×{W}"


def _version(package: str) -> str:
    """Its version, also of packages under another distribution name, such as onnxruntime-gpu."""
    try:
        return version(package)
    except PackageNotFoundError:
        return str(import_module(package).__version__)
