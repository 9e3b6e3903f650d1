"""Exports to ONNX, OpenVINO and torch.export. The package itself is callable, as `ms.export`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from meanshifter.export.runtime import RuntimeModel
    from meanshifter.model.segmenter import Segmenter


class _Callable(ModuleType):
    """A callable package, since `meanshifter.export` is the name of both the package and the function."""

    def __call__(
        self,
        model: Segmenter | str | Path,
        out: str | Path,
        *,
        format: Literal["onnx", "openvino", "torch"] = "onnx",  # noqa: A002 (the word for it)
        precision: Literal["fp32", "fp16", "bf16", "int8"] = "fp32",
        mean_shift_layers: int | None = None,
        calibration: Sequence[Tensor] = (),
        label_graph: bool = False,
        reading: Mapping[str, Any] | None = None,
        check: Callable[[RuntimeModel], object] | None = None,
        overwrite: bool = False,
    ) -> None:
        """Export a model to the folder `out`; `meanshifter.export.export.export` explains the arguments."""
        from meanshifter.export.export import export

        export(
            model,
            out,
            format=format,
            precision=precision,
            mean_shift_layers=mean_shift_layers,
            calibration=calibration,
            label_graph=label_graph,
            reading=reading,
            check=check,
            overwrite=overwrite,
        )


sys.modules[__name__].__class__ = _Callable
