"""Which implementation serves a tensor, and what its operators have in common."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from meanshifter.kernels import has_numba

Backend = Literal["reference", "numba", "triton"]
NEVER = -1e30
"""In the CPU kernels, the logit of a class that only pads: its softmax is 0."""
Ints = Sequence[int | torch.SymInt]
_NOT_CAPTURED = getattr(torch.Tag, "cudagraph_unsafe", None)
OPERATOR_TAGS: dict[str, Any] = (
    {"tags": (_NOT_CAPTURED,)}
    if _NOT_CAPTURED and "tags" in inspect.signature(torch.library.custom_op).parameters
    else {}
)
"""CUDA graphs leave our operators out where torch can be told so: tables kept by `ops.cuda` would lie in their pool."""


def backend(*z: Tensor) -> Backend:
    """Kernels for float32 logits on the CPU and on CUDA, where what compiles them is there; else the reference.

    The CPU kernels are compiled for numbers, and pad with a class that is meant to lose: logits with a NaN, an
    infinity or a number of that size go to the reference.
    """
    if all(one.dtype == torch.float32 and one.numel() for one in z):
        if z[0].device.type == "cpu" and has_numba() and all(map(_moderate, z)):
            return "numba"
        if z[0].device.type == "cuda" and has_triton():
            return "triton"
    return "reference"


def _moderate(z: Tensor) -> bool:
    low, high = torch.aminmax(z.detach())
    return float(low) > NEVER / 10 and float(high) < -NEVER / 10


@cache
def has_triton() -> bool:
    """Whether triton is there."""
    return find_spec("triton") is not None
