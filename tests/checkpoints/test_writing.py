"""Written files have what other tools' scripts need; differences in computation are refused or reported."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import meanshifter as ms
from meanshifter.checkpoints.foreign import read_checkpoint
from meanshifter.checkpoints.writing import WRITERS, write_mmsegmentation, write_segmenter
from tests.checkpoints.foreign import Toy, mmsegmentation_state

SMALL = {"embed_dim": 64, "depth": 1, "num_heads": 1}


def small(preset: str = "segmenter-ti16", *, side: int | tuple[int, int] = 64, **more: Any) -> ms.Segmenter:
    arguments = {"encoder_args": {**SMALL, **more.pop("arguments", {})}, **more}
    return ms.create_model(preset, num_classes=3, image_size=side, **arguments)


ODD = {
    "blocks.0.ls1.gamma": {"init_values": 0.1},
    "reg_token": {"reg_tokens": 2},
    "a class token without a position": {"no_embed_class": True},
    "blocks.0.attn.k_norm": {"qk_norm": True},
    "norm_pre.bias": {"pre_norm": True},
    "no blocks.0.attn.qkv.bias": {"qkv_bias": False},
    "no cls_token": {"class_token": False, "global_pool": "avg"},
    "no pos_embed": {"pos_embed": "none"},
    "the activation QuickGELU": {"act_layer": "quick_gelu"},
    "the activation GELUTanh": {"act_layer": "gelu_tanh"},
}


@pytest.mark.parametrize("tool", ["mmsegmentation", "segmenter"])
@pytest.mark.parametrize("part", ODD)
def test_encoders_that_other_tools_cannot_build_are_refused(tool: str, part: str, tmp_path: Path) -> None:
    model = small(arguments=ODD[part])
    with pytest.raises(ms.InputError, match=f"model: its encoder has {part}"):
        WRITERS[tool](model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_layers_of_another_type_are_refused(tmp_path: Path) -> None:
    model = small()
    block = model.encoder.vit.blocks[0]
    block.__class__ = type("ResPostBlock", (type(block),), {})  # norms after the branches, with the same tensor names
    with pytest.raises(ms.InputError, match="layers of type ResPostBlock"):
        write_mmsegmentation(model, tmp_path / "out.pth")


def test_sizes_that_the_official_code_derives_from_the_width_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ms.InputError, match=r"mlp_ratio is 2, but .* has 4"):
        write_segmenter(small(arguments={"mlp_ratio": 2.0}), tmp_path / "out")
    toy = Toy(D=128, heads=2, K=3)
    config = "model = dict(backbone=dict(num_heads=2), decode_head=dict(num_classes=3, num_heads=4))"
    torch.save({"meta": {"cfg": config}, "state_dict": mmsegmentation_state(toy, "mask")}, tmp_path / "theirs.pth")
    with pytest.warns(UserWarning, match="assumed"):
        model = read_checkpoint(tmp_path / "theirs.pth")
    with pytest.raises(ms.InputError, match=r"decoder_heads is 4, .* 64 of 128 channels"):
        write_segmenter(model, tmp_path / "out")


@pytest.mark.filterwarnings("ignore:.*computes this model slightly differently")
def test_a_variant_has_the_fields_that_the_official_scripts_need(tmp_path: Path) -> None:
    for side, crop in ((64, 64), ((64, 96), 512)):
        write_segmenter(small(side=side), tmp_path)
        variant = yaml.safe_load((tmp_path / "variant.yml").read_text())
        trained = variant["dataset_kwargs"]  # of segm.eval.miou
        assert (trained["normalization"], trained["image_size"], trained["crop_size"]) == ("vit", 512, crop)
        windows = variant["inference_kwargs"]  # of segm.inference
        assert (windows["window_size"], windows["window_stride"]) == (512, 480)
        # not a name for which its loader would fetch weights of other shapes
        assert variant["net_kwargs"]["backbone"] == "vit_64_patch16"
    write_segmenter(ms.create_model("segmenter-ti16", num_classes=3), tmp_path)
    variant = yaml.safe_load((tmp_path / "variant.yml").read_text())
    assert variant["net_kwargs"]["backbone"] == "vit_tiny_patch16_384"


@pytest.mark.filterwarnings("ignore:.*computes this model slightly differently")
@pytest.mark.parametrize("tool", ["mmsegmentation", "segmenter"])
def test_tools_without_the_block_give_a_warning(tool: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="has no (mean shift block|MeanShifterHead)"):
        WRITERS[tool](small("meanshifter-ti16"), tmp_path / "out")


@pytest.mark.parametrize(
    "field", [{"residual_readout": True}, {"kernel": "gaussian"}, {"blurring": False}, {"spatial_sigma": 2.0}]
)
def test_blocks_that_are_not_the_published_one_are_refused(field: dict[str, Any], tmp_path: Path) -> None:
    for tool in ("mmsegmentation", "segmenter"):
        with pytest.raises(ms.InputError, match="mean_shift, which is not the published block"):
            WRITERS[tool](
                small("meanshifter-ti16", mean_shift={"layers": 2, "channels": 16, **field}), tmp_path / "out"
            )


def test_settings_that_a_variant_cannot_express_give_a_warning(tmp_path: Path) -> None:
    model = small()
    model.config = replace(model.config, positions="bilinear", norm_eps=1e-5, window=None, short_side=None)
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    model.label_space = ms.LabelSpace(("sky", "road", "car"))
    with pytest.warns(UserWarning, match="windows of 64; .* 256×64, .* size; .* names"):
        write_segmenter(model, tmp_path)
    model.config = replace(model.config, window=64, window_stride=32, short_side=40, long_side=100)
    model.label_space = ms.LabelSpace.unnamed(3)
    with pytest.warns(UserWarning, match=r": scored images .* 160×40, not 100×40$"):
        write_segmenter(model, tmp_path)
    model.config = replace(model.config, long_side=160)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_segmenter(model, tmp_path)
    config = read_checkpoint(tmp_path / "checkpoint.pth").config
    assert (config.window, config.window_stride, config.short_side, config.long_side) == (64, 32, 40, 160)


@pytest.mark.filterwarnings("ignore:.*computes this model slightly differently", "ignore:.*has no mean shift block")
def test_steps_of_a_mean_shifter_survive_writing(tmp_path: Path) -> None:
    write_segmenter(small("meanshifter-ti16", mean_shift={"layers": 3, "channels": 16}), tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = read_checkpoint(tmp_path / "checkpoint.pth")
    assert model.mean_shift is not None
    assert model.mean_shift.layers == 3


def test_sizes_that_the_official_code_cannot_build_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ms.InputError, match=r"image_size is \(60, 60\), .* 16 pixels"):
        write_segmenter(small(side=60), tmp_path / "out")
    with pytest.raises(ms.InputError, match=r"decoder_heads is 1, .* 64 of 32 channels"):
        write_segmenter(small("segmenter-mask-ti16", arguments={"embed_dim": 32}), tmp_path / "out")
