from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.model.config import MeanShiftConfig, PixelShiftConfig, TokenMergingConfig
from meanshifter.model.presets import SHIFTS
from meanshifter.training.config import TrainConfig
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.recipes import recipe_names

TINY_ENCODER = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_in_the_package_parses(name: str) -> None:
    config = parse_recipe(name)
    assert config.out == f"runs/{name}"


def test_the_defaults_are_the_recipe_of_the_field() -> None:
    config = TrainConfig()
    assert (config.steps, config.batch_size) == (160_000, 8)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.momentum) == ("sgd", 1e-3, 0.9)
    assert (config.optimizer.schedule, config.optimizer.power, config.optimizer.min_lr) == ("poly", 0.9, 1e-4)
    assert (config.optimizer.weight_decay, config.model.drop_path, config.loss.reduction) == (0.0, 0.1, "mean_all")
    assert (config.augment.crop, config.augment.resize_base, config.augment.scale) == (
        (512, 512),
        (2048, 512),
        (0.5, 2.0),
    )
    assert (config.augment.max_class_share, config.augment.flip) == (0.75, 0.5)
    evaluation = config.evaluation
    assert (evaluation.window, evaluation.window_stride, evaluation.short_side, evaluation.long_side) == (
        512,
        480,
        512,
        2048,
    )


def test_fields_of_the_command_line_win_and_turn_the_block_on() -> None:
    config = parse_recipe("camvid_ti16", ["--model.mean_shift.layers", "2", "--optimizer.lr=0.01", "--data.root", "x"])
    assert config.model.mean_shift is not None
    assert (config.model.mean_shift.layers, config.optimizer.lr, config.data.root) == (2, 0.01, "x")


def test_a_folder_of_data_is_a_recipe(tmp_path: Path) -> None:
    config = parse_recipe(tmp_path, ["--steps", "60"])
    assert (config.data.name, config.data.root, config.steps) == ("folder", str(tmp_path), 60)


@pytest.mark.parametrize(
    ("recipe", "fields", "message"),
    [
        ("camvid_ti61", [], "camvid_ti61: .*did you mean 'camvid_ti16'"),
        ("camvid_ti16", ["--optimzer.lr", "1"], "unknown field 'optimzer.lr', did you mean 'optimizer.lr'"),
        ("camvid_ti16", ["--model.mean_shift.layer", "1"], "did you mean 'model.mean_shift.layers'"),
        ("camvid_ti16", ["--optimizer.lr", "fast"], r"optimizer\.lr: 'fast' is not a number"),
        ("camvid_ti16", ["--precision", "int8"], "precision: 'int8' is not one of auto, fp32, bf16, fp16"),
        ("camvid_ti16", ["--minutes", "soon"], "minutes: 'soon' is not a number or null"),
        ("camvid_ti16", ["--model.mean_shift.channels", "x"], r"mean_shift\.channels: 'x' is not an integer or null"),
        ("camvid_ti16", ["--model.mean_shift", "5"], r"model\.mean_shift: '5' is not a mapping"),
        ("camvid_ti16", ["--steps", "0", "--ema", "2"], "steps: 0 must be at least 1; ema: 2.0 must be"),
        ("camvid_ti16", ["--augment.scale", "[2.0, 0.5]"], r"augment\.scale: \(2\.0, 0\.5\) is not"),
        ("camvid_ti16", ["--evaluation.window", "256"], "evaluation.window_stride: 480 is above evaluation.window 256"),
        ("camvid_ti16", ["--data.val_split", "held_out"], "data.val_split: held_out, but data.val_pattern is null"),
        ("camvid_ti16", ["--optimizer.momentum", "-1"], r"optimizer\.momentum: -1\.0 must be"),
        ("camvid_ti16", ["--optimizer.power", "-5"], r"optimizer\.power: -5\.0 must be"),
        ("camvid_ti16", ["--optimizer.schedule=cosine", "--optimizer.power=3"], r"optimizer\.power: 3\.0 is for poly"),
        ("camvid_ti16", ["--model.decoder_layers", "4"], r"model\.decoder_layers: 4, but segmenter-ti16 has a linear"),
        ("camvid_ti16", ["--model.mean", "0.5"], r"model\.mean: '\[0\.5\]' is not 3 numbers or null"),
        ("folder", ["--model.init_from=m", "--model.mean=[0,0,0]"], r"model\.mean: conflicts with model\.init_from"),
        (
            "folder",
            ["--model.preset=segmenter-s16", "--model.init_from=m"],
            r"model\.preset: conflicts with .*init_from",
        ),
        ("camvid_ti16", ["--optimizer.momentum", "0.95"], r"optimizer\.momentum: 0\.95 is for sgd.* adamw, remove it"),
        (
            "camvid_half_sgd",
            ["--optimizer.betas", "0.9", "0.95"],
            r"optimizer\.betas: .*0\.95.* is for adamw.* sgd, remove it",
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(recipe: str, fields: list[str], message: str) -> None:
    with pytest.raises(ms.InputError, match=message) as caught:
        parse_recipe(recipe, fields)
    assert "\n" not in str(caught.value)


def test_a_field_of_a_block_leaves_the_others_as_in_the_preset() -> None:
    fields = ["--model.preset", "meanshifter-pixel-ti8", "--model.token_merging.ratio", "0.5"]
    assert parse_recipe("folder", fields).model.token_merging == TokenMergingConfig(after_layer=3, ratio=0.5)


def test_names_of_classes_keep_their_dashes() -> None:
    fields = ["--loss.class-weights.traffic-light", "3", "--loss.class_weight_power", "0", "--log-every", "5"]
    config = parse_recipe("folder", fields)
    assert (config.loss.class_weights, config.log_every) == ({"traffic-light": 3}, 5)


def test_a_recipe_in_place_of_the_data_is_said() -> None:
    with pytest.raises(ms.InputError, match=r"data: 'camvid_ti16' is a recipe.*recipe='camvid_ti16'"):
        ms.train("camvid_ti16")


def test_all_that_is_out_of_range_is_said_at_once() -> None:
    wrong = {
        "steps": "-3",
        "optimizer.lr": "-1.0",
        "batch_size": "0",
        "augment.flip": "2.0",
        "model.drop_path": "3.0",
        "model.decoder_layers": "-4",
        "model.mean_shift.layers": "-5",
        "model.mean_shift.step_size": "6.0",
        "model.pixel_shift.factor": "-7",
        "evaluation.long_side": "-8",
    }
    with pytest.raises(ms.InputError) as caught:
        parse_recipe("shapes", [word for name, value in wrong.items() for word in (f"--{name}", value)])
    said = dict(re.split(r" is not | must be ", part)[0].split(": ") for part in str(caught.value).split("; "))
    assert said == wrong, "each once, and no contradiction that follows from them"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: {lrr: 1}", "unknown field 'optimizer.lrr', did you mean 'optimizer.lr'"),
        ("steps: [", "not YAML"),
        ("- 1", r"mine\.yaml: .*list"),
        ("steps: !!python/object/apply:os.system ['true']", "not YAML"),
        ("format_version: 9", "format_version 9; this version of meanshifter reads 2"),
    ],
)
def test_a_wrong_recipe_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ms.InputError, match=message) as caught:
        parse_recipe(path)
    assert str(caught.value).startswith(str(path))


def sides(config: TrainConfig) -> dict[str, object]:
    reading = config.evaluation
    return {
        "crop": config.augment.crop,
        "base": config.augment.resize_base,
        "image_size": config.model.image_size,
        "window": reading.window,
        "window_stride": reading.window_stride,
        "short_side": reading.short_side,
        "long_side": reading.long_side,
    }


SIDES_OF_256 = {
    "crop": (256, 256),
    "base": (1024, 256),
    "image_size": None,
    "window": 256,
    "window_stride": 240,
    "short_side": 256,
    "long_side": 1024,
}


def test_one_size_sets_what_belongs_together(tmp_path: Path) -> None:
    assert sides(parse_recipe("folder", ["--size", "512"])) == sides(parse_recipe("folder"))
    assert sides(parse_recipe("folder", ["--size", "256"])) == SIDES_OF_256
    assert sides(parse_recipe("folder", ["--size=256"])) == SIDES_OF_256
    (tmp_path / "mine.yaml").write_text("size: 256\n")
    assert sides(parse_recipe(tmp_path / "mine.yaml")) == SIDES_OF_256


def test_a_side_that_is_given_beside_the_size_wins(tmp_path: Path) -> None:
    fields = ["--augment.crop", "128", "--size", "256", "--evaluation.window_stride", "100"]
    assert sides(parse_recipe("folder", fields)) == {**SIDES_OF_256, "crop": (128, 128), "window_stride": 100}
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("size: 256\naugment: {crop: 96}\nevaluation: {long_side: 4000}\nmodel: {image_size: [64, 64]}\n")
    own = {"crop": (96, 96), "long_side": 4000, "image_size": (64, 64)}
    assert sides(parse_recipe(recipe)) == {**SIDES_OF_256, **own}
    assert sides(parse_recipe(recipe, ["--size", "256"])) == SIDES_OF_256, "the command line is above the recipe"


def test_what_a_recipe_switches_off_a_size_does_not_switch_on() -> None:
    config = parse_recipe("camvid_ti16", ["--size", "256"])
    expected = {**SIDES_OF_256, "base": None, "window": None, "short_side": None, "image_size": (368, 480)}
    assert sides(config) == expected


@pytest.mark.parametrize("size", ["0", "-3", "big", "2.5"])
def test_a_size_is_a_number_of_pixels(size: str) -> None:
    with pytest.raises(ms.InputError, match=f"size: .*{size}"):
        parse_recipe("folder", [f"--size={size}"])


@pytest.mark.parametrize(
    "words", [["256", "320"], ["[256, 320]"], ["[256,", "320]"], ["256,320"], ["(256, 320)"]], ids=" ".join
)
def test_pairs_are_written_as_one_likes(words: list[str]) -> None:
    assert parse_recipe("folder", ["--augment.crop", *words, "--steps", "9"]).augment.crop == (256, 320)
    assert parse_recipe("folder", [f"--augment.crop={' '.join(words)}"]).augment.crop == (256, 320)


def test_one_number_is_both_sides_and_only_of_sizes(tmp_path: Path) -> None:
    assert parse_recipe("folder", ["--augment.crop", "256"]).augment.crop == (256, 256)
    assert parse_recipe("folder", ["--augment.resize_base", "null"]).augment.resize_base is None
    assert parse_recipe("folder", ["--optimizer.betas", "0.9", "0.95"]).optimizer.betas == (0.9, 0.95)
    with pytest.raises(ms.InputError, match=r"optimizer\.betas"):
        parse_recipe("folder", ["--optimizer.betas", "0.9"])
    (tmp_path / "mine.yaml").write_text("augment: {crop: 96}\n")
    assert parse_recipe(tmp_path / "mine.yaml").augment.crop == (96, 96)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("crop", "'augment.crop'"),
        ("lr", "'optimizer.lr'"),
        ("workers", "'data.workers'"),
        ("window", "'evaluation.window'"),
        ("croop", "'augment.crop'"),
        ("data.crop", "'augment.crop'"),
        ("batchsize", "'batch_size'"),
        ("layers", "'model.mean_shift.layers' or 'model.pixel_shift.layers'"),
        ("model.meanshift.layers", "'model.mean_shift.layers'"),
    ],
)
def test_the_field_that_was_meant_is_found_by_its_last_part(written: str, meant: str) -> None:
    with pytest.raises(ms.InputError, match=f"unknown field {written!r}, did you mean {meant}"):
        parse_recipe("folder", [f"--{written}", "1"])


def test_every_field_is_listed_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list-options"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name in ("size", "minutes", "augment.crop", "model.mean_shift.layers", "model.pixel_shift.factor"):
        assert len(lines[f"--{name}"].split()) > 5, name
    assert "(int, int; default [512, 512])" in lines["--augment.crop"]
    assert "(int | null; default null)" in lines["--model.pixel_shift.factor"]


def test_the_command_takes_a_pair_as_two_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "shapes", "--augment.crop", "64", "96", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["augment"]["crop"] == [64, 96]


@pytest.mark.parametrize(
    "fields",
    [
        ["--model.mean_shift.layers", "2"],
        ["--model.mean_shift", "{layers: 2}"],
        ["--model.mean_shift={layers: 1}", "--model.mean_shift.layers", "2"],
    ],
)
def test_a_block_changes_the_fields_that_are_given_of_the_presets(fields: list[str]) -> None:
    joint = parse_recipe("shapes", ["--model.preset", "meanshifter-joint-ti16", *fields]).model
    assert joint.mean_shift == dataclasses.replace(SHIFTS["meanshifter-joint"], layers=2)
    published = parse_recipe("shapes", ["--model.preset", "meanshifter-ti16", *fields]).model
    assert published.mean_shift == MeanShiftConfig(layers=2)
    assert parse_recipe("shapes", ["--model.preset", "meanshifter-joint-ti16"]).model.mean_shift is None


def test_fields_of_a_block_change_those_of_a_recipe_file(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "data: {name: shapes}\nmodel: {preset: meanshifter-ti16, mean_shift: {layers: 3, channels: 64}}\n"
    )
    changed = parse_recipe(recipe, ["--model.mean_shift.layers", "2", "--model.mean_shift.kernel=gaussian"]).model
    assert changed.mean_shift == MeanShiftConfig(layers=2, channels=64, kernel="gaussian")
    assert parse_recipe(recipe, ["--model.mean_shift", "null"]).model.mean_shift is None
    with pytest.raises(ms.InputError, match=r"model\.mean_shift"):
        parse_recipe(recipe, ["--model.mean_shift.layers", "many"])
    with pytest.raises(ms.InputError, match=r"--model\.mean_shift\.layers: no value"):
        parse_recipe(recipe, ["--model.mean_shift.layers"])


def test_the_same_rule_holds_in_python() -> None:
    for preset in ("segmenter-ti16", "meanshifter-ti16"):
        model = ms.create_model(preset, 3, image_size=32, mean_shift={"layers": 2}, encoder_args=TINY_ENCODER)
        assert model.config.mean_shift == MeanShiftConfig(layers=2)
    model = ms.create_model("segmenter-ti16", 3, image_size=32, pixel_shift={"layers": 2}, encoder_args=TINY_ENCODER)
    assert model.config.pixel_shift == PixelShiftConfig(layers=2, factor=4)
