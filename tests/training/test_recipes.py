"""The list of recipes: what each is for, its weights with their license, and what it costs."""

from __future__ import annotations

from pathlib import Path

import pytest
import recipes as measuring
import timm
import torch

from meanshifter.checkpoints.load import load_segmenter
from meanshifter.cli.main import main
from meanshifter.model.licenses import PERMISSIVE_RECIPE, terms_of
from meanshifter.training.loop import train as train_recipe
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.recipes import ALIASES, about, list_recipes, recipe_names, recipe_text
from meanshifter.training.setup import build_model

OWN = [name for name in recipe_names() if name not in ALIASES]


def test_folder_is_another_name_of_one_recipe() -> None:
    assert ALIASES["folder"] == "folder_pixel_ti12"
    folder, same = parse_recipe("folder"), parse_recipe("folder_pixel_ti12")
    assert (folder.out, same.out) == ("runs/folder", "runs/folder_pixel_ti12")
    folder.out = same.out
    assert folder == same


@pytest.mark.parametrize("name", OWN)
def test_a_recipe_has_a_command_a_purpose_and_measured_costs(name: str) -> None:
    config, entry = parse_recipe(name), about(name)
    command = "meanshifter train DIR" if name in ALIASES.values() else f"meanshifter train {name}"
    assert recipe_text(name).startswith(f"# {command}")
    assert all(len(line) <= 160 for line in recipe_text(name).splitlines())
    assert 20 < len(entry.purpose) < 200
    assert entry.steps == config.steps
    assert entry.cost is not None, "python benchmarks/recipes.py NAME --write"
    assert entry.cost.steps == config.steps, "the recipe has changed: measure it again"
    assert 0 < entry.cost.step_seconds < 1000
    assert 0.1 < entry.cost.peak_gb < 100


@pytest.mark.parametrize("name", OWN)
def test_weights_with_terms_of_their_own_are_named_in_header_and_list(name: str) -> None:
    config, entry = parse_recipe(name), about(name)
    if config.model.encoder_weights is None or config.model.encoder is None:
        assert entry.weights == "none, trained from scratch"
        return
    terms = terms_of(config.model.encoder)
    header = recipe_text(name).split("format_version")[0]
    if terms is None:
        stated = timm.get_pretrained_cfg(config.model.encoder)
        assert stated is not None
        assert stated.license == "apache-2.0"
        assert entry.weights.endswith(", Apache-2.0")
    else:
        assert terms.license in entry.weights
        assert terms.license in header
        assert PERMISSIVE_RECIPE in header


def test_the_recipe_that_stands_beside_weights_with_terms_has_permissive_ones() -> None:
    encoder = parse_recipe(PERMISSIVE_RECIPE).model.encoder
    assert encoder is not None
    assert terms_of(encoder) is None


def test_the_command_lists_every_recipe_with_its_costs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == list_recipes()
    names = [line.split(",")[0] for line in lines[:-2] if line and not line.startswith(" ")]
    assert names == OWN
    assert sum("GB of memory" in line and line.endswith("; GPU: not measured") for line in lines) == len(OWN)
    assert any("s per image for its tokens" in line and "MB per image" in line for line in lines)
    assert any("folder_pixel_ti12, or folder" in line for line in lines)


@pytest.mark.parametrize("name", [name for name in OWN if name.startswith("folder_") and name != "folder_half"])
@pytest.mark.filterwarnings("ignore:optimizer.freeze")  # of random weights
def test_a_recipe_for_a_folder_trains_with_its_kind_of_encoder(name: str, tmp_path: Path) -> None:
    measuring.write_images(tmp_path / "data", 3)
    small = "{depth: 5, embed_dim: 48, num_heads: 2}"
    words = ["--data.root", str(tmp_path / "data"), "--out", str(tmp_path / "run"), "--size", "56", "--steps", "2"]
    words += ["--model.encoder_weights", "null", "--model.average_corners", "false", "--model.encoder_args", small]
    config = parse_recipe(name, [*words, "--batch_size", "2", "--data.workers", "0", "--evaluation.limit", "1"])
    trained = train_recipe(config, quiet=True)
    assert trained.result.protocol.images == 1
    # a frozen encoder is as it was built
    model = load_segmenter(trained.path)
    first = build_model(config, model.label_space).encoder.state_dict()
    same = all(torch.equal(first[key], value) for key, value in model.encoder.state_dict().items())
    assert same == (name == "folder_frozen")


def test_size_keeps_crops_of_whole_images_with_cached_tokens() -> None:
    config = parse_recipe("folder_frozen", ["--size", "784"])
    assert (config.augment.crop, config.augment.resize_base) == ((784, 784), (784, 784))
    assert config.evaluation.reading == {"window": None, "window_stride": 735, "short_side": 784, "long_side": 784}
    assert parse_recipe("folder_dinov2_s", ["--size", "280"]).augment.resize_base == (1120, 280)


def test_the_script_measures_a_recipe() -> None:
    found = measuring.measure("shapes", 1)
    assert found.keys() == {"step_seconds", "peak_gb", "steps", "random_weights"}
    assert 0 < float(str(found["step_seconds"])) < 60
    assert found["steps"] == parse_recipe("shapes").steps
