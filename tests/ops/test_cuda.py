"""The Triton kernels; without a CUDA device, conftest runs them in Triton's interpreter."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton kernels need triton, which this platform's torch does not bring")
ON = "cuda" if torch.cuda.is_available() else "cpu"

from meanshifter.inference.windows import axis_matrix  # noqa: E402
from meanshifter.ops import View, bilinear_matrix, cuda  # noqa: E402
from meanshifter.ops.argmax import _reference as reference_label_map  # noqa: E402
from meanshifter.ops.losses import _reference as reference_sums  # noqa: E402
from meanshifter.ops.losses import loss_count  # noqa: E402
from meanshifter.ops.upsampling import upsampling_axes  # noqa: E402

# of the interpreter in Triton before 3.3, with NumPy from 1.25 on
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")


@pytest.mark.parametrize(
    ("length", "size", "window", "stride"), [((20, 24), (20, 24), 16, 12), ((14, 18), (21, 15), None, 8)]
)
def test_label_maps_equal_those_of_the_reference(
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


@pytest.mark.parametrize(
    ("size", "padded", "smoothing"), [((8, 12), (8, 12), 0.0), ((7, 11), (8, 12), 0.1), ((2, 3), (3, 4), 0.1)]
)
def test_losses_and_gradients_equal_those_of_the_reference(
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


@pytest.mark.parametrize(("wrong", "dtype"), [(3, torch.uint8), (-1, torch.int16), (2**32, torch.int64)])
def test_a_label_that_is_not_a_class_reads_nothing_and_gives_nan(wrong: int, dtype: torch.dtype) -> None:
    logits, weight = torch.randn(1, 3, 2, 2, device=ON), torch.ones(3, device=ON)
    labels = torch.zeros(1, 4, 4, dtype=torch.int64, device=ON)
    settings: dict[str, Any] = {"ignore_index": 255, "smoothing": 0.0}
    axes = upsampling_axes(logits, (4, 4), (4, 4))
    good, _ = cuda.cross_entropy(logits, labels.to(dtype), axes, weight, **settings)
    assert good.isfinite()
    labels[0, 3, 3] = wrong
    for sums in (cuda.cross_entropy, reference_sums):
        loss, gradient = sums(logits, labels.to(dtype), axes, weight, **settings)
        assert loss.isnan()
        assert gradient.isnan().any()
    assert loss_count(labels.to(dtype), weight, ignore_index=255, reduction="mean_valid") == 15


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's NumPy
@pytest.mark.parametrize(
    ("value", "place", "smoothing"),
    [
        (math.nan, (0, 1, 1, 0), 0.1),
        (math.inf, (0, 1, 0, 0), 0.0),
        (-math.inf, (0, 0, 1, 1), 0.0),
        (-math.inf, (0, 0), 0.0),
        (-math.inf, (0, 2, 0, 0), 0.1),
        (-math.inf, (0, slice(None), 0, 0), 0.0),
    ],
)
def test_logits_that_are_not_finite_give_the_results_of_the_reference(
    value: float, place: Any, smoothing: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 3, 2, 2, generator=generator).to(ON)
    logits[place] = value
    labels = torch.randint(0, 3, (1, 4, 6), generator=generator).to(ON)
    labels[:, :1] = 255
    settings: dict[str, Any] = {"ignore_index": 255, "smoothing": smoothing}
    axes, weight = upsampling_axes(logits, (4, 6), (4, 6)), torch.ones(3, device=ON)
    loss, gradient = cuda.cross_entropy(logits, labels, axes, weight, **settings)
    expected, expected_gradient = reference_sums(logits.double(), labels, axes, weight.double(), **settings)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
    torch.testing.assert_close(loss.double(), expected, **close)
    assert (gradient.isnan() >= expected_gradient.isnan()).all()
    for one, other in zip(gradient, expected_gradient, strict=True):
        if other.isfinite().all():
            torch.testing.assert_close(one.double(), other, **close)
    rows, cols = (bilinear_matrix(2, out, out, torch.float64).to(ON) for out in (4, 6))
    maps = [reference_label_map([View(z.double(), rows, cols)], (), ()).labels for z in logits]
    assert torch.equal(cuda.upsampled_argmax(logits, axes), torch.stack(maps))


def test_without_the_gradient_the_loss_is_the_same() -> None:
    logits, labels = torch.randn(1, 3, 2, 2, device=ON), torch.zeros(1, 3, 4, dtype=torch.uint8, device=ON)
    settings: dict[str, Any] = {"ignore_index": 255, "smoothing": 0.1}
    given = logits, labels, upsampling_axes(logits, (3, 4), (3, 4)), torch.ones(3, device=ON)
    loss, gradient = cuda.cross_entropy(*given, **settings, with_gradient=False)
    assert torch.equal(loss, cuda.cross_entropy(*given, **settings)[0])
    assert gradient.numel() == 0
