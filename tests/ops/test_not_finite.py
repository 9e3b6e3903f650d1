"""NaN, infinite and enormous logits give the same results as in torch, so that NaN can be detected."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import meanshifter as ms
from meanshifter.ops import View, pixel_confidence
from tests.ops.cases import IMPLEMENTATIONS, Case, implementation, upsample

Linear = Callable[[torch.Tensor], torch.Tensor]


def through(linear: Linear, x: torch.Tensor) -> torch.Tensor:
    """Apply a linear map with non-negative weights, where 0 times NaN or infinity is 0."""
    out = linear(torch.where(x.isfinite(), x, 0))
    for places, value in ((x == math.inf, math.inf), (x == -math.inf, -math.inf), (x.isnan(), math.nan)):
        out = torch.where(linear(places.double()) > 0, out + value, out)
    return out


def adjoint(linear: Linear, like: torch.Tensor) -> Linear:
    """Return the adjoint of `linear`, from gradients of its outputs to those of its inputs."""

    def back(pixels: torch.Tensor) -> torch.Tensor:
        x = torch.zeros_like(like, requires_grad=True)
        return torch.autograd.grad(linear(x), x, pixels)[0]

    return back


@st.composite
def broken(draw: st.DrawFn) -> Case:
    """Draw logits with a few NaN or infinite values; scales are powers of 2, so that weights of 0 are exact."""
    B, K, h, w = draw(st.integers(1, 2)), draw(st.integers(1, 12)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    scale = draw(st.sampled_from([1, 2, 4, 8]))
    logits = torch.randn(B, K, h, w, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))
    for _ in range(draw(st.integers(1, 4))):
        place = tuple(draw(st.integers(0, n - 1)) for n in logits.shape)
        logits[place] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    size = (draw(st.integers(1, h * scale)), draw(st.integers(1, w * scale)))
    return Case(logits, size, (h * scale, w * scale))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@settings(max_examples=80)
@given(case=broken(), smoothing=st.sampled_from([0.0, 0.1]), ignored=st.sampled_from([0, 0.5, 0.95]), data=st.data())
def test_the_loss_and_its_gradient_equal_those_of_torch(
    case: Case, smoothing: float, ignored: float, data: st.DataObject, name: str
) -> None:
    B, K = case.logits.shape[:2]
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    labels = torch.randint(0, K, (B, *case.size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    exact = case.logits.double()

    def linear(x: torch.Tensor) -> torch.Tensor:
        return upsample(x, case.size, case.padded)

    full = through(linear, exact).requires_grad_()
    total = F.cross_entropy(full, labels, ignore_index=255, reduction="sum", label_smoothing=smoothing)
    expected = total / max(int((labels != 255).sum()), 1)
    expected_gradient = through(adjoint(linear, exact), torch.autograd.grad(expected, full)[0])
    logits = case.logits.clone().requires_grad_()
    with implementation(name):
        loss = ms.ops.upsampled_cross_entropy(logits, labels, padded_size=case.padded, label_smoothing=smoothing)
    (gradient,) = torch.autograd.grad(loss, logits)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
    torch.testing.assert_close(loss.double(), expected.detach(), **close)
    torch.testing.assert_close(gradient.double(), expected_gradient, **close)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_extreme_logit_of_an_unlabeled_class_acts_as_in_torch(value: float, name: str) -> None:
    logits = torch.randn(1, 9, 5, 5, generator=torch.Generator().manual_seed(0))
    logits[0, 7, 2, 2] = value
    labels = torch.zeros(1, 40, 40, dtype=torch.int64)
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(upsample(exact, (40, 40), (40, 40)), labels)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    logits.requires_grad_()
    with implementation(name):
        loss = ms.ops.upsampled_cross_entropy(logits, labels.to(torch.uint8))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert bool(loss.isnan()) == (value != -math.inf)
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6, "equal_nan": True}
    torch.testing.assert_close(loss.double(), expected.detach(), **close)
    torch.testing.assert_close(gradient.double(), expected_gradient, **close)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("value", [-3e38, -1e30, -1e29, 1e29, 3e38])
def test_enormous_logits_are_supported(value: float, name: str) -> None:
    logits = torch.full((1, 3, 2, 2), value)
    with implementation(name):
        loss = ms.ops.upsampled_cross_entropy(logits, torch.zeros(1, 8, 8, dtype=torch.uint8))
        matrix = ms.ops.bilinear_matrix(2, 8, 8)
        found = pixel_confidence([View(logits[0], matrix, matrix)], confidence=("probability",))
    assert loss.item() == pytest.approx(math.log(3))
    torch.testing.assert_close(found.confidence["probability"], torch.full((8, 8), 1 / 3))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@settings(max_examples=80)
@given(case=broken())
def test_the_label_map_equals_that_of_torch(case: Case, name: str) -> None:
    full = through(lambda x: upsample(x, case.size, case.padded), case.logits.double())
    with implementation(name):
        labels = ms.ops.upsampled_argmax(case.logits, case.size, padded_size=case.padded).long()
    special = full.isnan().any(1) | (full == math.inf).any(1)
    assert torch.equal(labels[special], full.argmax(1)[special])
    chosen = full.gather(1, labels[:, None])[:, 0]
    assert ((full.amax(1) - chosen)[~special].nan_to_num(0) < 1e-5).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_confidence_of_a_nan_pixel_is_nan(name: str) -> None:
    z = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0))
    matrix = ms.ops.bilinear_matrix(4, 16, 16)
    whole, broken = View(z.clone(), matrix, matrix), View(z.clone(), matrix, matrix)
    broken.z[2, 0, 0] = math.nan
    reads = (matrix[:, :1] > 0) & (matrix[:, 0] > 0)
    with implementation(name):
        for views in ([broken], [whole, broken]):
            found = pixel_confidence(views, confidence=("probability", "margin", "entropy"), probabilities=(1,))
            for values in (*found.confidence.values(), found.probabilities[1]):
                assert torch.equal(values.isnan(), reads)
