"""`torch.export`: a program that runs with torch alone, without this package or timm."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from meanshifter.errors import InputError
from meanshifter.files import write_beside

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "model.pt2"
FILES = (FILE,)
PRECISIONS = ("fp32",)
"""The program asserts the types of its intermediate results, so that it does not run under autocast."""
PACKAGES: tuple[str, ...] = ()
WRITING: tuple[str, ...] = ()
QUANTIZING: tuple[str, ...] = ()
EXTRA = None
EXPORTER = "2.9"
"""The first torch whose exporter leaves guards that it cannot solve to the program, and reads such programs."""


def write(program: ExportedProgram, folder: Path, precision: str, *, calibration: Sequence[Tensor]) -> None:
    """Write the program."""
    whole = BytesIO()  # torch's own writer ends the process where the disk is full
    torch.export.save(program, whole)
    write_beside(folder / FILE, lambda file: file.write(whole.getbuffer()))


def load(path: Path, precision: str, device: torch.device) -> Program:
    """The program in a file."""
    require_exporter(path)
    return Program(path, device)


def require_exporter(what: object) -> None:
    """Raise `InputError` for `what` where torch is older than that."""
    if torch.__version__ < TorchVersion(EXPORTER):
        raise InputError(f"{what}: needs torch {EXPORTER} or newer, and this is {torch.__version__}; update torch")


@contextmanager
def _tensors_only() -> Iterator[None]:
    """torch unpickles parts of a program without restriction, unless its environment forbids it."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _silent() -> Iterator[None]:
    """torch logs the traceback of a first attempt before it makes a second one."""
    logger = logging.getLogger("torch.export")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


class Program:
    """An exported program as a module."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self._path = path
        self.to(device)

    @property
    def fastest_device(self) -> str:
        """cuda where there is one."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def to(self, device: torch.device) -> None:
        """Load the program for this device: its constants name one."""
        from torch.export.passes import move_to_device_pass

        try:
            with _tensors_only(), _silent(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of torch 2.9 about buffers that it made itself
                program = torch.export.load(self._path)
        except Exception as error:  # zip, pickle and schema errors
            text = " ".join(str(error).split())[:200]
            reason = "it is damaged, or of another kind" if "warnings above" in text else text
            raise InputError(f"{self._path}: torch cannot read it ({reason}); export the model again") from error
        try:
            moved = program if device.type == "cpu" else move_to_device_pass(program, device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device: {device} cannot be used; 'cpu' always can") from error
        self._module, self.device = moved.module(), device

    def run(self, images: Tensor) -> Tensor:
        """Patch logits.

        Raises:
            InputError: images smaller than the program was proved for.
        """
        try:
            logits: Tensor = self._module(images.to(self.device))
        except AssertionError as error:
            H, W = images.shape[-2:]
            raise InputError(
                f"{FILE}: images of {H}×{W} pixels; programs of torch.export take sides above one patch: enlarge the "
                "images, or export with --format onnx"
            ) from error
        return logits
