"""The Triton kernels of weighted sums of losses; without a CUDA device, conftest runs them in Triton's interpreter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import pytest
import torch

import meanshifter as ms
from tests.ops.test_loss_terms import TERMS

pytest.importorskip("triton", reason="Triton kernels need triton, which this platform's torch does not bring")
ON = "cuda" if torch.cuda.is_available() else "cpu"

# of the interpreter in Triton before 3.3, with NumPy from 1.25 on
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")


@contextmanager
def kernels() -> Iterator[None]:
    """Choose the Triton kernels on any device."""
    with mock.patch("meanshifter.ops.loss_terms.backend", return_value="triton"):
        yield


def drawn(B: int = 1, h: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Few programs, which take the interpreter long: logits (B, 3, h, 2), labels (B, 3 h, 6), and class weights.

    The first pixels of each row are ignored, and one class is absent.
    """
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(B, 3, h, 2, generator=generator).to(ON)
    labels = torch.randint(0, 2, (B, 3 * h, 6), generator=generator).to(ON)
    labels[:, :, :1] = 255
    return logits, labels, (torch.rand(3, generator=generator) + 0.5).to(ON)


def both(
    logits: torch.Tensor, labels: torch.Tensor, **settings: Any
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """Loss and gradient of the kernels, and of the reference in float64."""
    settings["padded_size"] = labels.shape[-2], labels.shape[-1] + 2
    found = []
    for z in (logits.clone(), logits.double()):
        z.requires_grad_()
        with kernels() if z.dtype == torch.float32 else nullcontext():
            loss = ms.ops.upsampled_loss(z, labels, **settings)
        found.append((loss.detach().double(), torch.autograd.grad(loss, z)[0].double()))
    return found[0], found[1]


@pytest.mark.parametrize(
    ("terms", "B", "h", "reduction", "smoothing"),
    [
        *((terms, 1, 1, "mean_valid", 0.0) for terms in TERMS if terms != "all"),
        ("all", 2, 2, "mean_valid", 0.1),
        ("ohem", 1, 1, "mean_all", 0.1),
    ],
)
def test_losses_and_gradients_equal_those_of_the_reference(
    terms: str, B: int, h: int, reduction: str, smoothing: float
) -> None:
    logits, labels, weight = drawn(B, h)
    settings = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing, **TERMS[terms]}
    (loss, gradient), (expected, expected_gradient) = both(logits, labels, **settings)
    assert abs(loss - expected) <= 1e-5 * abs(expected)
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()


def test_without_the_gradient_the_loss_is_the_same() -> None:
    logits, labels, _ = drawn()
    with kernels():
        without = ms.ops.upsampled_loss(logits, labels, **TERMS["all"])
        loss = ms.ops.upsampled_loss(logits.requires_grad_(), labels, **TERMS["all"])
    assert torch.equal(without, loss.detach())


def test_loss_and_gradient_are_zero_if_every_pixel_is_ignored() -> None:
    logits, labels, _ = drawn()
    (loss, gradient), _ = both(logits, torch.full_like(labels, 255), **TERMS["all"])
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("terms", ["dice", "ohem", "focal"])
def test_a_label_that_is_not_a_class_reads_nothing_and_gives_nan(terms: str) -> None:
    logits, labels, _ = drawn()
    labels[0, 2, 3] = 77
    with mock.patch("meanshifter.ops.loss_terms.check_values"):  # which raises on the CPU
        for loss, gradient in both(logits, labels, **TERMS[terms]):
            assert loss.isnan()
            assert gradient.isnan().any()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the interpreter's NumPy
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_make_the_loss_not_finite(value: float) -> None:
    logits, labels, _ = drawn()
    logits[0, 1, 0, 1] = value
    for loss, _ in both(logits, labels, **TERMS["all"]):
        assert not loss.isfinite()


@pytest.mark.parametrize("terms", ["focal with another exponent", "all"])
def test_probabilities_that_round_to_0_and_1_give_finite_losses(terms: str) -> None:
    logits, labels, _ = drawn()
    (loss, gradient), (expected, expected_gradient) = both(400 * logits, labels, **TERMS[terms])
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
