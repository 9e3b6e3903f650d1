"""The list of recipes: what each is for, its weights with their license, and what it costs."""

from __future__ import annotations

import pytest
import recipes as measuring
import timm

from meanshifter.cli.main import main
from meanshifter.model.licenses import PERMISSIVE_RECIPE, terms_of
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.recipes import ALIASES, about, list_recipes, recipe_names, recipe_text

OWN = [name for name in recipe_names() if name not in ALIASES]


def test_folder_is_another_name_of_one_recipe() -> None:
    assert ALIASES["folder"] == "folder_ti16"
    folder, same = parse_recipe("folder"), parse_recipe("folder_ti16")
    assert (folder.out, same.out) == ("runs/folder", "runs/folder_ti16")
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
    assert sum("GB of memory; GPU: not measured" in line for line in lines) == len(OWN)
    assert any("folder_ti16, or folder" in line for line in lines)


def test_the_script_measures_a_recipe() -> None:
    found = measuring.measure("shapes", 1)
    assert found.keys() == {"step_seconds", "peak_gb", "steps", "random_weights"}
    assert 0 < float(str(found["step_seconds"])) < 60
    assert found["steps"] == parse_recipe("shapes").steps
