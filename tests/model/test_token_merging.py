"""Merging of uniform windows within the encoder against its definition, token by token in float64."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import meanshifter as ms
from meanshifter.export.encoder import SizedEncoder
from meanshifter.model.config import TokenMergingConfig
from meanshifter.model.token_merging import MergedTokens


def with_merged_tokens(layers: Any, x: Tensor, grid: tuple[int, int], *, prefix: int, ratio: float) -> Tensor:
    merged = MergedTokens(x, grid, prefix=prefix, config=TokenMergingConfig(ratio=ratio))
    return merged.restored(layers(merged.tokens))


SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 4, "num_heads": 2}


class Mixing(nn.Module):
    """A residual layer that sees all tokens, with weights of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, width, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        weights = (x @ x.mT).softmax(-1)
        out: Tensor = x + weights @ self.inner(x).tanh()
        return out


def definition(layers: nn.Module, x: Tensor, grid: tuple[int, int], prefix: int, ratio: float) -> Tensor:
    """One image's tokens (M, D), window by window."""
    h, w = grid
    place = {(i, j): x[prefix + i * w + j] for i in range(h) for j in range(w)}
    windows = []
    for i in range(0, h, 2):
        for j in range(0, w, 2):
            cells = [(min(y, h - 1), min(c, w - 1)) for y in (i, i + 1) for c in (j, j + 1)]
            mean = torch.stack([place[cell] for cell in cells]).mean(0)
            cosines = [float(place[cell] @ mean / (place[cell].norm() * mean.norm())) for cell in cells]
            windows.append((cells, mean, sum(cosines) / 4))
    count = math.floor(ratio * len(windows) + 1e-9)
    order = sorted(range(len(windows)), key=lambda n: -windows[n][2])
    sequence = list(x[:prefix]) + [windows[n][1] for n in order[:count]]
    for n in order[count:]:
        sequence += [place[cell] for cell in windows[n][0]]
    out = layers(torch.stack(sequence)[None])[0]
    result = torch.empty_like(x)
    result[:prefix] = out[:prefix]
    for position, n in enumerate(order[:count]):
        cells, mean, _ = windows[n]
        for y, c in cells:
            result[prefix + y * w + c] = place[y, c] + out[prefix + position] - mean
    position = prefix + count
    for n in order[count:]:
        for k, (y, c) in reversed(list(enumerate(windows[n][0]))):  # of copies beyond the edge, the first one counts
            result[prefix + y * w + c] = out[position + k]
        position += 4
    return result


@settings(max_examples=40, deadline=None)
@given(
    h=st.integers(1, 7),
    w=st.integers(1, 7),
    prefix=st.integers(0, 2),
    ratio=st.sampled_from([0.1, 0.25, 0.5, 0.6, 0.999, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_merging_follows_its_definition(h: int, w: int, prefix: int, ratio: float, seed: int) -> None:
    torch.manual_seed(seed)
    layers = nn.Sequential(Mixing(5), Mixing(5))
    x = torch.randn(2, prefix + h * w, 5, dtype=torch.float64)
    with torch.no_grad():
        found = with_merged_tokens(layers, x, (h, w), prefix=prefix, ratio=ratio)
        for image, expected in zip(found, x, strict=True):
            torch.testing.assert_close(image, definition(layers, expected, (h, w), prefix, ratio), atol=1e-10, rtol=0)


def test_a_view_merges_tokens_of_a_model_trained_without() -> None:
    torch.manual_seed(0)
    model = ms.create_model("segmenter-ti16", 3, encoder_args=SMALL, image_size=64).eval()
    images = torch.randn(1, 3, 64, 64)
    dense = model(images)
    view = model.merging_view(0.5)

    assert view.config.token_merging == TokenMergingConfig(1, 0.5)
    assert not torch.equal(view(images), dense)
    assert torch.equal(model(images), dense)
    assert torch.equal(model.merging_view(0.0)(images), dense)
    with torch.no_grad():
        model.decoder.head.bias += 1  # type: ignore[operator, union-attr]
    assert torch.equal(view.decoder.head.bias, model.decoder.head.bias)  # type: ignore[arg-type, union-attr]


def test_a_model_trained_with_merging_keeps_its_settings_but_the_share() -> None:
    merging = {"after_layer": 2, "ratio": 0.75}
    model = ms.create_model("segmenter-ti16", 3, encoder_args=SMALL, image_size=64, token_merging=merging)
    assert model.merging_view(0.25).encoder.merging == TokenMergingConfig(2, 0.25)


def test_layers_see_a_share_of_the_tokens() -> None:
    seen: list[int] = []

    def layers(x: Tensor) -> Tensor:
        seen.append(x.shape[1])
        return x

    x = torch.randn(1, 1 + 100, 3)
    out = with_merged_tokens(layers, x, (10, 10), prefix=1, ratio=0.6)
    torch.testing.assert_close(out, x)
    assert seen == [1 + 15 + 10 * 4]
    assert TokenMergingConfig(ratio=0.29).merged(100) == 29  # floor(0.29 * 100) is 28 with floats


def test_uniform_windows_are_merged_and_the_others_keep_their_own_way() -> None:
    x = torch.randn(1, 16, 8)
    x[0, [0, 1, 4, 5]] = torch.randn(8)  # the first window

    def layers(tokens: Tensor) -> Tensor:
        assert tokens.shape[1] == 13
        torch.testing.assert_close(tokens[0, 0], x[0, 0])
        return tokens * 2

    out = with_merged_tokens(layers, x, (4, 4), prefix=0, ratio=0.25)
    torch.testing.assert_close(out, 2 * x)


@pytest.mark.parametrize("positions", ["antialias", "bicubic"])
def test_a_model_merges_between_its_layers(positions: Any) -> None:
    torch.manual_seed(0)
    space = ms.LabelSpace.unnamed(3)
    plain = ms.create_model("segmenter-ti16", classes=space, image_size=64, encoder_args=SMALL, drop_path=0.0).eval()
    config = replace(plain.config, positions=positions)
    merging = replace(config, token_merging=TokenMergingConfig(after_layer=1, ratio=0.5))
    models = [ms.Segmenter(each, space).eval() for each in (config, merging)]
    for model in models:
        model.load_state_dict(plain.state_dict())  # merging has no weights
    images = torch.randn(2, 3, 70, 96)
    sizes: list[int] = []
    for block in models[1].encoder.vit.blocks:
        block.register_forward_pre_hook(lambda _module, inputs: sizes.append(inputs[0].shape[1]))
    with torch.no_grad():
        dense, merged = (model.encode(images)[0] for model in models)
    assert sizes == [31, 1 + 4 + 5 * 4, 25, 25]  # grid 5×6: 9 windows, of which 4 are merged
    assert dense.shape == merged.shape
    assert 0 < (dense - merged).abs().max() < 3


ROTARY = ["vit_small_patch16_dinov3", "vit_small_patch16_rope_mixed_ape_224", "eva02_tiny_patch14_224"]


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", *ROTARY])
def test_the_order_of_tokens_within_the_layers_does_not_matter(name: str) -> None:
    torch.manual_seed(0)
    made: dict[str, Any] = {
        "num_classes": 3,
        "image_size": 64,
        "encoder": name,
        "encoder_args": SMALL,
        "drop_path": 0.0,
    }
    dense, merging = (
        ms.create_model("segmenter-ti16", **made, token_merging=each).double().eval()
        for each in (None, {"after_layer": 1, "ratio": 0.05})  # of 9 windows none, but sorted by uniformity
    )
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter.normal_(std=0.3)
        merging.load_state_dict(dense.state_dict())
        P = dense.patch_size
        images = torch.randn(2, 3, 5 * P, 6 * P, dtype=torch.float64)
        ours, theirs = merging.encode(images)[0], dense.encode(images)[0]
        sized, _ = SizedEncoder(merging.encoder)(images)
    grid = (5, 6)  # the copies of the last row count twice in attention, so that only even grids are exact
    assert ours.shape == theirs.shape == (2, grid[0] * grid[1], ours.shape[2])
    torch.testing.assert_close(sized, ours, atol=1e-6, rtol=0)
    with torch.no_grad():
        images = images[..., : 4 * P, :]
        torch.testing.assert_close(merging.encode(images)[0], dense.encode(images)[0], atol=1e-9, rtol=0)


def test_a_merged_window_is_turned_by_the_angle_of_its_middle() -> None:
    h, w, bands = 4, 6, torch.tensor([1.0, 0.3], dtype=torch.float64)
    y, x = torch.meshgrid(torch.arange(h).double(), torch.arange(w).double(), indexing="ij")
    angles = torch.cat([y.flatten()[:, None] * bands, x.flatten()[:, None] * bands], 1)
    rope = torch.cat([angles.sin(), angles.cos()], 1)
    merged = MergedTokens(torch.randn(2, 1 + h * w, 5).double(), (h, w), prefix=1, config=TokenMergingConfig(ratio=1.0))
    found = merged.rotations(rope)
    assert found.shape == (2, 1, 6, 8)
    middles = {(0.5 + 2 * i, 0.5 + 2 * j) for i in range(2) for j in range(3)}
    for image in found[:, 0]:
        sine, cosine = image.chunk(2, 1)
        turned = torch.atan2(sine, cosine)[:, [1, 3]] / 0.3  # the slow band has no full turn
        assert {(round(float(a), 6), round(float(b), 6)) for a, b in turned} == middles


def test_gradients_reach_every_token_and_checkpointing_changes_nothing() -> None:
    torch.manual_seed(0)
    model = ms.create_model(
        "meanshifter-pixel-ti16",
        num_classes=3,
        image_size=64,
        encoder_args=SMALL,
        drop_path=0.0,
        patch_size=8,
        token_merging={"after_layer": 2, "ratio": 0.6},
    )
    images = torch.randn(2, 3, 64, 56, requires_grad=True)
    labels = torch.randint(0, 3, (2, 64, 56))
    (gradient,) = torch.autograd.grad(model(images, labels=labels).loss, images)
    assert (gradient.abs().amax((1,)) > 0).float().mean() > 0.99
    model.encoder.vit.set_grad_checkpointing(True)
    (again,) = torch.autograd.grad(model(images, labels=labels).loss, images)
    torch.testing.assert_close(again, gradient)


@pytest.mark.parametrize("encoder", [None, "vit_small_patch16_dinov3"])
def test_the_averaged_copy_of_training_gives_the_same(encoder: str | None) -> None:
    args = {"embed_dim": 24, "depth": 4, "num_heads": 2}
    merging = {"after_layer": 2, "ratio": 0.6}
    preset = "meanshifter-pixel-ti16"
    model = ms.create_model(preset, 3, image_size=64, encoder=encoder, encoder_args=args, token_merging=merging).eval()
    images = torch.randn(1, 3, 64, 48)
    torch.testing.assert_close(copy.deepcopy(model)(images), model(images))


def test_a_model_with_merging_is_saved_and_read(tmp_path: Path) -> None:
    merging = TokenMergingConfig(after_layer=3, ratio=0.3)
    model = ms.create_model(
        "segmenter-ti16", num_classes=3, image_size=64, encoder_args=SMALL, patch_size=8, token_merging=merging
    ).eval()
    model.save(tmp_path / "model")
    loaded = ms.load_model(tmp_path / "model")
    assert isinstance(loaded, ms.Segmenter)
    assert loaded.config.token_merging == merging
    assert loaded.patch_size == 8
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    np.testing.assert_array_equal(model.predict(image).labels, loaded.predict(image).labels)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"token_merging": {"ratio": -0.1}}, "token_merging.ratio: -0.1"),
        ({"token_merging": {"ratio": 1.5}}, "token_merging.ratio: 1.5"),
        ({"token_merging": {"after_layer": -1}}, "token_merging.after_layer: -1"),
        ({"token_merging": {"after_layer": 4}}, "token_merging.after_layer: 4"),
        ({"token_merging": {"share": 0.5}}, "token_merging.share"),
        ({"token_merging": {}, "encoder": "beit_base_patch16_224"}, "token_merging: given"),
        ({"token_merging": {}, "encoder_args": {**SMALL, "patch_drop_rate": 0.1}}, "patch_drop_rate"),
        ({"patch_size": 8, "encoder_args": {**SMALL, "patch_size": 12}}, "patch_size: 8"),
        ({"patch_size": 0}, "encoder_args.patch_size: 0"),
    ],
)
def test_what_cannot_be_merged_is_named(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ms.InputError) as error:
        ms.create_model("segmenter-ti16", num_classes=3, image_size=64, **{"encoder_args": SMALL, **given})
    assert field in str(error.value)
