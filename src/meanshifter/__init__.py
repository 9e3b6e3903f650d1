"""Semantic segmentation with plain vision transformers: Segmenter and MeanShifter."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meanshifter import ops
    from meanshifter.data.labels import LabelSpace
    from meanshifter.errors import InputError
    from meanshifter.evaluation.evaluate import evaluate
    from meanshifter.inference.predictor import Predictor
    from meanshifter.inference.segmentation import Segmentation
    from meanshifter.interop.loading import load_model
    from meanshifter.model.presets import create_model
    from meanshifter.model.segmenter import Segmenter

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "LabelSpace",
    "Predictor",
    "Segmentation",
    "Segmenter",
    "create_model",
    "evaluate",
    "load_model",
    "ops",
]

# Resolved on first use, so that `import meanshifter` costs neither torch nor timm.
_HOMES = {
    "InputError": "meanshifter.errors",
    "LabelSpace": "meanshifter.data.labels",
    "Predictor": "meanshifter.inference.predictor",
    "Segmentation": "meanshifter.inference.segmentation",
    "Segmenter": "meanshifter.model.segmenter",
    "create_model": "meanshifter.model.presets",
    "evaluate": "meanshifter.evaluation.evaluate",
    "load_model": "meanshifter.interop.loading",
}


def __getattr__(name: str) -> Any:
    if name == "ops":
        return importlib.import_module("meanshifter.ops")
    if name not in _HOMES:
        raise AttributeError(f"module 'meanshifter' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
