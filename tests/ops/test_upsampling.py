from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import meanshifter as ms

SIDES = st.integers(1, 9)


def reference(logits: torch.Tensor, size: tuple[int, int], padded: tuple[int, int]) -> torch.Tensor:
    """The definition: upsample, then crop at the top left."""
    full = F.interpolate(logits.double().contiguous(), padded, mode="bilinear", align_corners=False)
    return full[..., : size[0], : size[1]]


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, tuple[int, int], tuple[int, int]]:
    B, K, h, w = draw(st.integers(1, 2)), draw(st.integers(1, 7)), draw(SIDES), draw(SIDES)
    padded = (draw(st.integers(1, 300)), draw(st.integers(1, 40)))
    size = (draw(st.integers(1, padded[0])), draw(st.integers(1, padded[1])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    logits = torch.randn(B, K, w, h, generator=generator).transpose(2, 3)
    return logits.to(draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))), size, padded


@settings(max_examples=60, deadline=None)
@given(cases())
def test_the_label_map_is_the_argmax_of_the_upsampled_logits(
    case: tuple[torch.Tensor, tuple[int, int], tuple[int, int]],
) -> None:
    logits, size, padded = case
    full = reference(logits, size, padded)
    labels = ms.ops.upsampled_argmax(logits, size, padded_size=padded)
    assert labels.dtype == torch.uint8
    chosen = full.gather(1, labels.long()[:, None])[:, 0]
    assert (full.amax(1) - chosen).max() < 1e-5


@given(st.integers(0, 3), st.integers(1, 3))
def test_the_lowest_class_wins_a_tie(first: int, copies: int) -> None:
    logits = torch.rand(1, 8, 5, 6)
    logits[:, first] = 2 + torch.rand(1, 5, 6)
    logits[:, first + copies] = logits[:, first]
    assert (ms.ops.upsampled_argmax(logits, (80, 96)) == first).all()


def test_autocast_around_the_operations_changes_nothing() -> None:
    logits = torch.randn(1, 20, 4, 5)
    labels = torch.randint(0, 20, (1, 64, 80))
    with torch.autocast("cpu", torch.bfloat16):
        inside = ms.ops.upsampled_argmax(logits, (64, 80)), ms.ops.upsampled_cross_entropy(logits, labels)
    assert torch.equal(inside[0], ms.ops.upsampled_argmax(logits, (64, 80)))
    assert torch.equal(inside[1], ms.ops.upsampled_cross_entropy(logits, labels))


def test_more_than_255_classes_need_sixteen_bits() -> None:
    logits = torch.zeros(1, 300, 2, 2)
    logits[:, 299] = 1
    labels = ms.ops.upsampled_argmax(logits, (8, 8))
    assert labels.dtype == torch.uint16
    assert (labels.long() == 299).all()


@settings(max_examples=40, deadline=None)
@given(cases(), st.sampled_from(["valid", "pixels"]), st.sampled_from([0.0, 0.1]), st.booleans(), st.floats(0, 1))
def test_the_loss_and_its_gradient_are_those_of_the_upsampled_logits(
    case: tuple[torch.Tensor, tuple[int, int], tuple[int, int]],
    normalize: Any,
    smoothing: float,
    weighted: bool,
    ignored: float,
) -> None:
    logits, size, padded = case
    logits = logits.double().requires_grad_()
    B, K = logits.shape[:2]
    rng = np.random.default_rng(0)
    labels = torch.from_numpy(np.where(rng.random((B, *size)) < ignored, 255, rng.integers(0, K, (B, *size))))
    weight = torch.rand(K, dtype=torch.float64) + 0.5 if weighted else None
    full = reference(logits, size, padded)
    total = F.cross_entropy(full, labels, weight, ignore_index=255, reduction="sum", label_smoothing=smoothing)
    valid = labels[labels != 255]
    count = (
        labels.numel() if normalize == "pixels" else (torch.ones(K).double() if weight is None else weight)[valid].sum()
    )
    expected = total / count if count > 0 else total
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    loss = ms.ops.upsampled_cross_entropy(
        logits,
        labels,
        padded_size=padded,
        normalize=normalize,
        weight=weight,
        label_smoothing=smoothing,
    )
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-8)


def test_where_every_pixel_is_ignored_loss_and_gradient_are_zero() -> None:
    logits = torch.randn(2, 5, 3, 3, requires_grad=True)
    loss = ms.ops.upsampled_cross_entropy(logits, torch.full((2, 48, 48), 255))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_the_loss_is_float32_and_its_gradient_has_the_type_of_the_logits() -> None:
    logits = torch.randn(1, 5, 3, 3, dtype=torch.bfloat16, requires_grad=True)
    loss = ms.ops.upsampled_cross_entropy(logits, torch.zeros(1, 48, 48, dtype=torch.uint8))
    loss.backward()
    assert loss.dtype == torch.float32
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(1, 3, 2, 2), torch.full((1, 8, 8), 7), r"value 7 in 64 pixels; classes are 0 to 2"),
        (torch.zeros(1, 3, 2, 2), torch.zeros(2, 8, 8).long(), r"expected integers \(B, H, W\) with B=1"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 8, 8).long(), r"expected floats \(B, K, h, w\)"),
    ],
)
def test_what_does_not_fit_is_refused(logits: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(ms.InputError, match=message):
        ms.ops.upsampled_cross_entropy(logits, labels)


def test_neither_loss_nor_label_map_ever_holds_full_resolution_logits(largest: Any) -> None:
    K, size = 150, (1024, 1024)
    logits = torch.randn(1, K, 64, 64, requires_grad=True)
    with largest:
        ms.ops.upsampled_argmax(logits.detach(), size)
        ms.ops.upsampled_cross_entropy(logits, torch.zeros(1, *size, dtype=torch.int64)).backward()
    assert largest.elements <= K * 256 * 256
