"""Class embeddings and patches that shift jointly in the mask transformer, against the formulas in float64 NumPy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

import meanshifter as ms
from meanshifter.analysis.modes import find_modes
from meanshifter.data import Shapes
from meanshifter.evaluation.diagnostics import diagnose, diagnose_model
from meanshifter.model.config import MeanShiftConfig, ModelConfig
from meanshifter.model.mean_shift import MeanShift
from meanshifter.training.config import TrainConfig
from meanshifter.training.fields import field_help
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.sections import ModelRecipe
from meanshifter.training.setup import build_model
from tests.model.test_decoder import Weights, attention, gelu, layer_norm, linear, softmax

Array = npt.NDArray[np.float64]
SMALL = {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 8}
PLACES = ["before_layers", "after_layers", "before_product"]
places = pytest.mark.parametrize("place", PLACES)


def made(place: str | None, classes: int = 5, preset: str = "meanshifter-mask-ti16", **block: Any) -> ms.Segmenter:
    """A small model with random values everywhere, whose kernel does not collapse all tokens to their mean."""
    torch.manual_seed(0)
    block = {"layers": 2, "with_classes": place, **block}
    model = ms.create_model(preset, num_classes=classes, image_size=32, mean_shift=block, encoder_args=SMALL)
    for parameter in (*model.decoder.parameters(), *model.mean_shift.parameters()):  # type: ignore[union-attr]
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def shift(z: Array, weights: Weights, layers: int) -> Array:
    """`layers` times R = z E_r, S = softmax(R Rᵀ / √d_ms) row by row, z ← S z, over all tokens of z (B, N + K, D)."""
    for _ in range(layers):
        R = linear(z, weights, "mean_shift.project")
        z = softmax(R @ R.swapaxes(-1, -2) / np.sqrt(R.shape[-1])) @ z
    return z


def reference(tokens: Array, weights: Weights, place: str, steps: int) -> Array:
    """Masks of patch tokens (B, N, D) and class embeddings after two transformer layers, with the steps in between."""

    def of(name: str) -> Array:
        return weights(f"decoder.{name}")

    B, N, D = tokens.shape
    x = np.concatenate([linear(tokens, of, "project"), np.repeat(of("class_embeddings"), B, 0)], 1)
    x = shift(x, weights, steps if place == "before_layers" else 0)
    for name in ("blocks.0", "blocks.1"):
        x = x + attention(layer_norm(x, of, f"{name}.norm1"), of, f"{name}.attn", max(D // 64, 1))
        x = x + linear(gelu(linear(layer_norm(x, of, f"{name}.norm2"), of, f"{name}.mlp.fc1")), of, f"{name}.mlp.fc2")
    x = shift(layer_norm(x, of, "norm"), weights, steps if place == "after_layers" else 0)
    x = np.concatenate([x[:, :N] @ of("patch_projection.weight").T, x[:, N:] @ of("class_projection.weight").T], 1)
    x = shift(x / np.linalg.norm(x, axis=-1, keepdims=True), weights, steps if place == "before_product" else 0)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    patches, classes = x[:, :N], x[:, N:]
    return layer_norm(patches @ classes.swapaxes(-1, -2), of, "mask_norm")


@places
@pytest.mark.parametrize("channels", [9, 24, 40])
@pytest.mark.parametrize("classes", [1, 5])
def test_the_decoder_follows_the_formulas_after_any_number_of_steps(place: str, channels: int, classes: int) -> None:
    model = made(place, classes, channels=channels).double()
    state = model.state_dict()
    images = torch.randn(2, 3, 24, 32, dtype=torch.float64)
    with torch.no_grad():
        tokens, grid = model.encode(images)
        several = model.logits_at(images, [0, None, 1, 4])
        one_by_one = [model(images, mean_shift_layers=steps) for steps in (0, None, 1, 4)]
    for logits, alone, steps in zip(several, one_by_one, (0, 2, 1, 4), strict=True):
        expected = reference(tokens.numpy(), lambda name: state[name].numpy(), place, steps)
        np.testing.assert_allclose(
            logits.numpy(), expected.swapaxes(1, 2).reshape(2, classes, *grid), atol=1e-10, rtol=0
        )
        torch.testing.assert_close(alone, logits, rtol=0, atol=1e-12)


@places
def test_zero_steps_equal_the_decoder_without_the_block(place: str) -> None:
    model = made(place)
    plain = ms.create_model("segmenter-mask-ti16", num_classes=5, image_size=32, encoder_args=SMALL).eval()
    own = {name: value for name, value in model.state_dict().items() if not name.startswith("mean_shift")}
    plain.load_state_dict(own)
    images = torch.randn(2, 3, 30, 41)
    with torch.no_grad():
        torch.testing.assert_close(model(images, mean_shift_layers=0), plain(images), rtol=0, atol=1e-5)
        assert not torch.allclose(model(images), plain(images), atol=1e-2)


@places
def test_patches_may_come_in_any_order(place: str) -> None:
    model = made(place).double()
    tokens, order = torch.randn(1, 12, 24, dtype=torch.float64), torch.randperm(12)

    def masks(tokens: torch.Tensor) -> torch.Tensor:
        assert model.mean_shift is not None
        z = model.mean_shift(model.mean_shift_input(tokens))
        return model._decode(z, (1, 12)).flatten(2)

    with torch.no_grad():
        torch.testing.assert_close(masks(tokens[:, order]), masks(tokens)[..., order], rtol=0, atol=1e-12)


@places
def test_the_gradient_reaches_the_block_and_the_class_embeddings(place: str) -> None:
    model = made(place, layers=1)
    model(torch.randn(1, 3, 32, 32))[:, 0].sum().backward()
    assert model.mean_shift is not None
    for parameter in (*model.mean_shift.parameters(), model.decoder.class_embeddings):
        assert isinstance(parameter.grad, torch.Tensor)
        assert parameter.grad.abs().max() > 1e-6


@places
def test_the_tokens_that_shift_are_patches_and_then_classes(place: str) -> None:
    model = made(place)
    assert model.mean_shift is not None
    with torch.no_grad():
        tokens, _ = model.encode(torch.randn(1, 3, 24, 40))
        moved = model.mean_shift_input(tokens)
        weights = model.mean_shift.weights(moved)
        trajectory = model.mean_shift.trajectory(moved, 3)
        torch.testing.assert_close(trajectory[1], weights @ moved)
    assert moved.shape == (1, 3 * 5 + 5, 24)
    assert trajectory.shape == (4, 1, 20, 24)


@places
def test_saved_and_loaded_it_is_the_same_model(place: str, tmp_path: Path) -> None:
    model = made(place)
    model.save(tmp_path)
    loaded = ms.load_model(tmp_path)
    assert loaded.config.mean_shift == MeanShiftConfig(2, with_classes=place)  # type: ignore[arg-type]
    images = torch.randn(1, 3, 40, 24)
    with torch.no_grad():
        for steps in (None, 0, 3):
            assert torch.equal(loaded(images, mean_shift_layers=steps), model(images, mean_shift_layers=steps))


@pytest.mark.usefixtures("user")
def test_incompatible_settings_are_refused_by_field_and_value() -> None:
    refused: list[tuple[str, dict[str, Any], str]] = [
        ("meanshifter-ti16", {"with_classes": "after_layers"}, "with_classes: 'after_layers', but a linear decoder"),
        (
            "meanshifter-joint-mask-ti16",
            {"with_classes": "before_layers"},
            "spatial_sigma: 2.5 is not null",
        ),
        ("meanshifter-mask-ti16", {"with_classes": "between"}, "with_classes: 'between' is not 'before_layers'"),
        ("meanshifter-mask-ti16", {"with_classes": True}, "with_classes: True is not"),
    ]
    for preset, block, line in refused:
        with pytest.raises(ms.InputError, match=f"^mean_shift.{line}") as caught:
            ms.create_model(preset, num_classes=2, image_size=32, mean_shift=block, encoder_args=SMALL)
        assert "\n" not in str(caught.value)
    with pytest.raises(ms.InputError, match="with_classes: 'after_layers'"):
        ModelConfig("vit_tiny_patch16_384", mean_shift=MeanShiftConfig(with_classes="after_layers"))


def test_a_recipe_builds_the_block_and_calibration_counts_the_classes() -> None:
    block = MeanShiftConfig(1, init_neighbors=6.0, with_classes="after_layers")
    recipe = ModelRecipe(preset="segmenter-mask-ti16", mean_shift=block, encoder_args=SMALL, image_size=(32, 32))
    model = build_model(TrainConfig(model=recipe), Shapes().label_space).eval()
    assert model.mean_shift is not None
    with torch.no_grad():
        tokens, grid = model.encode(torch.randn(2, 3, 32, 32))
        moved = model.mean_shift_input(tokens)
        model.mean_shift.calibrate(moved, grid)
        figures = diagnose(model.mean_shift, moved[:1], 1, grid)
    assert figures[1]["neighbors"] == pytest.approx(6, rel=0.3)


def test_a_recipe_may_set_with_classes() -> None:
    fields = ["--model.preset", "meanshifter-mask-ti16", "--model.mean_shift.layers", "2"]
    for place in (None, *PLACES):
        given = [] if place is None else ["--model.mean_shift.with_classes", place]
        shift = parse_recipe("camvid_half", [*fields, *given]).model.mean_shift
        assert shift == MeanShiftConfig(2, with_classes=place)  # type: ignore[arg-type]
    with pytest.raises(ms.InputError, match=r"mean_shift\.with_classes: 'between'.*before_layers"):
        parse_recipe("camvid_half", [*fields, "--model.mean_shift.with_classes", "between"])
    (line,) = [line for line in field_help().splitlines() if "mean_shift.with_classes" in line]
    assert line.endswith("(before_layers | after_layers | before_product | null; default null)")


def test_diagnostics_cover_the_patches_and_the_weight_of_the_classes() -> None:
    torch.manual_seed(0)
    block = MeanShift(6, MeanShiftConfig(layers=2, with_classes="after_layers"))
    torch.nn.init.normal_(block.project.weight)
    tokens, labels = torch.randn(1, 12 + 3, 6), torch.tensor([0] * 6 + [1] * 6)
    rows = diagnose(block, tokens, 2, (3, 4), labels)
    with torch.no_grad():
        states = block.double().trajectory(tokens.double(), 2)[:, 0]
        weights = [block.weights(z[None])[0, :12].numpy() for z in states]
    assert "class_weight" not in rows[0]
    for n, row in enumerate(rows):
        z = states[n, :12].numpy()
        spread = np.sqrt(((z - z.mean(0)) ** 2).sum(1).mean())
        assert row["spread"] == pytest.approx(spread)
        between = 6 * sum(((z[part].mean(0) - z.mean(0)) ** 2).sum() for part in (slice(6), slice(6, 12)))
        within = sum(((z[part] - z[part].mean(0)) ** 2).sum() for part in (slice(6), slice(6, 12)))
        assert row["separation"] == pytest.approx(between / within)
        if n > 0:
            before, now = states[n - 1, :12].numpy(), weights[n - 1]
            assert row["class_weight"] == pytest.approx(now[:, 12:].sum(1).mean())
            assert row["neighbors"] == pytest.approx(np.exp(-(now * np.log(now)).sum(1)).mean())
            way = np.sqrt(((z - before) ** 2).sum(1).mean())
            assert row["shift"] == pytest.approx(way / np.sqrt(((before - before.mean(0)) ** 2).sum(1).mean()))


@places
def test_an_evaluation_at_several_depths_equals_separate_ones(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Shapes(split="val", size=40, length=3)
    model = made(place, data.label_space.num_classes)
    predictor = ms.Predictor(model, window=None, short_side=None)
    encoded: list[torch.Tensor] = []
    encode = ms.Segmenter.encode

    def counted(self: ms.Segmenter, images: torch.Tensor) -> Any:
        encoded.append(images)
        return encode(self, images)

    monkeypatch.setattr(ms.Segmenter, "encode", counted)
    several = ms.evaluate(predictor, data, mean_shift_layers=[0, 1, 3])
    passes = len(encoded)
    alone = {steps: ms.evaluate(predictor, data, mean_shift_layers=steps) for steps in (0, 1, 3)}
    assert len(encoded) == 4 * passes
    for steps, one in alone.items():
        np.testing.assert_array_equal(one.confusion, several[steps].confusion)
    assert len(diagnose_model(predictor, data, 2, images=2)) == 3


@places
def test_training_stores_no_matrix_over_pairs_of_tokens(place: str, largest: Any) -> None:
    model = made(place, channels=40)
    block = model.mean_shift
    assert block is not None
    moved = torch.randn(1, 4000 + 5, 24, requires_grad=True)
    with largest:
        block(moved).sum().backward()
    assert largest.elements <= 2 * 4005 * 48


def test_modes_are_those_of_the_patches_that_shift_among_classes() -> None:
    model = made("after_layers")
    image = np.random.default_rng(0).integers(0, 256, (40, 24, 3), dtype=np.uint8)
    found = find_modes(ms.Predictor(model, window=None, short_side=None), image, layers=2)
    assert found.labels.shape == (3, 15)
    assert found.plane.shape == (3, 15, 2)
    assert 0 < found.diagnostics[2]["class_weight"] < 1
