"""The Triton kernels; where there is no CUDA device, conftest has them run in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton kernels need triton, which this platform's torch does not bring")
ON = "cuda" if torch.cuda.is_available() else "cpu"

from meanshifter.inference.windows import axis_matrix  # noqa: E402
from meanshifter.ops import View, cuda  # noqa: E402
from meanshifter.ops.cross_entropy import _reference as reference_sums  # noqa: E402
from meanshifter.ops.label_map import _reference as reference_label_map  # noqa: E402
from meanshifter.ops.upsampling import upsampling_axes  # noqa: E402

# of the interpreter in Triton before 3.3, with NumPy from 1.25 on
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")


@pytest.mark.parametrize(
    ("length", "size", "window", "stride"), [((20, 24), (20, 24), 16, 12), ((14, 18), (21, 15), None, 8)]
)
def test_label_maps_are_those_of_the_reference(
    length: tuple[int, int], size: tuple[int, int], window: int | None, stride: int
) -> None:
    rows, cols = (
        axis_matrix(n, out, window=window, stride=stride, patch_size=8) for n, out in zip(length, size, strict=True)
    )
    z = torch.randn(4, rows.shape[1], cols.shape[1], generator=torch.Generator().manual_seed(0))
    view = View(z.to(ON), rows.to(ON), cols.to(ON))
    labels = cuda.label_map(view)
    expected = reference_label_map([view], (), ()).labels
    assert labels.dtype == torch.uint8
    full = rows.double() @ z.double() @ cols.double().T
    best = full.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-5).to(ON)
    assert torch.equal(labels[clear], expected[clear])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("size", "padded"), [((16, 12), (16, 12)), ((13, 11), (16, 12)), ((2, 3), (3, 4))])
def test_losses_and_gradients_are_those_of_the_reference(
    size: tuple[int, int], padded: tuple[int, int], smoothing: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 3, generator=generator).to(ON)
    labels = torch.randint(0, 3, (2, *size), generator=generator).to(ON)
    labels[:, :1] = 255
    weight = torch.rand(3, generator=generator).to(ON)
    settings: dict[str, Any] = {"ignore_index": 255, "smoothing": smoothing}
    axes = upsampling_axes(logits, size, padded)
    loss, gradient = cuda.cross_entropy(logits, labels, axes, weight, **settings)
    expected, expected_gradient = reference_sums(logits.double(), labels, axes, weight.double(), **settings)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-5)
