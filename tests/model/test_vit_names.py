"""Encoders of Hugging Face's transformers and of MMSegmentation load into our models with equal results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import meanshifter as ms

State = dict[str, Tensor]
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}


def transformers_names(state: State) -> State:
    """Rename tensors as in `ViTModel.state_dict()` and `DeiTModel.state_dict()` (transformers 4 and 5)."""
    names = {"cls_token": "cls_token", "dist_token": "distillation_token", "pos_embed": "position_embeddings"}
    found = {f"embeddings.{theirs}": state[ours] for ours, theirs in names.items() if ours in state}
    for kind in ("weight", "bias"):
        found[f"embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        found[f"layernorm.{kind}"] = state[f"norm.{kind}"]
        for i in range(SMALL["depth"]):
            ours, theirs = f"blocks.{i}", f"encoder.layer.{i}"
            parts = state[f"{ours}.attn.qkv.{kind}"].chunk(3)
            for part, value in zip(("query", "key", "value"), parts, strict=True):
                found[f"{theirs}.attention.attention.{part}.{kind}"] = value.clone()
            found[f"{theirs}.attention.output.dense.{kind}"] = state[f"{ours}.attn.proj.{kind}"]
            found[f"{theirs}.intermediate.dense.{kind}"] = state[f"{ours}.mlp.fc1.{kind}"]
            found[f"{theirs}.output.dense.{kind}"] = state[f"{ours}.mlp.fc2.{kind}"]
            found[f"{theirs}.layernorm_before.{kind}"] = state[f"{ours}.norm1.{kind}"]
            found[f"{theirs}.layernorm_after.{kind}"] = state[f"{ours}.norm2.{kind}"]
    return found


def of_a_classifier(state: State) -> State:
    """Rename tensors as in `ViTForImageClassification`."""
    found = {f"vit.{name}": value for name, value in transformers_names(state).items()}
    return found | {"classifier.weight": torch.rand(5, 48), "classifier.bias": torch.rand(5)}


def of_a_distilled_classifier(state: State) -> State:
    """Rename tensors as in `DeiTForImageClassificationWithTeacher`."""
    found = {f"deit.{name}": value for name, value in transformers_names(state).items()}
    heads = ("cls_classifier", "distillation_classifier")
    return found | {f"{head}.bias": torch.rand(5) for head in heads}


def mmsegmentation_names(state: State) -> State:
    """Rename tensors as in the pretrained encoders of MMSegmentation's Segmenter configurations."""
    found = {name: state[name] for name in ("cls_token", "pos_embed")}
    for kind in ("weight", "bias"):
        found[f"patch_embed.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        found[f"ln1.{kind}"] = state[f"norm.{kind}"]
        for i in range(SMALL["depth"]):
            ours, theirs = f"blocks.{i}", f"layers.{i}"
            found[f"{theirs}.attn.attn.in_proj_{kind}"] = state[f"{ours}.attn.qkv.{kind}"]
            found[f"{theirs}.attn.attn.out_proj.{kind}"] = state[f"{ours}.attn.proj.{kind}"]
            found[f"{theirs}.ffn.layers.0.0.{kind}"] = state[f"{ours}.mlp.fc1.{kind}"]
            found[f"{theirs}.ffn.layers.1.{kind}"] = state[f"{ours}.mlp.fc2.{kind}"]
            found[f"{theirs}.ln1.{kind}"] = state[f"{ours}.norm1.{kind}"]
            found[f"{theirs}.ln2.{kind}"] = state[f"{ours}.norm2.{kind}"]
    return found


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize(
    ("names", "encoder"),
    [
        (transformers_names, "vit_tiny_patch16_224"),
        (of_a_classifier, "vit_tiny_patch16_224"),
        (of_a_distilled_classifier, "deit_tiny_distilled_patch16_224"),
        (mmsegmentation_names, "vit_tiny_patch16_224"),
    ],
)
def test_an_encoder_of_another_tool_is_loaded(
    names: Callable[[State], State], encoder: str, suffix: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)

    def model(weights: Path | None) -> ms.Segmenter:
        made = ms.create_model(
            "segmenter-ti16",
            num_classes=2,
            image_size=64,
            encoder=encoder,
            encoder_args=SMALL,
            encoder_weights=weights,
        )
        return made.eval()

    original = model(None)
    for parameter in original.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    file = tmp_path / f"encoder{suffix}"
    theirs = names(dict(original.encoder.vit.state_dict()))
    if suffix == ".pth":
        torch.save({"state_dict": theirs}, file)
    else:
        save_file(theirs, file)
    images = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        assert torch.equal(model(file).encode(images)[0], original.encode(images)[0])


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("layernorm.bias", r"lacks 1 of 30 tensors \(norm\.bias\)"),
        (
            "encoder.layer.1.attention.attention.key.bias",
            r"other shapes for 1 of 30 tensors \(blocks\.1\.attn\.qkv\.bias\)",
        ),
    ],
)
def test_a_missing_part_is_named(part: str, line: str, tmp_path: Path) -> None:
    small: dict[str, Any] = {"num_classes": 2, "image_size": 64, "encoder_args": SMALL}
    theirs = transformers_names(dict(ms.create_model("segmenter-ti16", **small).encoder.vit.state_dict()))
    del theirs[part]
    save_file(theirs, tmp_path / "encoder.safetensors")
    with pytest.raises(ms.InputError, match=line):
        ms.create_model("segmenter-ti16", encoder_weights=tmp_path / "encoder.safetensors", **small)


DINO: dict[str, Any] = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3}


def dinos(kind: str, *, biased: bool) -> tuple[Any, str, dict[str, Any]]:
    """A model of transformers, the name of its encoder in timm and the arguments that make it as small."""
    transformers = pytest.importorskip("transformers")
    small = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    if kind.startswith("dinov3"):
        config = {**DINO, "intermediate_size": 192, "num_register_tokens": 4}
        biases = {"query_bias": biased, "value_bias": biased}
        gated = {"use_gated_mlp": True, "hidden_act": "silu"} if kind == "dinov3_gated" else {}
        model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**config, **biases, **gated))
        plus = "_plus" if kind == "dinov3_gated" else ""
        return model, f"vit_small{plus}_patch16_dinov3{'_qkvb' if biased else ''}", small
    config = {**DINO, "image_size": 56, "patch_size": 14}
    if kind == "dinov2":
        return transformers.Dinov2Model(transformers.Dinov2Config(**config)), "vit_small_patch14_dinov2", small
    if kind == "dinov2_gated":
        gated = transformers.Dinov2Config(**config, use_swiglu_ffn=True)
        # 128 hidden channels there, of 2/3 · 4 · 48, and timm halves its packed ones
        return transformers.Dinov2Model(gated), "vit_giant_patch14_dinov2", {**small, "mlp_ratio": 2 * 128 / 48}
    registers = transformers.Dinov2WithRegistersConfig(**config)
    return transformers.Dinov2WithRegistersModel(registers), "vit_small_patch14_reg4_dinov2", small


@pytest.mark.parametrize("written", ["save_pretrained", "state_dict"])
@pytest.mark.parametrize(
    ("kind", "biased"),
    [
        ("dinov2", False),
        ("dinov2_gated", False),
        ("dinov2_registers", False),
        ("dinov3", False),
        ("dinov3", True),
        ("dinov3_gated", True),
    ],
)
def test_dinov2_and_dinov3_of_transformers_agree(kind: str, biased: bool, written: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, name, arguments = dinos(kind, biased=biased)
    with torch.no_grad():
        for parameter in theirs.eval().parameters():
            parameter.normal_(std=0.3)
    if written == "save_pretrained":  # the names of the files on the Hub, which differ from those of the modules
        theirs.save_pretrained(tmp_path)
        file = tmp_path / "model.safetensors"
    else:
        file = tmp_path / "weights.pth"
        torch.save(theirs.state_dict(), file)
    P = theirs.config.patch_size
    settings: dict[str, Any] = {"encoder": name, "encoder_args": arguments, "image_size": 4 * P}
    model = ms.create_model("segmenter-ti16", 2, encoder_weights=file, **settings).eval()
    assert model.config.mean == pytest.approx((0.485, 0.456, 0.406))
    for size in ((4 * P, 4 * P), (3 * P, 6 * P)) if kind.startswith("dinov3") else ((4 * P, 4 * P),):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            expected = theirs(images).last_hidden_state[:, 5 if "registers" in kind or "v3" in kind else 1 :]
            torch.testing.assert_close(model.encode(images)[0], expected, atol=1e-4, rtol=0)


def test_biases_that_the_encoder_lacks_are_refused_unless_zero(tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, name, arguments = dinos("dinov3", biased=True)
    plain = name.removesuffix("_qkvb")
    for parameter_name, parameter in theirs.named_parameters():
        if "_proj.bias" in parameter_name:
            parameter.data.zero_()
    theirs.save_pretrained(tmp_path)
    settings: dict[str, Any] = {"encoder_args": arguments, "image_size": 64}
    weights = tmp_path / "model.safetensors"
    ms.create_model("segmenter-ti16", 2, encoder=plain, encoder_weights=weights, **settings)
    next(p for key, p in theirs.named_parameters() if key.endswith("layer.0.attention.v_proj.bias")).data.fill_(1)
    theirs.save_pretrained(tmp_path)
    with pytest.raises(ms.InputError, match=r"blocks\.0\.attn\.qkv\.bias is not zero.*_qkvb"):
        ms.create_model("segmenter-ti16", 2, encoder=plain, encoder_weights=weights, **settings)
    with pytest.raises(ms.InputError, match=r"has unknown|lacks"):
        ms.create_model("segmenter-ti16", 2, encoder="vit_small_patch16_224", encoder_weights=weights, **settings)
