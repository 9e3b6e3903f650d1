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
