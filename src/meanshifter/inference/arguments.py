"""What a predictor is asked for, checked before any image is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from difflib import get_close_matches
from typing import get_args

import torch

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.interop.contract import PatchModel
from meanshifter.model.config import LARGEST
from meanshifter.ops import Score


def check_resizing(short_side: int | None, long_side: int, scales: Sequence[float]) -> None:
    """Refuse sides and factors that leave no pixels; raises InputError."""
    if short_side is not None and short_side < 1:
        raise InputError(f"short_side: {short_side} pixels; it must be at least 1, or None for no resizing")
    if short_side is not None and long_side < short_side:
        raise InputError(f"long_side: {long_side} is below short_side {short_side}; exchange them")
    if short_side is not None and long_side > LARGEST:
        raise InputError(f"long_side: {long_side} pixels; it is {LARGEST} at most")
    if not scales:
        raise InputError("scales: none given; use (1.0,) for the image at one size")
    for scale in scales:
        if not 0 < scale <= 16:
            raise InputError(f"scales: {scale}; a factor lies above 0 and is at most 16")
    smallest = min(scales)
    if short_side is not None and int(short_side * smallest) < 1:
        raise InputError(f"scales: {smallest} leaves no pixel of short_side {short_side}; use a larger factor")


def check_asked(scores: Sequence[str], probabilities: Sequence[str], labels: LabelSpace) -> None:
    """Refuse maps that cannot be had; raises InputError."""
    for score in scores:
        if score not in get_args(Score):
            raise InputError(f"scores: {score!r}; use one of {', '.join(get_args(Score))}")
    for name in probabilities:
        if name not in labels.names:
            close = get_close_matches(name, labels.names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"its classes are {', '.join(labels.names[:10])}, …"
            raise InputError(f"probabilities: the model has no class {name!r}; {hint}")
    for name, times in Counter((*scores, *probabilities)).items():
        if times > 1:
            raise InputError(f"{name!r}: asked for {times} times among scores and probabilities; name it once")


def move(model: PatchModel, device: str | torch.device) -> None:
    """Move the model for good; raises InputError where it cannot run."""
    try:
        model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"device: {device} cannot be used ({reason}); 'cpu' always can") from error
