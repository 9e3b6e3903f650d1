"""Weighted sums of losses against their definitions on float64 logits that are upsampled and stored."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.library import opcheck

import meanshifter as ms
from meanshifter.evaluation.metrics import near_boundary
from meanshifter.ops.pixel_weights import boundary_pixels, hardest
from tests.ops.cases import IMPLEMENTATIONS, Case, cases, implementation, upsample

TERMS: dict[str, dict[str, Any]] = {
    "focal": {"cross_entropy": 0.0, "focal": 1.0},
    "focal with another exponent": {"cross_entropy": 0.0, "focal": 1.0, "focal_gamma": 0.7},
    "focal without exponent": {"cross_entropy": 0.0, "focal": 1.0, "focal_gamma": 0.0},
    "dice": {"cross_entropy": 0.0, "dice": 1.0},
    "ohem": {"ohem_share": 0.3},
    "boundary": {"boundary_weight": 4.0, "boundary_radius": 2},
    "all": {
        "cross_entropy": 0.5,
        "focal": 2.0,
        "dice": 3.0,
        "focal_gamma": 3.0,
        "ohem_share": 0.6,
        "boundary_weight": 0.5,
        "boundary_radius": 1,
    },
}


def counts_of(labels: torch.Tensor, weight: float, radius: int) -> torch.Tensor:
    """How often each pixel counts: once, or `weight` times if one of the pixels around is of another class."""
    counts = torch.ones(labels.shape, dtype=torch.float64)
    B, H, W = labels.shape
    for b in range(B):
        for y in range(H):
            for x in range(W):
                around = labels[b, max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
                if ((around != 255) & (around != labels[b, y, x])).any():
                    counts[b, y, x] = weight
    return counts.where(labels != 255, 0)


def definition(
    full: torch.Tensor,
    labels: torch.Tensor,
    weight: torch.Tensor,
    reduction: str,
    smoothing: float,
    *,
    cross_entropy: float = 1.0,
    focal: float = 0.0,
    dice: float = 0.0,
    focal_gamma: float = 2.0,
    ohem_share: float | None = None,
    boundary_weight: float = 1.0,
    boundary_radius: int = 3,
) -> torch.Tensor:
    """The losses as their papers write them, on stored logits (B, K, H, W)."""
    valid = labels != 255
    if not valid.any():
        return full.sum() * 0
    K = full.shape[1]
    t = labels[valid]
    count = counts_of(labels, boundary_weight, boundary_radius)[valid]
    log_q = full.permute(0, 2, 3, 1)[valid].log_softmax(1)  # (n, K)
    own = log_q[torch.arange(len(t)), t]
    divisor = float((count * weight[t]).sum()) if reduction == "mean_valid" else labels.numel()
    each = F.cross_entropy(log_q, t, weight, reduction="none", label_smoothing=smoothing)
    share = 1.0 if ohem_share is None else ohem_share
    # the mean over the hardest share: pixels in order of difficulty, the last one in part
    order = own.detach().argsort()
    part = (share * len(t) - torch.arange(len(t), dtype=torch.float64)).clamp(0, 1)
    loss = cross_entropy * (part * (count * each)[order]).sum() / (share * divisor)
    loss = loss + focal * (count * weight[t] * (1 - own.exp()).clamp(min=1e-30) ** focal_gamma * -own).sum() / divisor
    q, one = log_q.exp(), F.one_hot(t, K).double()
    inside, whole = (count[:, None] * q * one).sum(0), (count[:, None] * (q + one)).sum(0)
    present = one.sum(0) > 0
    return loss + dice * (1 - 2 * inside[present] / whole[present]).mean()


@pytest.mark.parametrize("terms", TERMS)
@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"), [("kernels", torch.float32, 1e-5), ("reference", torch.float64, 1e-10)]
)
@settings(max_examples=8)
@given(
    case=cases(),
    reduction=st.sampled_from(["mean_valid", "mean_all"]),
    smoothing=st.sampled_from([0.0, 0.1]),
    ignored=st.sampled_from([0, 0.3, 1]),
)
def test_losses_and_gradients_are_those_of_the_upsampled_logits(
    case: Case,
    reduction: Any,
    smoothing: float,
    ignored: float,
    terms: str,
    name: str,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    size = (min(case.size[0], 20), min(case.size[1], 20))
    exact = case.logits.to(dtype).double().requires_grad_()
    B, K = exact.shape[:2]
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, K, (B, 1 + size[0] // 4, 1 + size[1] // 4)).repeat(4, 1).repeat(4, 2)
    drawn = np.where(rng.random((B, *size)) < ignored, 255, coarse[:, : size[0], : size[1]])
    labels = torch.from_numpy(drawn)
    weight = torch.rand(K, dtype=torch.float64) + 0.5
    full = upsample(exact, size, case.padded)
    expected = definition(full, labels, weight, reduction, smoothing, **TERMS[terms])
    (expected_gradient,) = torch.autograd.grad(expected, exact)
    if TERMS[terms].get("ohem_share") is not None:  # where equally hard pixels differ, the choice is not defined
        own = full.detach().log_softmax(1).gather(1, labels.where(labels != 255, 0)[:, None])[:, 0][labels != 255]
        places = TERMS[terms]["ohem_share"] * len(own)
        ordered = own.sort().values
        at = int(places)
        gaps = ordered.diff()[max(at - 2, 0) : at + 1]
        assume(bool((gaps > 1e-4 * max(float(full.detach().abs().max()), 1)).all()))
    logits = exact.detach().to(dtype).requires_grad_()
    with implementation(name):
        loss = ms.ops.upsampled_loss(
            logits,
            labels.to(torch.uint8),
            padded_size=case.padded,
            reduction=reduction,
            weight=weight,
            label_smoothing=smoothing,
            **TERMS[terms],
        )
    (gradient,) = torch.autograd.grad(loss, logits)
    scale = max(float(full.detach().abs().max()), 1)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=tolerance, atol=tolerance * scale)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=tolerance, atol=tolerance * scale)


def batch(K: int = 6, size: int = 64, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels that agree in part, with ignored pixels and one absent class."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K - 1, (2, size // 8, size // 8), generator=generator)
    grid = F.one_hot(labels, K).permute(0, 3, 1, 2)[..., ::2, ::2].to(dtype)
    logits = 2 * grid + torch.randn(grid.shape, generator=generator, dtype=dtype)
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    labels[:, :3] = 255
    return logits.requires_grad_(), labels


@pytest.mark.parametrize("terms", TERMS)
def test_the_kernels_agree_with_the_reference_in_relative_terms(terms: str) -> None:
    logits, labels = batch()
    found = []
    for name, z in (("kernels", logits), ("reference", logits.detach().double().requires_grad_())):
        with implementation(name):
            loss = ms.ops.upsampled_loss(z, labels, **TERMS[terms])
        found.append((loss.double().detach(), torch.autograd.grad(loss, z)[0].double()))
    (loss, gradient), (expected, expected_gradient) = found
    assert abs(loss - expected) <= 1e-5 * abs(expected)
    assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()


@pytest.mark.parametrize("terms", TERMS)
def test_the_gradient_is_the_derivative_of_the_loss(terms: str) -> None:
    logits, labels = batch(K=3, size=32, dtype=torch.float64)
    weight = torch.tensor([0.5, 1, 2], dtype=torch.float64)

    def loss(z: torch.Tensor) -> torch.Tensor:
        return ms.ops.upsampled_loss(z, labels, weight=weight, label_smoothing=0.1, **TERMS[terms])

    assert torch.autograd.gradcheck(loss, logits)


def test_cross_entropy_alone_is_the_same_operation() -> None:
    logits, labels = batch()
    expected = ms.ops.upsampled_cross_entropy(logits, labels, reduction="mean_all")
    assert torch.equal(ms.ops.upsampled_loss(logits, labels, reduction="mean_all"), expected)
    assert torch.equal(ms.ops.upsampled_loss(logits, labels, cross_entropy=0.25, reduction="mean_all"), expected / 4)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_focal_loss_without_exponent_and_a_share_of_one_are_cross_entropy(name: str) -> None:
    logits, labels = batch()
    expected = ms.ops.upsampled_cross_entropy(logits, labels)
    with implementation(name):
        focal = ms.ops.upsampled_loss(logits, labels, cross_entropy=0.0, focal=1.0, focal_gamma=0.0)
        mined = ms.ops.upsampled_loss(logits, labels, ohem_share=1.0)
    torch.testing.assert_close(focal, expected)
    torch.testing.assert_close(mined, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=30)
@given(
    values=st.lists(
        st.sampled_from([0.0, 1e-40, 0.1, 0.5, 0.5000001, 3.0, 3e5, float("inf")]), min_size=4, max_size=40
    ),
    share=st.floats(0.01, 1),
    ignored=st.integers(0, 3),
)
def test_the_hardest_pixels_are_those_of_a_sort(
    values: list[float], share: float, ignored: int, dtype: torch.dtype
) -> None:
    losses = torch.tensor(values[: len(values) // 2 * 2], dtype=dtype).view(2, 1, -1)
    valid = torch.ones(losses.shape, dtype=torch.bool)
    valid.view(-1)[:ignored] = False
    parts = hardest(losses.clone(), valid, share)
    total = share * int(valid.sum())
    assert float(parts.sum()) == pytest.approx(total, rel=1e-5)
    assert (parts[~valid] == 0).all()
    ordered = losses[valid].sort(descending=True).values
    threshold = ordered[max(int(np.ceil(total)) - 1, 0)]
    assert (parts[valid & (losses > threshold)] == 1).all()
    assert (parts[losses < threshold] == 0).all()
    tied = parts[valid & (losses == threshold)]
    assert (tied == tied[0]).all()
    assert 0 < tied[0] <= 1


def test_losses_that_are_not_a_number_are_the_hardest() -> None:
    losses = torch.tensor([[[1.0, -math.nan, 2.0, math.nan]]])
    assert hardest(losses, torch.ones(1, 1, 4, dtype=torch.bool), 0.75).tolist() == [[[0, 1, 1, 1]]]


def test_equally_hard_pixels_share_the_places_that_are_left() -> None:
    logits, labels = torch.zeros(1, 3, 2, 2, requires_grad=True), torch.zeros(1, 8, 8, dtype=torch.uint8)
    loss = ms.ops.upsampled_loss(logits, labels, ohem_share=0.3)
    (gradient,) = torch.autograd.grad(loss, logits)
    (expected,) = torch.autograd.grad(ms.ops.upsampled_cross_entropy(logits, labels), logits)
    torch.testing.assert_close(loss.item(), float(np.log(3)))
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int64])
@pytest.mark.parametrize("radius", [1, 2, 5])
def test_boundary_pixels_are_those_of_the_evaluation(dtype: torch.dtype, radius: int) -> None:
    drawn = np.random.default_rng(0).integers(0, 3, (2, 6, 7)).repeat(7, 1).repeat(7, 2)
    drawn[0, 5:20, 4:30] = 255
    expected = np.stack([near_boundary(one.astype(np.uint8), radius, 255) for one in drawn])
    found = boundary_pixels(torch.from_numpy(drawn).to(dtype), radius, 255)
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("terms", TERMS)
def test_loss_and_gradient_are_zero_if_every_pixel_is_ignored(name: str, terms: str) -> None:
    logits = torch.randn(2, 5, 3, 3, requires_grad=True)
    with implementation(name):
        loss = ms.ops.upsampled_loss(logits, torch.full((2, 48, 48), 255), **TERMS[terms])
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0
    assert (gradient == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_make_the_loss_not_finite(value: float) -> None:
    logits, labels = batch()
    broken = logits.detach().clone()
    broken[0, 1, 2, 2] = value
    for dtype in (torch.float32, torch.float64):
        loss = ms.ops.upsampled_loss(broken.to(dtype).requires_grad_(), labels, **TERMS["all"])
        assert not loss.isfinite()


def test_results_do_not_depend_on_the_number_of_threads() -> None:
    logits, labels = batch()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            loss = ms.ops.upsampled_loss(logits, labels, **TERMS["all"])
            found.append((loss, torch.autograd.grad(loss, logits)[0]))
    finally:
        torch.set_num_threads(1)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_full_resolution_logits_are_never_stored(largest: Any, name: str) -> None:
    K, size = 150, (256, 256)
    logits = torch.randn(2, K, 16, 16, requires_grad=True)
    labels = torch.zeros(2, *size, dtype=torch.uint8)
    with implementation(name), largest:
        torch.autograd.grad(ms.ops.upsampled_loss(logits, labels, **TERMS["all"]), logits)
    assert largest.elements <= K * size[0] * size[1] / 16


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dice": -1.0}, "dice: -1.0"),
        ({"lovasz": -0.5}, "lovasz: -0.5"),
        ({"focal": float("nan")}, "focal: nan"),
        ({"focal": 1.0, "focal_gamma": -2.0}, "focal_gamma: -2.0"),
        ({"ohem_share": 0.0}, "ohem_share: 0.0"),
        ({"ohem_share": 1.5}, "ohem_share: 1.5"),
        ({"boundary_weight": -1.0}, "boundary_weight: -1.0"),
        ({"boundary_weight": 2.0, "boundary_radius": 0}, "boundary_radius: 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting: Any, message: str) -> None:
    with pytest.raises(ms.InputError, match=message):
        ms.ops.upsampled_loss(torch.zeros(1, 3, 2, 2), torch.zeros(1, 8, 8).long(), **setting)


@pytest.mark.usefixtures("user")
def test_second_derivatives_are_refused() -> None:
    logits, labels = batch()
    loss = ms.ops.upsampled_loss(logits, labels, dice=1.0)
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(ms.InputError, match=r"no second derivative .* dice"):
        torch.autograd.grad(gradient.square().sum(), logits)


@pytest.mark.usefixtures("user")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # caused by opcheck
def test_the_operator_passes_opcheck_and_compiles_into_one_graph() -> None:
    logits, labels = batch()
    operator = torch.ops.meanshifter.upsampled_loss.default
    settings = [64, 64], 255, "mean_valid", 0.1, 1.0, 1.0, 1.0, 1.0, 2.0, 0.5, 2.0, 3
    for with_gradient in (True, False):
        z = logits if with_gradient else logits.detach()
        opcheck(
            operator,
            (z, labels, torch.ones(6), *settings, with_gradient),
            test_utils=["test_schema", "test_autograd_registration", "test_faketensor"],
        )

    def run(z: torch.Tensor) -> torch.Tensor:
        return ms.ops.upsampled_loss(2 * z, labels, **TERMS["all"])

    fast = torch.compile(run, fullgraph=True, backend="aot_eager")
    for function in (run, fast):
        logits.grad = None
        function(logits).backward()
        found = logits.grad
        if function is run:
            expected = found
    torch.testing.assert_close(found, expected)
