"""One way into models of every kind: each kind is recognised by what lies in its folder or file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from meanshifter.interop.contract import PatchModel
from meanshifter.interop.runtime import is_export, load_export
from meanshifter.model import checkpoint

READERS: list[tuple[Callable[[Path], bool], Callable[[Path, str | torch.device], PatchModel]]] = [
    (is_export, load_export),
]
"""Who recognises a path, and reads it."""


def load_model(name: str | Path, *, device: str | torch.device = "cpu") -> PatchModel:
    """The model of a name: a model folder, a run folder (its best checkpoint), an export, or a Hub id.

    Args:
        name: a folder, a file, or a Hub id "owner/name".
        device: where it runs.

    Returns:
        A `Segmenter` in evaluation mode, or for an export a `RuntimeModel`.

    Raises:
        InputError: nothing of that name, files that are damaged or of another format, or a missing package.
    """
    for recognises, read in READERS:
        if recognises(Path(name)):
            return read(Path(name), device)
    return checkpoint.load_model(name, device=device)
