"""Load exports: folders with a model's `config.json` and its program in the format of another runtime.

`config.json` is that of a model folder plus `runtime`: the format, the file, the precision, the fixed number of mean
shift steps and the stride. Glossary: B batch, K classes, H W pixels, h w the grid of the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.export import onnx_format, openvino_format, torch_format
from meanshifter.model.config import ModelConfig
from meanshifter.model.saving import CONFIG, RUNTIME, is_export, read_description, read_model_config
from meanshifter.model.segmenter import Predicting, normalized
from meanshifter.utils.environment import require_installed

READING: dict[str, type | tuple[type, ...]] = {
    "window": (int, NoneType),
    "window_stride": int,
    "window_blend": str,
    "short_side": (int, NoneType),
    "long_side": int,
    "scales": list,
    "flip": bool,
    "precision": str,
    "batch_size": (int, NoneType),
    "compat": (str, NoneType),
}
"""Preprocessing fields that an export may state, and their types."""


class Engine(Protocol):
    """A loaded program."""

    device: torch.device

    @property
    def fastest_device(self) -> str:
        """The best available device that it can run on."""

    def run(self, images: Tensor) -> Tensor:
        """Compute patch logits (B, K, h, w) of normalized float32 images (B, 3, H, W)."""

    def to(self, device: torch.device) -> None:
        """Move the program; raises InputError if it cannot run there."""


FORMATS: dict[str, Any] = {"onnx": onnx_format, "openvino": openvino_format, "torch": torch_format}
"""Modules with FILE, FILES, PRECISIONS, the packages for reading, writing and quantizing, EXTRA, `write` and `load`."""


class RuntimeModel(Predicting):
    """An export as a `PatchModel`, with encoder, mean shift block and decoder in one program."""

    def __init__(
        self, config: ModelConfig, label_space: LabelSpace, stated: dict[str, Any], folder: Path, engine: Engine
    ) -> None:
        self.config, self.label_space, self.stated = config, label_space, stated
        self.folder, self._engine = folder, engine
        self.output_stride, self.own_precision = int(stated["output_stride"]), str(stated["precision"])
        self._layers = int(stated["mean_shift_layers"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as the folder, because engines belong to one process."""
        return load_export, (self.folder.absolute(), str(self.device))

    def __call__(self, images: Tensor, mean_shift_layers: int | None = None) -> Tensor:
        """Compute patch logits (B, K, h, w) of normalized images (B, 3, H, W), as a `Segmenter` does."""
        return self.logits_at(images, [mean_shift_layers])[0]

    @property
    def device(self) -> torch.device:
        """The device that the program runs on."""
        return self._engine.device

    @property
    def fastest_device(self) -> str:
        """The best device that the installed runtime supports."""
        return self._engine.fastest_device

    heads = 1
    """The runtime manages the memory of attention."""
    has_steps = False
    """The number of mean shift steps is fixed."""

    def steps(self, layers: int | None) -> int:
        """Return the fixed number of mean shift steps.

        Raises:
            InputError: `layers` is a different number.
        """
        if layers not in (None, self._layers):
            if self.config.mean_shift is None and self.config.pixel_shift is None:
                raise InputError(
                    f"mean_shift_layers: {layers}, but {self.folder} has no mean shift block; leave it out"
                )
            raise InputError(
                f"mean_shift_layers: {layers}, but the export has {self._layers} built in; leave it out, or export the "
                f"model again with --mean-shift-layers {layers}"
            )
        return self._layers

    def normalize(self, images: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        """Convert uint8 RGB (H, W, 3) or (B, H, W, 3) to normalized floats (B, 3, H, W)."""
        return normalized(images, self.config, self.device)

    def logits_at(self, images: Tensor, layers: Sequence[int | None]) -> list[Tensor]:
        """Compute the logits once and return them for each entry of `layers`, all of which mean the fixed number."""
        for count in layers:
            self.steps(count)
        H, W = images.shape[-2:]
        logits = self._engine.run(images)
        P = self.output_stride
        h, w = -(-H // P), -(-W // P)
        factor = None if self.config.pixel_shift is None else self.config.pixel_shift.factor
        padding = 0 if factor is None else factor - 1
        if not (h <= logits.shape[-2] <= h + padding and w <= logits.shape[-1] <= w + padding):
            raise InputError(
                f"{self.folder / CONFIG}: runtime.output_stride is {P}, but the program computes {logits.shape[-2]}×"
                f"{logits.shape[-1]} logits for {H}×{W} pixels; export the model again"
            )
        if logits.shape[1] != self.label_space.num_classes:
            raise InputError(
                f"{self.folder / CONFIG}: names {self.label_space.num_classes} classes, but the program in the folder "
                f"has {logits.shape[1]}; the files must come from the same export"
            )
        return [logits[..., :h, :w] for _ in layers]

    def evaluation_view(self) -> RuntimeModel:
        """Return the model itself, which has no other mode."""
        return self

    def set_attention(self, *, fused: bool) -> None:
        """Do nothing: the runtime chooses."""

    def to(self, device: str | torch.device) -> RuntimeModel:
        """Move the program to a device.

        Raises:
            InputError: the runtime does not support the device.
        """
        if torch.device(device) != self.device:
            self._engine.to(torch.device(device))
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """Return the bytes of the program's files, by name."""
        names = FORMATS[self.stated["format"]].FILES
        return {name: torch.from_numpy(np.fromfile(self.folder / name, np.uint8)) for name in names}


def load_export(folder: Path, device: str | torch.device = "cpu") -> RuntimeModel:
    """Load an export.

    Raises:
        InputError: a missing or damaged file, an unknown format, or a missing package.
    """
    stated = read_description(folder)[RUNTIME]
    stated = stated if isinstance(stated, dict) else {}
    config, labels = read_model_config(folder)
    strings = all(isinstance(stated.get(key), str) for key in ("format", "file", "precision"))
    if not strings or {"mean_shift_layers", "output_stride"} - stated.keys() or stated["format"] not in FORMATS:
        raise InputError(f"{folder / CONFIG}: its runtime is not one of {', '.join(FORMATS)}; export the model again")
    form = FORMATS[stated["format"]]
    steps, stride = stated["mean_shift_layers"], stated["output_stride"]
    if not (isinstance(steps, int) and steps >= 0 and isinstance(stride, int) and stride >= 1):
        raise InputError(
            f"{folder / CONFIG}: runtime has mean_shift_layers {steps!r} and output_stride {stride!r}; expected "
            "integers from 0 and 1 on; export the model again"
        )
    if stated["file"] not in form.FILES or stated["precision"] not in form.PRECISIONS:
        raise InputError(
            f"{folder / CONFIG}: its runtime has file {stated['file']!r} and precision {stated['precision']!r}, but "
            f"{stated['format']} has {form.FILE} in {', '.join(form.PRECISIONS)}; export the model again"
        )
    require_installed(f"format: {stated['format']}", form.EXTRA, *form.PACKAGES)
    missing = [name for name in form.FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder / missing[0]}: missing; copy the complete export again")
    engine = form.load(folder / stated["file"], stated["precision"], torch.device(device))
    return RuntimeModel(config, labels, stated, folder, engine)


def reading_of(path: str | Path) -> dict[str, Any]:
    """Return the preprocessing that an export states, as arguments of `Predictor`; empty if it states none."""
    if not is_export(Path(path)):
        return {}
    stated = read_description(Path(path))[RUNTIME]
    reading = stated.get("reading", {}) if isinstance(stated, dict) else {}
    if not isinstance(reading, dict):
        raise InputError(f"{Path(path) / CONFIG}: runtime.reading is {reading!r:.40}; export the model again")
    for name, value in reading.items():
        entries = value if isinstance(value, list) else []
        numbers = all(isinstance(entry, int | float) for entry in entries)
        if not (name in READING and isinstance(value, READING[name]) and numbers):
            raise InputError(f"{Path(path) / CONFIG}: reading.{name} is {value!r:.40}; export the model again")
    return dict(reading)
