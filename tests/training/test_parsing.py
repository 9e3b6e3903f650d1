from __future__ import annotations

from pathlib import Path

import pytest

import meanshifter as ms
from meanshifter.training.parsing import parse_recipe, recipe_names
from meanshifter.training.recipe import TrainConfig


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_in_the_package_parses(name: str) -> None:
    config = parse_recipe(name)
    assert config.out == f"runs/{name}"


def test_the_defaults_are_the_recipe_of_the_field() -> None:
    config = TrainConfig()
    assert (config.steps, config.batch_size) == (160_000, 8)
    assert (config.optimizer.name, config.optimizer.lr, config.optimizer.momentum) == ("sgd", 1e-3, 0.9)
    assert (config.optimizer.schedule, config.optimizer.power, config.optimizer.min_lr) == ("poly", 0.9, 1e-4)
    assert (config.optimizer.weight_decay, config.model.drop_path, config.loss.normalize) == (0.0, 0.1, "pixels")
    assert (config.augment.crop, config.augment.base, config.augment.scale) == ((512, 512), (2048, 512), (0.5, 2.0))
    assert (config.augment.max_class_share, config.augment.flip) == (0.75, 0.5)
    evaluation = config.evaluation
    assert (evaluation.window, evaluation.stride, evaluation.short_side, evaluation.long_side) == (512, 480, 512, 2048)


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
        ("camvid_ti61", [], "no recipe, YAML file or data folder of that name; did you mean 'camvid_ti16'"),
        ("camvid_ti16", ["--optimzer.lr", "1"], "unknown field 'optimzer.lr', did you mean 'optimizer.lr'"),
        ("camvid_ti16", ["--model.mean_shift.layer", "1"], "did you mean 'model.mean_shift.layers'"),
        ("camvid_ti16", ["--optimizer.lr", "fast"], r"optimizer\.lr: .*Got value: fast"),
        ("camvid_ti16", ["--optimizer.name", "adam"], r"optimizer\.name: .*Got value: adam"),
        ("camvid_ti16", ["--steps", "0", "--ema", "2"], "steps: 0 is not at least 1; ema: 2.0 is not"),
        ("camvid_ti16", ["--augment.scale", "[2.0, 0.5]"], r"augment\.scale: \(2\.0, 0\.5\) is not"),
        ("camvid_ti16", ["--evaluation.window", "256"], "evaluation.stride: 480 is above evaluation.window 256"),
        ("camvid_ti16", ["--optimizer.momentum", "-1"], r"optimizer\.momentum: -1\.0 is not from 0"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(recipe: str, fields: list[str], message: str) -> None:
    with pytest.raises(ms.InputError, match=message) as caught:
        parse_recipe(recipe, fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: {lrr: 1}", "unknown field 'optimizer.lrr', did you mean 'optimizer.lr'"),
        ("steps: [", "not YAML"),
        ("- 1", "a recipe is a mapping of fields"),
        ("steps: !!python/object/apply:os.system ['true']", "not YAML"),
        ("format_version: 9", "format_version 9; this version of meanshifter reads 1"),
    ],
)
def test_a_wrong_recipe_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ms.InputError, match=message) as caught:
        parse_recipe(path)
    assert str(caught.value).startswith(str(path))
