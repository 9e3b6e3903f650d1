"""The operators on a CUDA device; skipped without one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import meanshifter as ms
from tests.ops.cases import upsample

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
K, SIZE = 19, (120, 150)


def drawn(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw patch logits and labels on the device."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, K, 8, 10, generator=generator).to("cuda", dtype)
    labels = torch.randint(0, K, (2, *SIZE), generator=generator)
    labels[:, :20] = 255
    return logits, labels.to("cuda")


@contextmanager
def without_waiting() -> Iterator[None]:
    """Raise if anything synchronizes the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("labels_dtype", [torch.uint8, torch.int64])
def test_loss_gradient_and_label_map_are_those_of_the_upsampled_logits(
    dtype: torch.dtype, labels_dtype: torch.dtype
) -> None:
    logits, labels = drawn(dtype)
    exact = logits.double().requires_grad_()
    full = upsample(exact, SIZE, (128, 160))
    expected = F.cross_entropy(full, labels, ignore_index=255, label_smoothing=0.1)
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    logits.requires_grad_()
    loss = ms.ops.upsampled_cross_entropy(logits, labels.to(labels_dtype), padded_size=(128, 160), label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(loss, logits)
    chosen = ms.ops.upsampled_argmax(logits, SIZE, padded_size=(128, 160))
    assert loss.device.type == chosen.device.type == "cuda"
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert gradient.dtype == dtype
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 1e-2
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=1e-6)
    lost = full.detach().amax(1) - full.detach().gather(1, chosen.long()[:, None])[:, 0]
    assert lost.max() < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [K, 200, -1, 2**32])
def test_a_label_that_is_not_a_class_gives_nan_and_keeps_the_device_usable(wrong: int, dtype: torch.dtype) -> None:
    logits, labels = drawn(dtype)
    labels[1, 50, 60] = wrong
    logits.requires_grad_()
    loss = ms.ops.upsampled_cross_entropy(logits, labels, weight=torch.rand(K, device="cuda"))
    loss.backward()
    assert loss.isnan()
    assert logits.grad is not None
    assert logits.grad.isnan().any()
    assert torch.ones(3, device="cuda").sum() == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_detected(value: float) -> None:
    logits, labels = drawn()
    logits[1, 3, 4, 4] = value
    labels[labels == 3] = 0
    full = upsample(logits, SIZE, SIZE)
    expected = F.cross_entropy(full, labels, ignore_index=255)
    loss = ms.ops.upsampled_cross_entropy(logits.requires_grad_(), labels)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert bool(gradient.isnan().any()) == (value != -math.inf)
    special = full.isnan().any(1) | (full == math.inf).any(1)
    assert torch.equal(ms.ops.upsampled_argmax(logits, SIZE).long()[special], full.argmax(1)[special])


def test_the_second_derivative_equals_that_of_the_cpu() -> None:
    found = []
    for device in ("cpu", "cuda"):
        logits, labels = (tensor.to(device) for tensor in drawn())
        logits.requires_grad_()
        loss = ms.ops.upsampled_cross_entropy(logits, labels)
        (first,) = torch.autograd.grad(loss, logits, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), logits)[0].cpu())
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-8)


def test_neither_operator_synchronizes_once_its_tables_are_cached() -> None:
    logits, labels = drawn()
    logits.requires_grad_()

    def once() -> Any:
        ms.ops.upsampled_cross_entropy(logits, labels, label_smoothing=0.1).backward()
        return ms.ops.upsampled_argmax(logits, SIZE)

    once()
    with without_waiting():
        once()


def test_full_resolution_logits_are_never_stored() -> None:
    logits = torch.randn(4, 150, 32, 32, device="cuda", requires_grad=True)
    labels = torch.randint(0, 150, (4, 512, 512), dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    ms.ops.upsampled_cross_entropy(logits, labels).backward()
    ms.ops.upsampled_argmax(logits, (512, 512))
    assert torch.cuda.max_memory_allocated() - before < 4 * 150 * 512 * 512 * 4 / 4
