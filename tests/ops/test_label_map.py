from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import meanshifter as ms
from meanshifter.inference.windows import axis_matrix
from meanshifter.ops import View, label_map, pixel_confidence
from meanshifter.ops.upsampling import axis_taps, bilinear_matrix
from tests.ops.cases import OF_LABEL_MAPS, Case, cases, implementation, upsample


@pytest.mark.parametrize("name", OF_LABEL_MAPS)
@settings(max_examples=80)
@given(case=cases())
def test_the_label_map_is_the_argmax_of_the_upsampled_logits(case: Case, name: str) -> None:
    full = upsample(case.logits.float(), case.size, case.padded)
    with implementation(name):
        labels = ms.ops.upsampled_argmax(case.logits, case.size, padded_size=case.padded)
    assert labels.dtype == torch.uint8
    chosen = full.gather(1, labels.long()[:, None])[:, 0]
    assert (full.amax(1) - chosen).max() < 1e-5 * max(float(full.abs().max()), 1)


@pytest.mark.parametrize("name", OF_LABEL_MAPS)
@given(first=st.integers(0, 3), copies=st.integers(1, 3))
def test_the_lowest_class_wins_a_tie(first: int, copies: int, name: str) -> None:
    logits = torch.rand(1, 8, 5, 6)
    logits[:, first] = 2 + torch.rand(1, 5, 6)
    logits[:, first + copies] = logits[:, first]
    with implementation(name):
        assert (ms.ops.upsampled_argmax(logits, (80, 96)) == first).all()
        assert (ms.ops.upsampled_argmax(torch.zeros(1, 3, 4, 4), (64, 64)) == 0).all()


@pytest.mark.parametrize("blend", ["constant", "cosine"])
@pytest.mark.parametrize("patch", [3, 4, 16])
@pytest.mark.parametrize("spread", [0.02, 1.0, 1000.0])
def test_where_windows_overlap_the_label_map_is_that_of_their_mean(blend: Any, patch: int, spread: float) -> None:
    """Also where windows disagree: classes are left out by bounds over each of them."""
    torch.manual_seed(0)
    window: dict[str, Any] = {"window": 48, "stride": 20, "patch_size": patch, "blend": blend}
    rows, cols = axis_matrix(83, 83, **window), axis_matrix(110, 110, **window)
    z = spread * torch.randn(30, rows.shape[1], cols.shape[1]) + torch.randn(30, 1, 1)
    labels = label_map([View(z, rows, cols)])
    full = torch.einsum("yh,khw,xw->kyx", rows.double(), z.double(), cols.double())

    chosen = full.gather(0, labels.long()[None])[0]
    assert (full.amax(0) - chosen).max() < 1e-5 * float(z.abs().max())
    assert (labels == full.argmax(0)).float().mean() > 0.999


@pytest.mark.parametrize("blend", ["constant", "cosine"])
@pytest.mark.parametrize(
    ("length", "size", "window", "stride", "patch"),
    [(83, 300, 48, 20, 16), (100, 150, 48, 40, 16), (150, 190, 64, 48, 16), (200, 400, 64, 40, 16), (60, 500, 9, 5, 8)],
)
def test_where_weights_bend_within_a_cell_no_class_is_left_out(
    length: int, size: int, window: int, stride: int, patch: int, blend: Any
) -> None:
    """Logits of overlapping windows that are resized are no straight lines between the patches' logits."""
    torch.manual_seed(0)
    windows: dict[str, Any] = {"window": window, "stride": stride, "patch_size": patch, "blend": blend}
    rows, cols = axis_matrix(length, size, **windows), axis_matrix(length + 20, size + 9, **windows)
    z = torch.randn(40, rows.shape[1], cols.shape[1])
    full = torch.einsum("yh,khw,xw->kyx", rows.double(), z.double(), cols.double())

    labels = label_map([View(z, rows, cols)])

    chosen = full.gather(0, labels.long()[None])[0]
    assert (full.amax(0) - chosen).max() < 1e-5 * float(z.abs().max())


def test_a_pixel_in_the_middle_of_a_patch_needs_no_cell_of_its_own() -> None:
    starts = axis_taps(bilinear_matrix(5, 15, 15), join=True).starts
    assert starts.tolist() == [0, 1, 4, 7, 10, 13, 15]
    taps = axis_taps(bilinear_matrix(5, 15, 15), join=True)
    dense = torch.zeros(15, 5)
    for t in range(taps.inputs.shape[1]):
        dense[torch.arange(15), torch.from_numpy(taps.inputs[:, t]).long()] += torch.from_numpy(taps.weight[t])
    assert torch.equal(dense, bilinear_matrix(5, 15, 15))


@pytest.mark.parametrize("name", OF_LABEL_MAPS)
def test_a_class_that_is_ruled_out_in_one_patch_can_win_in_the_middle_of_the_next(name: str) -> None:
    logits = torch.zeros(1, 2, 1, 3)
    logits[0, 1] = torch.tensor([1.0, -math.inf, 1.0])
    with implementation(name):
        labels = ms.ops.upsampled_argmax(logits, (3, 9))
    assert labels[0, 1, [0, 1, 4, 7, 8]].tolist() == [1, 1, 0, 1, 1]


@pytest.mark.parametrize("name", OF_LABEL_MAPS)
def test_more_than_255_classes_need_sixteen_bits(name: str) -> None:
    logits = torch.zeros(1, 300, 2, 2)
    logits[:, 299] = 1
    with implementation(name):
        labels = ms.ops.upsampled_argmax(logits, (8, 8))
    assert labels.dtype == torch.uint16
    assert (labels.long() == 299).all()


@st.composite
def views(draw: st.DrawFn) -> list[View]:
    """Draw one or more views of an image, from overlapping windows, resized to the same size."""
    K, size = draw(st.integers(1, 12)), (draw(st.integers(1, 60)), draw(st.integers(1, 60)))
    found = []
    for seed in range(draw(st.integers(1, 3))):
        lengths = draw(st.integers(1, 70)), draw(st.integers(1, 70))
        window = draw(st.integers(1, 40))
        stride = draw(st.integers(max(window // 3, 1), window))
        rows, cols = (
            axis_matrix(length, out, window=window, stride=stride, patch_size=4)
            for length, out in zip(lengths, size, strict=True)
        )
        generator = torch.Generator().manual_seed(seed)
        found.append(View(torch.randn(K, rows.shape[1], cols.shape[1], generator=generator), rows, cols))
    return found


@pytest.mark.parametrize("name", OF_LABEL_MAPS)
@settings(max_examples=60)
@given(several=views())
def test_scores_and_probabilities_are_those_of_the_averaged_softmax(several: list[View], name: str) -> None:
    dense = [view.rows.double() @ view.z.double() @ view.cols.double().T for view in several]
    p = torch.stack([z.softmax(0) for z in dense]).mean(0)
    K = len(p)
    with implementation(name):
        found = pixel_confidence(several, confidence=("probability", "margin", "entropy"), probabilities=(0, K - 1))
        assert torch.equal(found.labels, label_map(several))
    best = p.topk(min(K, 2), dim=0).values
    assert (p.amax(0) - p.gather(0, found.labels.long()[None])[0]).max() < 1e-5
    close: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5, "check_dtype": False}
    torch.testing.assert_close(found.confidence["probability"], best[0], **close)
    torch.testing.assert_close(found.confidence["margin"], best[0] - best[1] if K > 1 else best[0], **close)
    torch.testing.assert_close(found.confidence["entropy"], -torch.special.xlogy(p, p).sum(0), **close)
    torch.testing.assert_close(found.probabilities[K - 1], p[K - 1], **close)


def test_logits_far_apart_give_probabilities_of_zero_and_one() -> None:
    z = torch.tensor([0.0, 1e4, -1e4])[:, None, None].expand(3, 2, 2)
    matrix = ms.ops.bilinear_matrix(2, 8, 8)
    found = pixel_confidence([View(z, matrix, matrix)], confidence=("probability", "entropy"), probabilities=(0,))
    assert (found.confidence["probability"] == 1).all()
    assert (found.confidence["entropy"] == 0).all()
    assert (found.probabilities[0] == 0).all()


def test_classes_that_views_do_not_have_are_refused() -> None:
    view = View(torch.zeros(3, 1, 1), torch.ones(2, 1), torch.ones(2, 1))
    with pytest.raises(ms.InputError, match="probabilities: class 3"):
        pixel_confidence([view], probabilities=(3,))
    with pytest.raises(ms.InputError, match="views: 0 given"):
        label_map([])


@pytest.mark.usefixtures("user")
def test_an_unknown_confidence_is_refused() -> None:
    view = View(torch.zeros(3, 1, 1), torch.ones(2, 1), torch.ones(2, 1))
    with pytest.raises(ms.InputError, match="confidence: 'certainty'"):
        pixel_confidence([view], confidence=["certainty"])  # type: ignore[list-item]


@pytest.mark.parametrize("name", OF_LABEL_MAPS)
def test_full_resolution_logits_are_never_stored(largest: Any, name: str) -> None:
    K, size = 150, (512, 512)
    logits = torch.randn(1, K, 32, 32)
    matrix = ms.ops.bilinear_matrix(32, 512, 512)
    with implementation(name), largest:
        ms.ops.upsampled_argmax(logits, size)
        pixel_confidence([View(logits[0], matrix, matrix)] * 2, confidence=("margin",), probabilities=(3,))
    assert largest.elements <= K * size[0] * size[1] / 64
