from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import meanshifter as ms
from tests.ops.cases import IMPLEMENTATIONS, Case, cases, implementation, upsample


def definition(full: torch.Tensor, labels: torch.Tensor, reduction: str, weight: Any, smoothing: float) -> torch.Tensor:
    """Cross-entropy of upsampled logits in float64; 0 without labeled pixels."""
    total = F.cross_entropy(full, labels, weight, ignore_index=255, reduction="sum", label_smoothing=smoothing)
    valid = labels[labels != 255]
    factors = torch.ones(full.shape[1], dtype=torch.float64) if weight is None else weight
    count = labels.numel() if reduction == "mean_all" else factors[valid].sum()
    return total / count if count > 0 else total


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [("kernels", torch.float32, 1e-5), ("reference", torch.float32, 1e-5), ("reference", torch.float64, 1e-10)],
)
@settings(max_examples=60)
@given(
    case=cases(),
    reduction=st.sampled_from(["mean_valid", "mean_all"]),
    smoothing=st.sampled_from([0.0, 0.1]),
    weighted=st.booleans(),
    ignored=st.sampled_from([0, 0.3, 1]),
)
def test_the_loss_and_its_gradient_are_those_of_the_upsampled_logits(
    case: Case,
    reduction: Any,
    smoothing: float,
    weighted: bool,
    ignored: float,
    name: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    exact = case.logits.to(dtype).double().requires_grad_()
    B, K = exact.shape[:2]
    rng = np.random.default_rng(0)
    drawn = np.where(rng.random((B, *case.size)) < ignored, 255, rng.integers(0, K, (B, *case.size)))
    labels = torch.from_numpy(drawn)
    weight = torch.rand(K, dtype=torch.float64) + 0.5 if weighted else None
    full = upsample(exact, case.size, case.padded)
    expected = definition(full, labels, reduction, weight, smoothing)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    logits = exact.detach().to(dtype).requires_grad_()
    with implementation(name):
        loss = ms.ops.upsampled_cross_entropy(
            logits,
            labels.to(torch.uint8),
            padded_size=case.padded,
            reduction=reduction,
            weight=weight,
            label_smoothing=smoothing,
        )
    (gradient,) = torch.autograd.grad(loss, logits)
    scale = max(float(full.detach().abs().max()), 1)  # float32 is 30 times coarser at 30 than at 1
    if dtype == torch.float64:
        assert loss.dtype == torch.float64
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=tolerance, atol=tolerance * scale)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_loss_and_gradient_are_zero_if_every_pixel_is_ignored(name: str) -> None:
    logits = torch.randn(2, 5, 3, 3, requires_grad=True)
    with implementation(name):
        loss = ms.ops.upsampled_cross_entropy(logits, torch.full((2, 48, 48), 255))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_the_loss_is_float32_and_its_gradient_has_the_type_of_the_logits(name: str) -> None:
    logits = torch.randn(1, 5, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    with implementation(name):
        loss = ms.ops.upsampled_cross_entropy(logits, torch.zeros(1, 48, 48, dtype=torch.uint8))
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_autocast_around_the_operations_changes_nothing(name: str) -> None:
    logits = torch.randn(1, 20, 4, 5)
    labels = torch.randint(0, 20, (1, 64, 80))
    with implementation(name):
        with torch.autocast("cpu", torch.bfloat16):
            inside = ms.ops.upsampled_argmax(logits, (64, 80)), ms.ops.upsampled_cross_entropy(logits, labels)
        assert torch.equal(inside[0], ms.ops.upsampled_argmax(logits, (64, 80)))
        assert torch.equal(inside[1], ms.ops.upsampled_cross_entropy(logits, labels))


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    logits, labels = torch.randn(3, 12, 9, 9, requires_grad=True), torch.randint(0, 12, (3, 144, 144))
    losses, gradients, maps = [], [], []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            losses.append(ms.ops.upsampled_cross_entropy(logits, labels))
            gradients.append(torch.autograd.grad(losses[-1], logits)[0])
            maps.append(ms.ops.upsampled_argmax(logits.detach(), (144, 144)))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(maps[0], maps[1])


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(1, 3, 2, 2), torch.full((1, 8, 8), 7), r"labels: value 7 in 64 pixels"),
        (torch.zeros(1, 3, 2, 2), torch.full((1, 8, 8), -1), r"labels: value -1 in 64 pixels"),
        (torch.zeros(1, 3, 2, 2), torch.full((1, 8, 8), 2**32), r"value 4294967296 in 64 pixels"),
        (torch.zeros(1, 3, 2, 2), torch.zeros(1, 8, 8, device="meta").long(), r"labels: on meta, .* logits on cpu"),
        (torch.zeros(1, 3, 2, 2), torch.zeros(2, 8, 8).long(), r"expected integers \(B, H, W\) with B=1"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 8, 8).long(), r"expected floats \(B, K, h, w\)"),
    ],
)
def test_incompatible_inputs_are_refused(logits: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ms.InputError, match=message):
        ms.ops.upsampled_cross_entropy(logits, labels)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"label_smoothing": -0.1}, "label_smoothing: -0.1"),
        ({"label_smoothing": float("nan")}, "label_smoothing: nan"),
        ({"reduction": "mean"}, "reduction: 'mean'"),
        ({"weight": torch.ones(3, requires_grad=True)}, "weight: requires a gradient"),
    ],
)
@pytest.mark.usefixtures("user")
def test_unsupported_settings_are_refused(setting: Any, message: str) -> None:
    with pytest.raises(ms.InputError, match=message):
        ms.ops.upsampled_cross_entropy(torch.zeros(1, 3, 2, 2), torch.zeros(1, 8, 8).long(), **setting)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("ignored", [-100, 1, 65535, 2**40])
@pytest.mark.parametrize("dtype", [torch.uint16, torch.int64])
def test_any_value_may_be_ignored(ignored: int, dtype: torch.dtype, name: str) -> None:
    logits = torch.randn(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(64).view(1, 8, 8) % 3
    if dtype == torch.int64 or ignored == 65535:
        labels[0, 0] = ignored
    with implementation(name):
        loss = ms.ops.upsampled_cross_entropy(logits, labels.to(dtype), ignore_index=ignored)
    expected = F.cross_entropy(upsample(logits, (8, 8), (8, 8)), labels, ignore_index=ignored)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_full_resolution_logits_are_never_stored(largest: Any, name: str) -> None:
    K, size = 150, (512, 512)
    logits = torch.randn(2, K, 32, 32, requires_grad=True)
    labels = torch.zeros(2, *size, dtype=torch.uint8)
    with implementation(name), largest:
        loss = ms.ops.upsampled_cross_entropy(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        gradient.square().sum().backward()
    assert largest.elements <= K * size[0] * size[1] / 64
