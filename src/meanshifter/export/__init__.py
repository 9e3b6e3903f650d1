"""Exports to ONNX, OpenVINO and torch.export. The package itself is callable, as `ms.export`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meanshifter.model.segmenter import Segmenter


class _Callable(ModuleType):
    """A callable package, since `meanshifter.export` is the name of both the package and the function."""

    def __call__(self, model: Segmenter, out: str | Path, *, format: str = "onnx", **options: Any) -> None:  # noqa: A002
        """Export `model` to the folder `out`; `meanshifter.export.export.export` has the options."""
        from meanshifter.export.export import export

        export(model, out, format=format, **options)


sys.modules[__name__].__class__ = _Callable
