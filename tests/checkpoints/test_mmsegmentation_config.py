"""Settings of an MMSegmentation configuration that no tensor shows."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest

import meanshifter as ms
from meanshifter.checkpoints.foreign import read_checkpoint
from meanshifter.checkpoints.writing import write_mmsegmentation
from meanshifter.model.segmenter import Segmenter
from tests.checkpoints.foreign import Toy, mmsegmentation_state
from tests.checkpoints.test_checkpoints import save_mmsegmentation

TOY = Toy()
PIXELS = "mean=[1.0, 2.0, 3.0], std=[1.0, 1.0, 1.0]"
WHOLE = {
    "backbone": "type='VisionTransformer', num_heads=1, img_size=48, norm_cfg=dict(eps=1e-6)",
    "head": "type='FCNHead', num_classes=7",
    "test": "mode='slide', crop_size=(640, 640), stride=(608, 608)",
    "pixels": f"{PIXELS}, bgr_to_rgb=True",
    "pipeline": "dict(type='LoadImageFromFile'), dict(type='Resize', scale=(1024, 256), keep_ratio=True)",
}
TEMPLATE = """
data_preprocessor = dict({pixels})
model = dict(backbone=dict({backbone}), decode_head=dict({head}), test_cfg=dict({test}))
test_pipeline = [{pipeline}]
"""


def read(tmp_path: Path, parts: dict[str, str], decoder: str = "linear", toy: Toy = TOY) -> Segmenter:
    """The model of a complete configuration, with some parts replaced."""
    text = TEMPLATE.format(**(WHOLE | parts))
    return read_checkpoint(
        save_mmsegmentation(tmp_path / "model.pth", mmsegmentation_state(toy, decoder), toy, config=text)
    )


def test_a_complete_configuration_gives_no_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = read(tmp_path, {}).config
    assert (config.window, config.window_stride, config.short_side, config.long_side) == (640, 608, 256, 1024)
    assert config.mean == pytest.approx((1 / 255, 2 / 255, 3 / 255))


def test_missing_fields_have_the_tools_defaults(tmp_path: Path) -> None:
    toy = TOY._replace(D=96, heads=12)
    parts = {"backbone": "type='VisionTransformer', img_size=48", "test": "crop_size=512", "pixels": ""}
    with pytest.warns(UserWarning, match=r"assumed, .*: pixels normalized with mean and std 127\.5; stride 480$"):
        model = read(tmp_path, parts, toy=toy)
    assert model.config.norm_eps == 1e-5  # of mmcv's build_norm_layer
    assert model.encoder.heads == 12


@pytest.mark.parametrize(
    ("part", "text", "note"),
    [
        (
            "test",
            "mode='slide', crop_size=(256, 512), stride=(300, 200)",
            r"crop_size 256, as \[256, 512\] .*; stride",
        ),
        ("head", "type='FCNHead', align_corners=True", "logits are upsampled with align_corners False"),
        ("head", "type='UPerHead'", "its head, of type 'UPerHead', .* FCNHead"),
        ("pipeline", "dict(type='Resize', scale=(512, 512))", "keep_ratio False"),
        ("pipeline", "dict(type='Resize', scale=(512, 512), keep_ratio=False)", "keep_ratio False"),
        ("pipeline", "dict(img_scale=(2, 1), transforms=[dict(type='Resize', keep_ratio=False)])", "keep_ratio False"),
        ("pipeline", "dict(type='Resize', scale_factor=2.0)", "images keep their size"),
        ("pipeline", "dict(type='Resize', scale='large')", r"2048×512, as scale 'large'"),
        (
            "pipeline",
            "dict(type='Resize', scale=512, keep_ratio=True), dict(type='Pad', size=(512, 512))",
            "not padded",
        ),
        ("pixels", f"{PIXELS}, bgr_to_rgb=True, test_cfg=dict(size_divisor=32)", "images are not padded"),
    ],
)
def test_ignored_settings_give_a_warning(part: str, text: str, note: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=f"unlike the file: .*{note}"):
        read(tmp_path, {part: text})


@pytest.mark.parametrize(
    ("part", "text", "line"),
    [
        ("backbone", "num_heads=1, act_cfg=dict(type='ReLU')", "backbone.act_cfg is 'ReLU'"),
        ("backbone", "num_heads=1, with_cls_token=False", "backbone.with_cls_token is False"),
        ("backbone", "num_heads=1, out_indices=0", r"its head reads layer \[0\] of 2 "),
        ("backbone", "num_heads=1, out_indices=9", r"its head reads layer"),
        ("head", "in_index=[0, 1]", r"model\.pth: its configuration cannot be interpreted"),
        (
            "head",
            "num_classes=2, out_channels=1",
            "out_channels is 1 for 2 classes",
        ),
        ("pixels", PIXELS, "has bgr_to_rgb unset: the encoder takes BGR images"),
        ("pixels", f"{PIXELS}, bgr_to_rgb=False", "has bgr_to_rgb False: the encoder takes BGR images"),
    ],
)
def test_settings_that_would_change_the_logits_are_refused(part: str, text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(ms.InputError, match=line):
        read(tmp_path, {part: text})


def test_the_last_of_several_layers_is_read(tmp_path: Path) -> None:
    assert read(
        tmp_path, {"backbone": f"{WHOLE['backbone']}, out_indices=(0, 1)", "head": "type='FCNHead', in_index=1"}
    )


def test_other_epsilons_of_a_mask_transformer_are_refused(tmp_path: Path) -> None:
    head = "type='SegmenterMaskTransformerHead', num_heads=1, norm_cfg=dict(type='LN'{})"
    assert read(tmp_path, {"head": head.format("")}, "mask")
    with pytest.raises(ms.InputError, match=r"decode_head\.norm_cfg\.eps is 1e-06; .*1e-05"):
        read(tmp_path, {"head": head.format(", eps=1e-6")}, "mask")


def test_bgr_encoders_are_refused_in_0_x_configurations_too(tmp_path: Path) -> None:
    for template, line in (
        ("img_norm_cfg = dict({})", "to_rgb"),
        ("test_pipeline = [dict(type='Normalize', {})]", "to_rgb"),
    ):
        text = template.format(f"{PIXELS}, to_rgb=False")
        path = save_mmsegmentation(tmp_path / "model.pth", mmsegmentation_state(TOY, "linear"), TOY, config=text)
        with pytest.raises(ms.InputError, match=f"has {line} False"):
            read_checkpoint(path)


@pytest.mark.parametrize(("short", "window"), [(None, None), (None, 512), (300, 512)])
def test_preprocessing_survives_writing(short: int | None, window: int | None, tmp_path: Path) -> None:
    small = {"embed_dim": 64, "depth": 1, "num_heads": 1}
    made = ms.create_model("segmenter-ti16", num_classes=3, image_size=32, encoder_args=small)
    config = replace(made.config, positions="bicubic", short_side=short, window=window)
    model = Segmenter(config, made.label_space)
    write_mmsegmentation(model, tmp_path / "model.pth")
    again = read_checkpoint(tmp_path / "model.pth").config
    assert (again.short_side, again.window, again.window_stride) == (short, window, 480)


@pytest.mark.parametrize(
    ("part", "text", "line"),
    [
        ("test", "mode='slide', crop_size='x', stride=480", "test_cfg.crop_size 'x'"),
        ("test", "mode='slide', crop_size=512, stride=(1.5, 2)", r"test_cfg.stride \[1.5, 2\]"),
        ("backbone", "type='VisionTransformer', num_heads=None", "backbone.num_heads None"),
    ],
)
def test_invalid_fields_are_refused(part: str, text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(ms.InputError, match=rf"model\.pth: its configuration has {line}"):
        read(tmp_path, {part: text})


def test_a_stride_above_the_window_is_reduced(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="unlike the file: stride 640, as 999"):
        config = read(tmp_path, {"test": "mode='slide', crop_size=(640, 640), stride=(999, 999)"}).config
    assert config.window_stride == 640
