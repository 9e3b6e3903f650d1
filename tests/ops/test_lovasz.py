"""The Lovász loss on a histogram against its definition on stored float64 logits, and against that by sorting."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import meanshifter as ms
from meanshifter.ops import cpu
from meanshifter.ops.upsampling import upsampling_axes
from tests.ops.cases import IMPLEMENTATIONS, Case, cases, implementation, upsample
from tests.ops.test_loss_terms import batch, counts_of

BINS = 1024
ALONE: dict[str, Any] = {"cross_entropy": 0.0, "lovasz": 1.0}
ALL: dict[str, Any] = {"focal": 1.0, "dice": 2.0, "lovasz": 3.0, "ohem_share": 0.5, "boundary_weight": 3.0}


def definition(full: torch.Tensor, labels: torch.Tensor, count: torch.Tensor, *, by_sorting: bool) -> torch.Tensor:
    """Class by class, on stored logits (B, K, H, W)."""
    valid = labels != 255
    q, t, m = full.permute(0, 2, 3, 1)[valid].softmax(1), labels[valid], count[valid]
    losses = []
    for k in t.unique().tolist():
        own = t == k
        error = torch.where(own, 1 - q[:, k], q[:, k])
        slope = (sorted_slope if by_sorting else binned_slope)(error.detach(), own, m)
        losses.append((m * slope * error).sum())
    return torch.stack(losses).mean() if losses else full.sum() * 0


def sorted_slope(error: torch.Tensor, own: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """As the paper's Algorithm 1: how much the Jaccard loss grows with each pixel, in order of errors."""
    order = error.argsort(descending=True)
    hit = own[order].double()
    jaccard = 1 - (hit.sum() - hit.cumsum(0)) / (hit.sum() + (1 - hit).cumsum(0))
    return jaccard.diff(prepend=jaccard.new_zeros(1))[order.argsort()]


def binned_slope(error: torch.Tensor, own: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """The derivative of the Jaccard loss where half of the pixels in the same bin count as harder."""
    bins = (error * BINS).floor().clamp(max=BINS - 1)
    before = {
        hit: torch.stack([m[(bins > b) & (own == hit)].sum() + m[(bins == b) & (own == hit)].sum() / 2 for b in bins])
        for hit in (True, False)
    }
    labeled = m[own].sum()
    union = labeled + before[False]
    return torch.where(own, 1 / union, (labeled - before[True]) / union**2)


@settings(max_examples=10)
@given(case=cases(), ignored=st.sampled_from([0, 0.3, 1]), boundary=st.sampled_from([1.0, 2.5]))
def test_the_reference_is_the_definition(case: Case, ignored: float, boundary: float) -> None:
    size = (min(case.size[0], 12), min(case.size[1], 12))
    exact = case.logits.double().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, exact.shape[1], (len(exact), *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    count = counts_of(labels, boundary, 1)
    expected = definition(upsample(exact, size, case.padded), labels, count, by_sorting=False)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    terms = {**ALONE, "boundary_weight": boundary, "boundary_radius": 1}
    loss = ms.ops.upsampled_loss(exact, labels, padded_size=case.padded, **terms)
    (gradient,) = torch.autograd.grad(loss, exact)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("terms", [ALONE, ALL])
def test_the_kernels_agree_with_the_reference_in_relative_terms(terms: dict[str, Any]) -> None:
    logits, labels = batch(size=256)
    exact = logits.detach().double().requires_grad_()
    loss, expected = (ms.ops.upsampled_loss(z, labels, **terms) for z in (logits, exact))
    (gradient,), (expected_gradient,) = torch.autograd.grad(loss, logits), torch.autograd.grad(expected, exact)
    assert abs(loss.double() - expected) <= 1e-5 * abs(expected)
    assert (gradient.double() - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()
    with torch.no_grad():
        assert torch.equal(ms.ops.upsampled_loss(logits, labels, **terms), loss.detach())


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_histogram_is_almost_as_exact_as_sorting(name: str) -> None:
    logits, labels = batch(size=256)
    exact = logits.detach().double().requires_grad_()
    ones = torch.ones(labels.shape, dtype=torch.float64)
    expected = definition(upsample(exact, (256, 256), (256, 256)), labels, ones, by_sorting=True)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    with implementation(name):
        loss = ms.ops.upsampled_loss(logits, labels, **ALONE)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert abs(loss.double() - expected) <= 1e-5 * abs(expected)
    assert (gradient.double() - expected_gradient).norm() <= 5e-4 * expected_gradient.norm()


def test_the_gradient_is_the_derivative_of_the_loss() -> None:
    logits, labels = batch(K=3, size=16, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: ms.ops.upsampled_loss(z, labels, **ALONE), logits)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_loss_and_gradient_are_zero_if_every_pixel_is_ignored(name: str) -> None:
    logits = torch.randn(2, 5, 3, 3, requires_grad=True)
    with implementation(name):
        loss = ms.ops.upsampled_loss(logits, torch.full((2, 48, 48), 255), **ALONE)
    assert loss == 0
    assert (torch.autograd.grad(loss, logits)[0] == 0).all()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    logits, labels = batch()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            loss = ms.ops.upsampled_loss(logits, labels, **ALL)
            found.append((loss, torch.autograd.grad(loss, logits)[0]))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_large_images_have_parts_whose_pixels_float32_can_count(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = batch()
    expected = ms.ops.upsampled_loss(logits, labels, **ALL)
    assert cpu.LARGEST_PART < 2**24
    monkeypatch.setattr(cpu, "LARGEST_PART", 4 * labels.shape[2])
    axes = upsampling_axes(logits, labels.shape[1:], labels.shape[1:])
    assert max(end - begin for begin, end in cpu._source(logits, labels, axes, 255).parts) <= 4
    torch.testing.assert_close(ms.ops.upsampled_loss(logits, labels, **ALL), expected, rtol=1e-6, atol=0)


def test_a_cuda_device_uses_the_tiles() -> None:
    logits, labels = batch()
    with implementation("reference"):
        expected = ms.ops.upsampled_loss(logits, labels, **ALL)
    with mock.patch("meanshifter.ops.loss_terms.backend", return_value="triton"):
        assert torch.equal(ms.ops.upsampled_loss(logits, labels, **ALL), expected)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_full_resolution_logits_are_never_stored(largest: Any, name: str) -> None:
    K, size = 150, (256, 256)
    logits, labels = torch.randn(2, K, 16, 16, requires_grad=True), torch.zeros(2, *size, dtype=torch.uint8)
    with implementation(name), largest:
        torch.autograd.grad(ms.ops.upsampled_loss(logits, labels, **ALL), logits)
    assert largest.elements <= K * size[0] * size[1] / 16
