from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

import meanshifter as ms
from meanshifter.checkpoints.foreign import read_checkpoint, read_with_state
from meanshifter.checkpoints.writing import write_mmsegmentation, write_segmenter
from meanshifter.model import saving
from tests.checkpoints.foreign import (
    TI16,
    Toy,
    mmsegmentation_logits,
    mmsegmentation_state,
    segmenter_logits,
    segmenter_state,
)

TOY = Toy()
SMALL = {"embed_dim": 64, "depth": 1, "num_heads": 1}
SIZES = [(2, 48, 48), (2, 40, 72), (2, 21, 33)]
LARGE = [(1, 512, 512), (1, 256, 344)]
CONFIG = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    backbone=dict(type='VisionTransformer', num_heads={heads}, img_size=({side}, {side}), norm_cfg=dict(eps=1e-6)),
    decode_head=dict(type='{head}', num_classes=7, num_heads={heads}, sampler=Unknown(3)),
    test_cfg=dict(mode='slide', crop_size=(640, 640), stride=(608, 608)))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(2048, 512), flip=False, transforms=[dict(type='Resize')])]
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
import os
os.system('false')
"""


def save_mmsegmentation(path: Path, state: dict[str, Tensor], toy: Toy, **meta: Any) -> Path:
    head = "SegmenterMaskTransformerHead" if "decode_head.cls_emb" in state else "FCNHead"
    text = CONFIG.format(heads=toy.heads, side=toy.side, head=head)
    facts = {"config": text, "mmseg_version": "0.29.1", **meta}
    torch.save({"meta": facts, "state_dict": OrderedDict(state)}, path)
    return path


def save_segmenter(folder: Path, state: dict[str, Tensor], toy: Toy, **net: Any) -> Path:
    variant = {
        "net_kwargs": {"n_heads": toy.heads, "image_size": (toy.side, toy.side), "normalization": "vit", **net},
        "inference_kwargs": {"im_size": 512, "window_size": 768, "window_stride": 512},
    }
    (folder / "variant.yml").write_text(yaml.dump(variant))  # sizes become Python tuples, as in official files
    torch.save({"model": state, "n_cls": toy.K, "epoch": 3}, folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


@pytest.mark.parametrize(("toy", "sizes"), [(TOY, SIZES), (TI16, LARGE)], ids=["toy", "ti16"])
@pytest.mark.parametrize("head", ["linear", "mask", "shift"])
@pytest.mark.parametrize("patch_bias", [False, True])
def test_an_mmsegmentation_checkpoint_gives_the_logits_of_that_tool(
    toy: Toy, sizes: list[tuple[int, int, int]], head: str, patch_bias: bool, tmp_path: Path
) -> None:
    if toy is TI16 and patch_bias:
        pytest.skip("the toy has it, and this size costs seconds")
    torch.manual_seed(0)
    state = mmsegmentation_state(toy, head, patch_bias=patch_bias)
    path = save_mmsegmentation(tmp_path / "model.pth", state, toy)
    model = read_checkpoint(path, mean_shift_layers=1 if head == "shift" else None)
    for count, height, width in sizes:
        images = torch.randn(count, 3, height, width)
        with torch.inference_mode():
            ours, exact = model(images), model.double()(images.double())
            theirs = mmsegmentation_logits(state, images, toy)
            model.float()
        torch.testing.assert_close(exact, theirs, rtol=0, atol=1e-10)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("toy", "sizes"), [(TOY, SIZES), (TI16, LARGE)], ids=["toy", "ti16"])
@pytest.mark.parametrize("head", ["linear", "mask"])
@pytest.mark.parametrize("distilled", [False, True])
def test_an_official_checkpoint_gives_the_official_logits(
    toy: Toy, sizes: list[tuple[int, int, int]], head: str, distilled: bool, tmp_path: Path
) -> None:
    if toy is TI16 and distilled == (head == "mask"):
        pytest.skip("the toy has it, and this size costs seconds")
    torch.manual_seed(0)
    state = segmenter_state(toy, head, distilled=distilled)
    model = read_checkpoint(save_segmenter(tmp_path, state, toy))
    for count, height, width in sizes:
        images = torch.randn(count, 3, height, width)
        with torch.inference_mode():
            ours, exact = model(images), model.double()(images.double())
            theirs = segmenter_logits(state, images, toy)
            model.float()
        torch.testing.assert_close(exact, theirs, rtol=0, atol=1e-10)
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("head", ["linear", "mask", "shift"])
@pytest.mark.parametrize("patch_bias", [False, True])
def test_a_checkpoint_is_written_back_unchanged(head: str, patch_bias: bool, tmp_path: Path) -> None:
    state = mmsegmentation_state(TOY, head, patch_bias=patch_bias)
    path = save_mmsegmentation(tmp_path / "model.pth", state, TOY)
    model, held = read_with_state(path, mean_shift_layers=2 if head == "shift" else None)
    warned = pytest.warns(UserWarning, match="has no MeanShifterHead") if head == "shift" else nullcontext()
    with warned:
        write_mmsegmentation(model, tmp_path / "back.pth", held)
    assert_same(read_state(tmp_path / "back.pth"), state)
    again = read_checkpoint(tmp_path / "back.pth")
    assert again.config == model.config
    assert again.label_space == model.label_space


@pytest.mark.parametrize("head", ["linear", "mask"])
@pytest.mark.parametrize("distilled", [False, True])
def test_an_official_checkpoint_is_written_back_with_its_unused_classifier(
    head: str, distilled: bool, tmp_path: Path
) -> None:
    state = segmenter_state(TOY, head, distilled=distilled)
    model, held = read_with_state(save_segmenter(tmp_path, state, TOY))
    saving.save_model(model, tmp_path / "ours", held)
    again, kept = saving.read_with_state(tmp_path / "ours")
    write_segmenter(again, tmp_path / "back", kept)
    assert_same(torch.load(tmp_path / "back" / "checkpoint.pth", weights_only=True)["model"], state)
    assert read_checkpoint(tmp_path / "back" / "checkpoint.pth").config == model.config


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("through_ours", [False, True])
def test_data_types_are_written_back_too(kind: torch.dtype, through_ours: bool, tmp_path: Path) -> None:
    state = {name: value.to(kind) for name, value in mmsegmentation_state(TOY, "linear").items()}
    state["backbone.ln1.weight"] = state["backbone.ln1.weight"].float()
    exact = kind != torch.float64
    warned = nullcontext() if exact else pytest.warns(UserWarning, match="float64 is rounded to float32")
    with warned:
        model, held = read_with_state(save_mmsegmentation(tmp_path / "model.pth", state, TOY))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    if through_ours:
        saving.save_model(model, tmp_path / "ours", held)
        model, held = saving.read_with_state(tmp_path / "ours")
    write_mmsegmentation(model, tmp_path / "back.pth", held)
    assert_same(read_state(tmp_path / "back.pth"), state if exact else {k: v.float().to(v) for k, v in state.items()})


def test_trained_weights_are_not_rounded_to_the_data_type_of_their_file(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in mmsegmentation_state(TOY, "linear").items()}
    model, held = read_with_state(save_mmsegmentation(tmp_path / "model.pth", state, TOY))
    name = "encoder.vit.norm.weight"
    trained = model.state_dict()[name].add_(1e-6).clone()
    saving.save_model(model, tmp_path / "ours", held)
    assert torch.equal(saving.read_model(tmp_path / "ours").state_dict()[name], trained)


def test_unused_parts_are_named_and_written_back(tmp_path: Path) -> None:
    state = mmsegmentation_state(TOY, "linear")
    state |= {"auxiliary_head.conv_seg.weight": torch.rand(7, 64, 1, 1), "data_preprocessor.mean": torch.rand(3, 1, 1)}
    path = save_mmsegmentation(tmp_path / "model.pth", state, TOY)
    with pytest.warns(UserWarning, match="auxiliary_head is not used; data_preprocessor is not used$"):
        model, held = read_with_state(path)
    saving.save_model(model, tmp_path / "ours", held)
    again, kept = saving.read_with_state(tmp_path / "ours")
    write_mmsegmentation(again, tmp_path / "back.pth", kept)
    assert_same(read_state(tmp_path / "back.pth"), state)


def read_state(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name


def test_configuration_classes_and_windows_are_read_from_the_file(tmp_path: Path) -> None:
    names = ["wall", "bed ", "television receiver", "a", "b", "c", "d"]
    palette = [[k, 2 * k, 3 * k] for k in range(7)]
    state = mmsegmentation_state(TOY, "linear")
    old = save_mmsegmentation(tmp_path / "0.pth", state, TOY, CLASSES=tuple(names), PALETTE=palette)
    new = save_mmsegmentation(tmp_path / "1.pth", state, TOY, dataset_meta={"classes": names, "palette": palette})
    info = save_mmsegmentation(tmp_path / "2.pth", state, TOY, meta_info={"CLASSES": names, "PALETTE": palette})
    apart = torch.load(save_mmsegmentation(tmp_path / "3.pth", state, TOY), weights_only=True)
    torch.save(apart | {"meta_info": {"classes": names, "palette": palette}}, tmp_path / "3.pth")
    for path in (old, new, info, tmp_path / "3.pth"):
        model = read_checkpoint(path)
        assert model.label_space.names == ("wall", "bed", "television", "a", "b", "c", "d")
        assert model.label_space.palette[2] == (2, 4, 6)
        assert (model.config.window, model.config.window_stride) == (640, 608)
        assert model.config.mean == pytest.approx((0.485, 0.456, 0.406))
        assert not model.training


def test_known_official_data_sets_give_class_names(tmp_path: Path) -> None:
    toy = TOY._replace(K=150)
    path = save_segmenter(tmp_path, segmenter_state(toy, "linear"), toy)
    assert read_checkpoint(path).label_space.names[0] == "class 0"
    variant = yaml.unsafe_load((tmp_path / "variant.yml").read_text())
    (tmp_path / "variant.yml").write_text(yaml.dump(variant | {"dataset_kwargs": {"dataset": "ade20k"}}))
    model = read_checkpoint(path)
    assert model.label_space.names[:2] == ("wall", "building")
    assert (model.config.window, model.config.window_stride) == (768, 512)
    write_segmenter(model, tmp_path / "back")
    assert read_checkpoint(tmp_path / "back" / "checkpoint.pth").label_space == model.label_space


def test_missing_and_unexpected_tensors_are_named_and_refused(tmp_path: Path) -> None:
    state = mmsegmentation_state(TOY, "linear")
    del state["backbone.layers.1.ln2.bias"]
    state["backbone.layers.1.extra"] = torch.zeros(1)
    path = save_mmsegmentation(tmp_path / "model.pth", state, TOY)
    with pytest.raises(ms.InputError, match=r"1 missing: backbone\.layers\.1\.ln2\.bias; 1 unexpected: .*extra"):
        read_checkpoint(path)
    with pytest.warns(UserWarning, match="1 missing"):
        assert read_checkpoint(path, allow_missing=True).config.encoder_args["depth"] == 2


def test_assumptions_are_reported(tmp_path: Path) -> None:
    torch.save(mmsegmentation_state(TOY, "shift"), tmp_path / "bare.pth")
    with pytest.warns(UserWarning, match="one attention head for each 64 channels.*1 mean shift step"):
        model = read_checkpoint(tmp_path / "bare.pth")
    assert model.mean_shift is not None
    assert model.mean_shift.layers == 1
    torch.save(mmsegmentation_state(TOY, "linear"), tmp_path / "plain.pth")
    with pytest.raises(ms.InputError, match=r"mean_shift_layers: 2, but .* has no mean shift block"):
        read_checkpoint(tmp_path / "plain.pth", mean_shift_layers=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {"fc.weight": torch.zeros(2, 2)}}, r"other\.pth: not a Segmenter .*fc\.weight"),
        ([1, 2], r"other\.pth: not a Segmenter"),
        (
            {"state_dict": {"backbone.conv1.weight": torch.zeros(1), "decode_head.x": torch.zeros(1)}},
            r"other\.pth: has no tensor 'backbone\.cls_token'",
        ),
    ],
)
def test_another_architecture_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ms.InputError, match=message):
        read_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("backbone.cls_token", torch.tensor(1.0), r"backbone\.cls_token, .* is a scalar"),
        ("backbone.cls_token", torch.zeros(1, 1, 0), r"backbone\.cls_token, .* is empty"),
        ("backbone.pos_embed", torch.zeros(1, 0, 64), r"backbone\.pos_embed .* is empty"),
    ],
)
def test_tensors_that_determine_no_architecture_are_refused(
    name: str, value: Tensor, line: str, tmp_path: Path
) -> None:
    state = mmsegmentation_state(TOY, "linear") | {name: value}
    with pytest.raises(ms.InputError, match=line):
        read_checkpoint(save_mmsegmentation(tmp_path / "model.pth", state, TOY))


def test_configurations_that_contradict_the_tensors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save_mmsegmentation(tmp_path / "model.pth", mmsegmentation_state(TOY, "linear"), TOY._replace(heads=3))
    with pytest.raises(ms.InputError, match=r"model\.pth: 3 attention heads do not divide the width 64"):
        read_checkpoint(path)
    toy = TOY._replace(D=128, heads=2)
    text = CONFIG.format(heads=2, side=48, head="SegmenterMaskTransformerHead")
    for wrong, line in (
        (text.replace("num_classes=7, num_heads=2", "num_classes=7, num_heads=7"), "width 128 cannot be split into 7"),
        (text.replace("num_classes=7", "num_classes=7, act_cfg=dict(type='ReLU')"), r"decode_head\.act_cfg is 'ReLU'"),
    ):
        save_mmsegmentation(path, mmsegmentation_state(toy, "mask"), toy, config=wrong)
        with pytest.raises(ms.InputError, match=rf"model\.pth: .*{line}"):
            read_checkpoint(path)
    monkeypatch.chdir(tmp_path)
    for kind, net, line in (
        ("linear", {"distilled": True}, "distilled is True, but .* show False"),
        ("linear", {"decoder": {"name": "mask_transformer"}}, "decoder.name is 'mask_transformer', but .* linear"),
        ("mask", {"decoder": {"name": "linear"}}, "decoder.name is 'linear', but .* mask_transformer"),
        ("mask", {"decoder": {"n_layers": 4}}, "decoder.n_layers is 4, but .* show 2"),
    ):
        path = save_segmenter(Path(), segmenter_state(TOY, kind), TOY, **net)
        with pytest.raises(ms.InputError, match=rf"^variant\.yml: net_kwargs\.{line}"):
            read_checkpoint(path)
    path = save_segmenter(Path(), segmenter_state(TOY, "linear"), TOY, n_cls=9)
    with pytest.raises(ms.InputError, match=r"^variant\.yml: net_kwargs\.n_cls is 9, but .* show 7"):
        read_checkpoint(path)


@pytest.mark.parametrize(("dataset", "ratio"), [("ade20k", 4), ("pascal_context", 8), ("cityscapes", 2), ("mine", 4)])
def test_official_sides_have_the_ratio_of_their_data_set(dataset: str, ratio: int, tmp_path: Path) -> None:
    path = save_segmenter(tmp_path, segmenter_state(TOY, "linear"), TOY)
    variant = yaml.unsafe_load((tmp_path / "variant.yml").read_text())
    (tmp_path / "variant.yml").write_text(yaml.dump(variant | {"dataset_kwargs": {"dataset": dataset}}))
    config = read_checkpoint(path).config
    assert (config.short_side, config.long_side) == (512, ratio * 512)


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['false']", "a: [", "net_kwargs: {n_heads: {}"])
def test_a_variant_with_more_than_plain_values_is_refused(text: str, tmp_path: Path) -> None:
    path = save_segmenter(tmp_path, segmenter_state(TOY, "linear"), TOY)
    (tmp_path / "variant.yml").write_text(text)
    with pytest.raises(ms.InputError, match=r"variant\.yml: not YAML"):
        read_checkpoint(path)


def test_models_with_our_blocks_are_not_written_for_other_tools(tmp_path: Path) -> None:
    for preset in ("meanshifter-joint-ti16", "meanshifter-pixel-ti16"):
        model = ms.create_model(preset, num_classes=3, image_size=64, encoder_args=SMALL)
        with pytest.raises(ms.InputError, match=r"model: MMSegmentation has no place for .*(mean_shift|pixel_shift)"):
            write_mmsegmentation(model, tmp_path / "out.pth")
    assert not list(tmp_path.iterdir())


def test_differences_from_the_other_tool_give_a_warning(tmp_path: Path) -> None:
    model = ms.create_model("segmenter-ti16", num_classes=3, image_size=32, encoder_args=SMALL)
    with pytest.warns(UserWarning, match="resampled bicubic, not antialias, .* 32×32$"):
        write_mmsegmentation(model, tmp_path / "model.pth")
    with pytest.warns(UserWarning, match="resampled bilinear, not antialias.*ε 1e-05 instead of 1e-06"):
        write_segmenter(model, tmp_path / "theirs")
    odd = ms.create_model("segmenter-ti16", num_classes=3, image_size=32, encoder_args=SMALL, mean=(0.1, 0.2, 0.3))
    with pytest.raises(ms.InputError, match=r"mean is \(0\.1, 0\.2, 0\.3\) .* vit and deit"):
        write_segmenter(odd, tmp_path / "odd")
    assert not (tmp_path / "odd").exists()


ODD = {
    "sparse": lambda weight: weight.to_sparse(),
    "rows": lambda weight: weight.to_sparse_csr(),
    "empty": lambda weight: weight.to("meta"),
    "whole numbers": lambda weight: weight.long(),
    "complex": lambda weight: weight.to(torch.complex64),
    "nan": lambda weight: weight / 0,
    "repeated": lambda weight: weight[:1, :1].expand(50_000, 20_000),
}


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_not_plain_numbers_are_named_and_refused(kind: str, tmp_path: Path) -> None:
    odd = ODD[kind](torch.zeros(64, 64))
    theirs = mmsegmentation_state(TOY, "linear") | {"backbone.layers.0.ln1.weight": odd}
    with pytest.raises(ms.InputError, match=r"backbone\.layers\.0\.ln1\.weight is "):
        read_checkpoint(save_mmsegmentation(tmp_path / "theirs.pth", theirs, TOY))
    official = segmenter_state(TOY, "linear") | {"encoder.head.weight": odd}
    with pytest.raises(ms.InputError, match=r"encoder\.head\.weight is "):
        read_checkpoint(save_segmenter(tmp_path, official, TOY))
    torch.save({"blocks.0.norm1.weight": odd}, tmp_path / "vit.pth")
    with pytest.raises(ms.InputError, match=r"encoder_weights: .*blocks\.0\.norm1\.weight is"):
        ms.create_model("segmenter-ti16", num_classes=2, encoder_weights=tmp_path / "vit.pth")


@pytest.mark.parametrize("name", ["", None, 3])
def test_class_names_are_non_empty_strings(name: object, tmp_path: Path) -> None:
    state = mmsegmentation_state(TOY, "linear")
    path = save_mmsegmentation(tmp_path / "model.pth", state, TOY, CLASSES=["a", name, "c", "d", "e", "f", "g"])
    with pytest.raises(ms.InputError, match=rf"model\.pth: class name is {name!r};"):
        read_checkpoint(path)


def test_the_nearest_published_name_is_suggested() -> None:
    with pytest.raises(ms.InputError, match="did you mean 'segmenter-mask-ti16-ade20k-openmmlab'"):
        ms.load_model("segmenter-mask-ti16-ade20k-openmlab")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_single_file_of_a_model_is_refused(file: str, tmp_path: Path) -> None:
    ms.create_model("segmenter-ti16", num_classes=2, image_size=32, encoder_args=SMALL).save(tmp_path)
    with pytest.raises(ms.InputError, match=f"{file}: a single file of a model; give its folder"):
        ms.load_model(tmp_path / file)


@pytest.mark.parametrize(
    ("section", "field", "value"),
    [
        ("net_kwargs", "n_heads", "x"),
        ("net_kwargs", "n_heads", 0),
        ("net_kwargs", "n_heads", 1.5),
        ("net_kwargs", "image_size", "48"),
        ("net_kwargs", "image_size", [48, None]),
        ("net_kwargs", "drop_path_rate", "x"),
        ("inference_kwargs", "window_size", 0),
        ("inference_kwargs", "window_size", 10**12),
        ("inference_kwargs", "window_stride", [512]),
        ("inference_kwargs", "im_size", float("inf")),
    ],
)
def test_invalid_fields_of_a_variant_are_refused(section: str, field: str, value: Any, tmp_path: Path) -> None:
    path = save_segmenter(tmp_path, segmenter_state(TOY, "linear"), TOY)
    variant = yaml.unsafe_load((tmp_path / "variant.yml").read_text())
    variant[section][field] = value
    (tmp_path / "variant.yml").write_text(yaml.dump(variant))
    with pytest.raises(ms.InputError, match=rf"variant\.yml: {section}\.{field} is .*; write "):
        read_checkpoint(path)


def test_missing_fields_of_a_variant_are_named(tmp_path: Path) -> None:
    path = save_segmenter(tmp_path, segmenter_state(TOY, "linear"), TOY)
    for section, field, note in (
        ("net_kwargs", "n_heads", "one attention head for each 64 channels"),
        ("net_kwargs", "normalization", "the normalization of 'vit'"),
        ("inference_kwargs", "window_size", "window_size 512"),
        ("inference_kwargs", "window_stride", "window_stride 512"),
        ("inference_kwargs", "im_size", "im_size 512"),
    ):
        variant = yaml.unsafe_load((tmp_path / "variant.yml").read_text())
        gone = {**variant, section: {key: value for key, value in variant[section].items() if key != field}}
        (tmp_path / "variant.yml").write_text(yaml.dump(gone))
        with pytest.warns(UserWarning, match=rf"assumed, .*: {note}$"):
            read_checkpoint(path)
        (tmp_path / "variant.yml").write_text(yaml.dump(variant))


def test_an_official_checkpoint_without_its_variant(tmp_path: Path) -> None:
    path = save_segmenter(tmp_path, segmenter_state(TOY, "linear"), TOY)
    (tmp_path / "variant.yml").unlink()
    with pytest.raises(ms.InputError, match=r"variant\.yml: missing; .*checkpoint\.pth"):
        ms.load_model(tmp_path)
    with pytest.warns(UserWarning, match="assumed"):
        ms.load_model(path)
