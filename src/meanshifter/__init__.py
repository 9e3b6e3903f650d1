"""Semantic segmentation with plain vision transformers: Segmenter and MeanShifter."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meanshifter import data as datasets
    from meanshifter import ops
    from meanshifter.analysis.report import report
    from meanshifter.checkpoints.load import load_model
    from meanshifter.data.labels import LabelSpace
    from meanshifter.errors import InputError, RunError
    from meanshifter.evaluation.evaluate import evaluate
    from meanshifter.evaluation.temperature import calibrate
    from meanshifter.export.export import export
    from meanshifter.inference.predictor import Predictor
    from meanshifter.inference.segmentation import Segmentation
    from meanshifter.model.presets import create_model, list_models
    from meanshifter.model.segmenter import Segmenter
    from meanshifter.training.folds import cross_validate
    from meanshifter.training.loop import train

__version__ = "0.1.0"
__all__ = [
    "InputError",
    "LabelSpace",
    "Predictor",
    "RunError",
    "Segmentation",
    "Segmenter",
    "calibrate",
    "create_model",
    "cross_validate",
    "datasets",
    "evaluate",
    "export",
    "list_models",
    "load_model",
    "ops",
    "report",
    "train",
]

# Resolved on first use, so that `import meanshifter` imports neither torch nor timm.
_MODULES = {"datasets": "meanshifter.data", "export": "meanshifter.export", "ops": "meanshifter.ops"}
_HOMES = {
    "InputError": "meanshifter.errors",
    "LabelSpace": "meanshifter.data.labels",
    "Predictor": "meanshifter.inference.predictor",
    "RunError": "meanshifter.errors",
    "Segmentation": "meanshifter.inference.segmentation",
    "Segmenter": "meanshifter.model.segmenter",
    "calibrate": "meanshifter.evaluation.temperature",
    "create_model": "meanshifter.model.presets",
    "cross_validate": "meanshifter.training.folds",
    "evaluate": "meanshifter.evaluation.evaluate",
    "list_models": "meanshifter.model.presets",
    "load_model": "meanshifter.checkpoints.load",
    "report": "meanshifter.analysis.report",
    "train": "meanshifter.training.loop",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found: Any = importlib.import_module(_MODULES[name])
    elif name in _HOMES:
        found = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'meanshifter' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return list(__all__)
