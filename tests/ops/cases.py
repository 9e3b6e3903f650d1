"""Logits with sizes to upsample them to, and the definition of the operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from meanshifter.ops import argmax, pruned

IMPLEMENTATIONS = ["reference", "kernels"]
OF_LABEL_MAPS = [*IMPLEMENTATIONS, "pruned"]


@contextmanager
def implementation(name: str) -> Iterator[None]:
    """Run the CPU kernels, label maps by candidates, as without numba, or the reference for everything."""
    with mock.patch.object(argmax, "has_numba", return_value=name == "kernels"):
        if name != "reference":
            yield
            return
        with mock.patch.object(pruned, "label_map", lambda view: argmax._reference([view], (), ()).labels):
            yield


class Case(NamedTuple):
    logits: torch.Tensor
    size: tuple[int, int]
    padded: tuple[int, int]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Draw batches, scales from downsampling to 100x upsampling, padding, dtypes and strides."""
    side = st.integers(1, 9)
    B, K, h, w = draw(st.integers(1, 2)), draw(st.integers(1, 20)), draw(side), draw(side)
    padded = (draw(st.integers(1, 300)), draw(st.integers(1, 40)))
    size = (draw(st.integers(1, padded[0])), draw(st.integers(1, padded[1])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    logits = torch.randn(B, K, w, h, generator=generator).transpose(2, 3) * draw(st.sampled_from([0.1, 1, 30]))
    return Case(logits.to(draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))), size, padded)


def upsample(logits: torch.Tensor, size: tuple[int, int], padded: tuple[int, int]) -> torch.Tensor:
    """The definition, in float64: upsample, then crop at the top left."""
    full = F.interpolate(logits.double().contiguous(), padded, mode="bilinear", align_corners=False)
    return full[..., : size[0], : size[1]]


class Recorded(TorchDispatchMode):
    """Record what every operator returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.seen.append((func, out))
        return out

    def outputs(self, operator: Any) -> list[Any]:
        """Return the outputs of an operator, by call."""
        return [out for func, out in self.seen if func is operator]
