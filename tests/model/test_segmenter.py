from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import meanshifter as ms
from meanshifter.model.config import ModelConfig

SMALL = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {"depth": 2, "embed_dim": 24, "num_heads": 2},
    "image_size": 64,
}


def small(preset: str = "segmenter-ti16", **changes: object) -> ms.Segmenter:
    torch.manual_seed(0)
    return ms.create_model(preset, num_classes=5, **{**SMALL, **changes}).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "preset", ["segmenter-ti16", "meanshifter-ti16", "segmenter-mask-ti16", "meanshifter-mask-ti16"]
)
@pytest.mark.parametrize("size", [(64, 64), (50, 81), (1, 1), (16, 160)])
def test_patch_logits_have_the_grid_of_the_padded_image(preset: str, size: tuple[int, int]) -> None:
    with torch.no_grad():
        logits = small(preset)(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5, -(-size[0] // 16), -(-size[1] // 16))
    assert logits.isfinite().all()


def test_padding_is_right_and_bottom_with_zeros() -> None:
    model = small()
    images = torch.randn(1, 3, 50, 81)
    padded = torch.zeros(1, 3, 64, 96)
    padded[..., :50, :81] = images
    with torch.no_grad():
        assert torch.equal(model(images), model(padded))


@pytest.mark.parametrize(
    "name", ["deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2", "vit_tiny_patch16_224"]
)
def test_class_distillation_and_register_tokens_are_dropped(name: str) -> None:
    model = small(encoder=name)
    tokens, grid = model.encode(torch.randn(1, 3, 70, 40))
    P = model.patch_size
    assert grid == (-(-70 // P), -(-40 // P))
    assert tokens.shape == (1, grid[0] * grid[1], 24)


def test_zero_steps_are_the_segmenter_and_several_numbers_share_one_encoder_pass() -> None:
    model = small("meanshifter-ti16", mean_shift={"layers": 2, "channels": 16})
    assert model.mean_shift is not None
    torch.nn.init.normal_(
        model.mean_shift.project.weight, std=0.2
    )  # as initialized, the block averages nearly everything
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        tokens, grid = model.encode(images)
        assert torch.equal(model(images, mean_shift_layers=0), model.decoder(tokens, grid))
        several = model.logits_at(images, [3, None, 0])
        for logits, layers in zip(several, (3, 2, 0), strict=True):
            torch.testing.assert_close(logits, model(images, mean_shift_layers=layers))
        assert not torch.allclose(several[0], several[1])


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("shape", [(2, 32, 32), (2, 72, 64), (1, 64, 64), (2, 1, 64, 64)])
def test_labels_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    model = small()
    with pytest.raises(ms.InputError, match=r"labels: shape .*\(2, 3, 64, 64\)"):
        model(torch.zeros(2, 3, 64, 64), labels=torch.zeros(shape, dtype=torch.long))


def test_a_model_without_the_block_refuses_steps() -> None:
    images = torch.randn(1, 3, 32, 32)
    small()(images, mean_shift_layers=0)
    with pytest.raises(ms.InputError, match="mean_shift_layers: 2, but this model has no mean shift block"):
        small()(images, mean_shift_layers=2)


def test_parameter_counts_equal_the_published_ones() -> None:
    def count(preset: str, **changes: object) -> int:
        model = ms.create_model(preset, num_classes=150, image_size=512, **changes)  # type: ignore[arg-type]
        return sum(parameter.numel() for parameter in model.parameters())

    assert count("segmenter-ti16") == 5_712_342
    assert count("meanshifter-ti16", mean_shift={"layers": 1, "channels": 192}) == 5_749_398
    for channels, millions in ((64, 5.72), (128, 5.74), (192, 5.75), (256, 5.76), (768, 5.86)):
        assert round(count("meanshifter-ti16", mean_shift={"layers": 3, "channels": channels}) / 1e6, 2) == millions


def test_saved_and_loaded_is_the_same_model(tmp_path: Path) -> None:
    model = small("meanshifter-mask-ti16", mean_shift={"layers": 2, "channels": 7}, mean=(0.1, 0.2, 0.3))
    model.save(tmp_path / "model")
    loaded = ms.load_model(tmp_path / "model")
    assert loaded.config == model.config
    assert loaded.label_space == model.label_space
    images = torch.randn(1, 3, 40, 70)
    with torch.no_grad():
        assert torch.equal(loaded(images), model(images))
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]


def test_damaged_checkpoints_are_refused_by_name(tmp_path: Path) -> None:
    small().save(tmp_path)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ms.InputError, match=r"model\.safetensors: not a valid safetensors file"):
        ms.load_model(tmp_path)
    weights.write_bytes(whole)
    config.write_text(json.dumps({**json.loads(text), "format_version": 99}))
    with pytest.raises(ms.InputError, match=r"config\.json: format_version is 99, .* reads 2"):
        ms.load_model(tmp_path)
    config.write_text("{")
    with pytest.raises(ms.InputError, match=r"config\.json: .*JSON"):
        ms.load_model(tmp_path)
    with pytest.raises(ms.InputError, match="nothing: does not exist"):
        ms.load_model(tmp_path / "nothing")


def test_a_checkpoint_of_another_class_count_is_refused(tmp_path: Path) -> None:
    small().save(tmp_path / "five")
    config = json.loads((tmp_path / "five" / "config.json").read_text())
    config["label_space"] = ms.LabelSpace.unnamed(7).to_dict()
    (tmp_path / "five" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ms.InputError, match=r"model\.safetensors: .*config\.json \(decoder\.head\.bias"):
        ms.load_model(tmp_path / "five")


def test_normalization_is_the_models_own() -> None:
    model = small(mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 1.0))
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    expected = (pixels / 255 - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.25, 1.0])
    np.testing.assert_allclose(model.normalize(pixels)[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("segmentor-ti16", {}, "preset: 'segmentor-ti16' is unknown; did you mean 'segmenter-ti16'"),
        (
            "meanshifter-pixel-ti16",
            {"mean_shift": {"layers": 1}},
            "use a 'segmenter' or 'meanshifter' or 'meanshifter-j",
        ),
        ("meanshifter-ti16", {"mean_shift": {"layer": 1}}, "mean_shift.layer: unknown; did you mean 'layers'"),
        (
            "segmenter-ti16",
            {"encoder": "vit_tiny_patch16_225"},
            "'vit_tiny_patch16_225' .* did you mean 'vit_tiny_patch16_224'",
        ),
        ("segmenter-ti16", {"encoder": "swin_tiny_patch4_window7_224", "encoder_args": {}}, "plain ViT"),
        (
            "segmenter-ti16",
            {"encoder_weights": "/nowhere.safetensors"},
            "encoder_weights: /nowhere.safetensors does not exist",
        ),
        (
            "segmenter-ti16",
            {"encoder": "vit_tiny_patch16_384.nosuch", "encoder_weights": "timm"},
            "encoder: timm has no published weights for 'vit_tiny_patch16_384.nosuch'",
        ),
        ("segmenter-ti16", {"drop_path": 1.0}, "drop_path: 1.0"),
        ("segmenter-ti16", {"image_size": 0}, "image_size"),
    ],
)
def test_errors_in_settings_are_one_line(preset: str, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ms.InputError, match=message) as caught:
        small(preset, **changes)
    assert "\n" not in str(caught.value)


def test_real_weights_load_at_another_size_and_a_missing_tensor_is_named(shared: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = shared / "weights" / "vit_tiny_patch16_224.augreg_in21k_ft_in1k.safetensors"
    model = small(encoder_args={}, image_size=(368, 480), encoder_weights=path)
    state = load_file(path)
    own = model.encoder.vit.state_dict()
    assert torch.equal(own["blocks.3.attn.qkv.weight"], state["blocks.3.attn.qkv.weight"])
    assert own["pos_embed"].shape == (1, 1 + 23 * 30, 192)
    del state["blocks.3.attn.qkv.weight"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ms.InputError, match=r"lacks 1 of 150 tensors \(blocks\.3\.attn\.qkv\.weight\)"):
        small(encoder_args={}, encoder_weights=tmp_path / "part.safetensors")


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        import os

        return os.system, ("echo run > was-here",)


def test_a_pickle_with_more_than_tensors_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ms.InputError, match=r"evil\.pth"):
        small(encoder_weights=tmp_path / "evil.pth")
    assert not (tmp_path / "was-here").exists()


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("norm_eps", -1.0, "norm_eps: -1.0 is not"),
        ("norm_eps", float("inf"), "norm_eps: inf is not"),
        ("window_stride", 600, "window_stride: 600 is above window 512"),
    ],
)
def test_invalid_configurations_are_refused(field: str, value: object, line: str) -> None:
    with pytest.raises(ms.InputError, match=line):
        ModelConfig("vit_tiny_patch16_384", **{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, tmp_path: Path) -> None:
    model = small()
    with torch.no_grad():
        next(iter(model.decoder.parameters())).flatten()[0] = value
    model.save(tmp_path / "model")
    with pytest.raises(ms.InputError, match=r"model\.safetensors: decoder\.head\.weight is not finite"):
        ms.load_model(tmp_path / "model")
