"""Export with `torch.export`: a program that runs with torch alone, without this package or timm."""

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

from meanshifter.errors import InputError, summarize_error
from meanshifter.utils.files import write_atomically

if TYPE_CHECKING:
    from torch.export import ExportedProgram

FILE = "model.pt2"
FILES = (FILE,)
PRECISIONS = ("fp32",)
"""The program asserts the data types of intermediate results, so it cannot run under autocast."""
PACKAGES: tuple[str, ...] = ()
WRITING: tuple[str, ...] = ()
QUANTIZING: tuple[str, ...] = ()
EXTRA = None
EXPORTER = "2.9"
"""The first torch whose exporter can defer guards that it cannot solve to run time, and load such programs."""


def write(program: ExportedProgram, folder: Path, precision: str, *, calibration: Sequence[Tensor]) -> None:
    """Write the program."""
    buffer = BytesIO()  # torch's own writer aborts the process when the disk is full
    torch.export.save(program, buffer)
    write_atomically(folder / FILE, lambda file: file.write(buffer.getbuffer()))


def require_exporter(what: object) -> None:
    """Raise `InputError` for `what` if torch is older than `EXPORTER`."""
    if torch.__version__ < TorchVersion(EXPORTER):
        raise InputError(f"{what}: needs torch {EXPORTER} or newer, but {torch.__version__} is installed; update torch")


@contextmanager
def _tensors_only() -> Iterator[None]:
    """Make torch use its restricted unpickler for all parts of a program, which only this variable does.

    Its log is silenced, to which torch writes a traceback if the first of two attempts at loading fails.
    """
    name, logger = "TORCH_FORCE_WEIGHTS_ONLY_LOAD", logging.getLogger("torch.export")
    before, disabled = os.environ.get(name), logger.disabled
    os.environ[name], logger.disabled = "1", True
    try:
        yield
    finally:
        logger.disabled = disabled
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


class Program:
    """The exported program in a file."""

    def __init__(self, path: Path, precision: str, device: torch.device) -> None:
        require_exporter(path)
        self._path = path
        self.to(device)

    @property
    def fastest_device(self) -> str:
        """cuda if a GPU is available, else cpu."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    def to(self, device: torch.device) -> None:
        """Load the program for this device, which its constants refer to."""
        from torch.export.passes import move_to_device_pass

        try:
            with _tensors_only(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch 2.9 warns about buffers that it created itself
                program = torch.export.load(self._path)
        except Exception as error:  # zip, pickle and schema errors
            text = summarize_error(error)
            reason = "damaged, or not an exported program" if "warnings above" in text else text
            raise InputError(f"{self._path}: torch cannot read it ({reason}); export the model again") from error
        try:
            moved = program if device.type == "cpu" else move_to_device_pass(program, device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(f"device: {device} is not available; use 'cpu'") from error
        self._module, self.device = moved.module(), device

    def run(self, images: Tensor) -> Tensor:
        """Patch logits.

        Raises:
            InputError: the images are smaller than the program supports.
        """
        try:
            logits: Tensor = self._module(images.to(self.device))
        except AssertionError as error:
            H, W = images.shape[-2:]
            raise InputError(
                f"{FILE}: images of {H}×{W} pixels, but torch.export programs need sides above one patch, and two if "
                "the model merges tokens; enlarge the images, or export with --format onnx"
            ) from error
        return logits


load = Program
