"""Predict label maps with sliding windows, flips and scales."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meanshifter.inference.predictor import Predictor
    from meanshifter.inference.segmentation import Segmentation

__all__ = ["Predictor", "Segmentation"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that processes that only list an archive do not import torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{name.lower()}"), name)
