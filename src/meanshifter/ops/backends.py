"""Which implementation serves a tensor."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

from meanshifter.kernels import has_numba

Backend = Literal["reference", "numba", "triton"]


def backend(z: Tensor) -> Backend:
    """Kernels for float32 on the CPU and on CUDA, where what compiles them is there; else the reference."""
    if z.dtype == torch.float32:
        if z.device.type == "cpu" and has_numba():
            return "numba"
        if z.device.type == "cuda" and has_triton():
            return "triton"
    return "reference"


@cache
def has_triton() -> bool:
    """Whether triton is there."""
    return find_spec("triton") is not None
