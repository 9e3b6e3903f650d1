"""What the explorer shows of tokens agrees with the block itself and with `meanshifter modes`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import meanshifter as ms
from meanshifter.analysis.modes import find_modes
from meanshifter.app import tokens as module
from meanshifter.app.tokens import Tokens, region_of, why_no_steps, why_no_tokens
from meanshifter.evaluation.diagnostics import in_double
from meanshifter.inference.preprocess import resize
from meanshifter.model.segmenter import Segmenter
from tests.conftest import ModelFactory

IMAGE = np.random.default_rng(0).integers(0, 255, (60, 93, 3), dtype=np.uint8)


def of(model: Segmenter, layers: int = 3, point: tuple[float, float] | None = None) -> Tokens:
    predictor = ms.Predictor(model, short_side=48, long_side=96, window=32, window_stride=24)
    return Tokens(predictor, IMAGE, region_of(predictor, IMAGE.shape[:2], point), layers)


def states_of(model: Segmenter, layers: int) -> torch.Tensor:
    predictor = ms.Predictor(model, short_side=48, long_side=96)
    resized = predictor.preprocess.size(60, 93)
    tokens, grid = model.encode(model.normalize(resize(IMAGE, resized)))
    assert model.mean_shift is not None
    with torch.no_grad():
        return in_double(model.mean_shift).trajectory(tokens.double(), layers, grid)[:, 0]


def test_modes_are_those_of_the_command(tiny_model: ModelFactory) -> None:
    model = tiny_model(layers=2).eval()
    found = find_modes(ms.Predictor(model, short_side=48, long_side=96), IMAGE, layers=3)
    tokens = of(model)
    assert tokens.grid == found.grid
    for step in range(4):
        assert (tokens.modes(step) == found.labels[step]).all()


def test_the_plane_holds_the_principal_components_of_the_first_tokens(tiny_model: ModelFactory) -> None:
    model = tiny_model(layers=2).eval()
    tokens, states = of(model), states_of(model, 3).numpy()
    middle = states[0].mean(0)
    _, sizes, axes = np.linalg.svd(states[0] - middle, full_matrices=False)
    expected = (states - middle) @ axes[:2].T
    signs = np.sign((expected * tokens.plane).sum((0, 1)))
    assert np.allclose(tokens.plane, expected * signs, atol=1e-4 * sizes[0])
    assert tokens.explained == pytest.approx(list(sizes[:2] ** 2 / (sizes**2).sum()))


@pytest.mark.parametrize("options", [{}, {"blurring": False}, {"kernel": "gaussian", "spatial_sigma": 2.0}], ids=str)
def test_weights_are_a_row_of_the_next_step(options: dict[str, object], tiny_model: ModelFactory) -> None:
    model = tiny_model(layers=2, **options).eval()
    tokens, states = of(model), states_of(model, 3)
    for step in range(3):
        row = torch.from_numpy(tokens.weights(7, step)).double()
        data = states[step] if options.get("blurring", True) else states[0]
        assert row.sum() == pytest.approx(1, abs=1e-5)
        assert torch.allclose(row @ data, states[step + 1][7], atol=1e-4)


def test_similarity_is_the_cosine_of_two_tokens(tiny_model: ModelFactory) -> None:
    model = tiny_model(layers=2).eval()
    found, z = of(model).similarity(5, 1), states_of(model, 1)[1].numpy()
    expected = z @ z[5] / np.linalg.norm(z, axis=1) / np.linalg.norm(z[5])
    assert np.allclose(found, expected, atol=1e-5)


def test_class_embeddings_take_part_in_the_mean_and_are_no_patches(tiny_model: ModelFactory) -> None:
    model = tiny_model("meanshifter-mask-ti16", layers=1, with_classes="before_product").eval()
    tokens = of(model, 2)
    weights = tokens.weights(0, 0)
    assert weights is not None
    assert len(weights) == tokens.count + model.num_classes
    assert len(tokens.similarity(0, 0)) == len(tokens.modes(1)) == tokens.plane.shape[1] == tokens.count


def test_tokens_of_a_model_without_steps_stay(tiny_model: ModelFactory) -> None:
    for preset, words in (("segmenter-ti16", "no mean shift block"), ("meanshifter-pixel-ti16", "cells of pixels")):
        model = tiny_model(preset).eval()
        tokens = of(model)
        assert (tokens.layers, len(tokens.plane), tokens.weights(0, 0)) == (0, 1, None)
        assert words in why_no_steps(model)
        assert not why_no_tokens(model)
    assert not why_no_steps(tiny_model().eval())


def test_an_image_with_many_patches_is_seen_through_a_window(
    tiny_model: ModelFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model().eval()
    assert of(model).region.in_image() == pytest.approx((0, 0, 93, 60))
    for most, side in ((16, 32), (9, 24)):  # of the predictor's windows, and smaller ones
        monkeypatch.setattr(module, "MAX_TOKENS", most)
        for point in ((1.0, 1.0), (59.0, 92.0), (30.0, 40.0)):
            tokens = of(model, point=point)
            left, top, right, bottom = tokens.region.in_image()
            assert top <= point[0] <= bottom
            assert left <= point[1] <= right
            assert tokens.count == (side // 8) ** 2


def test_equal_tokens_are_one_mode_and_explain_nothing(tiny_model: ModelFactory) -> None:
    model = tiny_model("segmenter-ti16").eval()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.zero_()
    tokens = of(model)
    assert (tokens.explained, int(tokens.modes(0).max())) == ([0, 0], 0)
