"""Exports: folders with a model's `config.json` and its program in a format that another runtime runs.

`config.json` holds what it holds beside weights, and under `runtime` the format, the file, the precision and the number
of mean shift steps that are built in. Glossary: B batch, K classes, H W pixels, h w the grid of the logits.
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
from meanshifter.documents import parse_json, read_text
from meanshifter.errors import InputError
from meanshifter.interop import onnx_format, openvino_format, torch_format
from meanshifter.model.checkpoint import CONFIG, read_description, read_model_config
from meanshifter.model.config import ModelConfig
from meanshifter.model.segmenter import normalized
from meanshifter.packages import require_installed

RUNTIME = "runtime"
READING: dict[str, type | tuple[type, ...]] = {
    "window": (int, NoneType),
    "stride": int,
    "short_side": (int, NoneType),
    "long_side": int,
    "scales": list,
    "flip": bool,
    "precision": str,
    "batch_size": (int, NoneType),
    "protocol": (str, NoneType),
}
"""What an export may say of how images are read, and of which kind it is."""


class Engine(Protocol):
    """A program that has been loaded."""

    device: torch.device

    @property
    def fastest_device(self) -> str:
        """The best device that it can run on here."""

    def run(self, images: Tensor) -> Tensor:
        """Normalised float32 images (B, 3, H, W) to patch logits (B, K, h, w)."""

    def to(self, device: torch.device) -> None:
        """Move it; raises InputError where it cannot run."""


FORMATS: dict[str, Any] = {"onnx": onnx_format, "openvino": openvino_format, "torch": torch_format}
"""Modules with FILE, FILES, PRECISIONS, the packages for reading, writing and quantising, EXTRA, `write` and `load`."""


class RuntimeModel:
    """An export: what `Predictor` needs of a model, with the encoder, the block and the decoder in one program."""

    def __init__(
        self, config: ModelConfig, labels: LabelSpace, stated: dict[str, Any], folder: Path, engine: Engine
    ) -> None:
        self.config, self.labels, self.stated = config, labels, stated
        self.folder, self._engine = folder, engine
        self._layers = int(stated["mean_shift_layers"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes load it from its folder, since engines are of one process."""
        return load_export, (self.folder.absolute(), str(self.device))

    def __call__(self, images: Tensor, mean_shift_layers: int | None = None) -> Tensor:
        """Patch logits (B, K, h, w) of normalised images (B, 3, H, W), as a `Segmenter` gives them."""
        return self.logits_at(images, [mean_shift_layers])[0]

    @property
    def stride(self) -> int:
        """Side in pixels of what one logit stands for."""
        return int(self.stated["stride"])

    @property
    def device(self) -> torch.device:
        """Where the program runs."""
        return self._engine.device

    @property
    def fastest_device(self) -> str:
        """The best device that the installed runtime has."""
        return self._engine.fastest_device

    @property
    def own_precision(self) -> str:
        """What the program computes in."""
        return str(self.stated["precision"])

    @property
    def heads(self) -> int:
        """1: what memory attention takes is the runtime's affair."""
        return 1

    @property
    def has_steps(self) -> bool:
        """Never: their number is built in."""
        return False

    def steps(self, layers: int | None) -> int:
        """The number of mean shift steps that is built in.

        Raises:
            InputError: another one is asked for.
        """
        if layers not in (None, self._layers):
            if self.config.mean_shift is None and self.config.pixel_shift is None:
                raise InputError(f"mean_shift_layers: {layers}; {self.folder} has no mean shift block: leave it out")
            raise InputError(
                f"mean_shift_layers: {layers}; the export has {self._layers} built in: leave it out, or export the "
                f"model again with --mean-shift-layers {layers}"
            )
        return self._layers

    def normalize(self, images: npt.NDArray[np.uint8] | Tensor) -> Tensor:
        """uint8 RGB (H, W, 3) or (B, H, W, 3) to normalised floats (B, 3, H, W)."""
        return normalized(images, self.config, self.device)

    def logits_at(self, images: Tensor, layers: Sequence[int | None]) -> list[Tensor]:
        """The program's logits, once for each entry of `layers`, which all mean the number built in."""
        for count in layers:
            self.steps(count)
        H, W = images.shape[-2:]
        whole = self._engine.run(images)
        h, w = -(-H // self.stride), -(-W // self.stride)
        padding = 0 if self.config.pixel_shift is None else self.config.pixel_shift.factor - 1
        if not (h <= whole.shape[-2] <= h + padding and w <= whole.shape[-1] <= w + padding):
            raise InputError(
                f"{self.folder / CONFIG}: runtime.stride is {self.stride}, but the program makes {whole.shape[-2]}×"
                f"{whole.shape[-1]} logits of {H}×{W} pixels; export the model again"
            )
        if whole.shape[1] != self.labels.num_classes:
            raise InputError(
                f"{self.folder / CONFIG}: names {self.labels.num_classes} classes, but the program beside it makes "
                f"{whole.shape[1]}; put the files of one export together"
            )
        return [whole[..., :h, :w] for _ in layers]

    def evaluation_view(self) -> RuntimeModel:
        """Itself, which has no other mode."""
        return self

    def set_attention(self, *, fused: bool) -> None:
        """Nothing to choose."""

    def to(self, device: str | torch.device) -> RuntimeModel:
        """Run there from now on.

        Raises:
            InputError: the runtime has no such device here.
        """
        if torch.device(device) != self.device:
            self._engine.to(torch.device(device))
        return self

    def state_dict(self) -> dict[str, Tensor]:
        """The bytes of the program's files."""
        names = FORMATS[self.stated["format"]].FILES
        return {name: torch.from_numpy(np.fromfile(self.folder / name, np.uint8)) for name in names}


def is_export(path: Path) -> bool:
    """Whether a folder's `config.json` speaks of a runtime."""
    try:
        described = parse_json(read_text(path / CONFIG), path)
    except InputError:  # said by whoever reads it next
        return False
    return isinstance(described, dict) and RUNTIME in described


def load_export(folder: Path, device: str | torch.device = "cpu") -> RuntimeModel:
    """The model of an export.

    Raises:
        InputError: a file that is missing or damaged, a format that is not known, or a package that is not installed.
    """
    stated = read_description(folder)[RUNTIME]
    stated = stated if isinstance(stated, dict) else {}
    config, labels = read_model_config(folder)
    lacking = [key for key in ("format", "file", "precision", "mean_shift_layers", "stride") if key not in stated]
    texts = all(isinstance(stated.get(key), str) for key in ("format", "file", "precision"))
    if lacking or not texts or stated["format"] not in FORMATS:
        raise InputError(f"{folder / CONFIG}: its runtime is not one of {', '.join(FORMATS)}; export the model again")
    form = FORMATS[stated["format"]]
    steps, side = stated["mean_shift_layers"], stated["stride"]
    if not (isinstance(steps, int) and steps >= 0 and isinstance(side, int) and side >= 1):
        raise InputError(f"{folder / CONFIG}: {steps!r} steps, patches of {side!r} pixels; export the model again")
    if stated["file"] not in form.FILES or stated["precision"] not in form.PRECISIONS:
        raise InputError(
            f"{folder / CONFIG}: its runtime names the file {stated['file']!r} in {stated['precision']!r}; "
            f"{stated['format']} has {form.FILE} in {', '.join(form.PRECISIONS)}: export the model again"
        )
    require_installed(f"format: {stated['format']}", form.EXTRA, *form.PACKAGES)
    missing = [name for name in form.FILES if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder / missing[0]}: missing; copy the whole export again")
    engine = form.load(folder / stated["file"], stated["precision"], torch.device(device))
    return RuntimeModel(config, labels, stated, folder, engine)


def reading_of(path: str | Path) -> dict[str, Any]:
    """How the exported model reads images, as arguments of `Predictor`; empty where nothing is said."""
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
