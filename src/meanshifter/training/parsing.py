"""From a recipe's name or file and fields on the command line to a checked TrainConfig."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from meanshifter.documents import LARGEST_YAML, parse_yaml, read_text
from meanshifter.errors import InputError
from meanshifter.model.config import MeanShiftConfig, PixelShiftConfig
from meanshifter.training.fields import SIZE, field_names, join_tuples, members, nearest, spread_numbers, with_size
from meanshifter.training.recipe import TrainConfig, of_model

FORMAT_VERSION = 1


def recipe_names() -> list[str]:
    """The recipes that come with the package."""
    folder = resources.files("meanshifter") / "recipes"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def parse_recipe(recipe: str | Path, fields: Sequence[str] = ()) -> TrainConfig:
    """A training configuration.

    Args:
        recipe: a name of `recipe_names()`, a YAML file, or a data folder (then the recipe `folder_ti16` on it).
        fields: command-line overrides, such as `["--model.mean_shift.layers", "2"]`.

    Raises:
        InputError: an unknown recipe or field (with the nearest valid name), or a value of another type.
    """
    name, text, preset_fields = _find(str(recipe))
    values = parse_yaml(text, recipe)
    if not isinstance(values, Mapping):
        raise InputError(f"{recipe}: holds {type(values).__name__}; a recipe is a mapping of fields")
    values = spread_numbers(values)
    if (version := values.pop("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
        raise InputError(f"{recipe}: format_version {version}; this version of meanshifter reads {FORMAT_VERSION}")
    _refuse_unknown(_leaves(values), str(recipe))
    given = join_tuples([*preset_fields, *map(_with_underscores, fields)])
    _refuse_unknown((_field_of(item) for item in given if item.startswith("--")), "command line")
    values, given = _without_shorthands(values, given)
    config, wrong = _parse(values, given, str(recipe))
    if nulls := list(_nulls(config)):
        raise InputError(f"{recipe}: {', '.join(nulls)}: null; give a value, or leave the field out")
    config.out = f"runs/{name}" if config.out is None else config.out
    if wrong := [*config.violations(), *wrong]:
        raise InputError("; ".join(wrong))
    return config


@cache
def _parser() -> ArgumentParser:
    """Every field of TrainConfig as an option."""
    built = ArgumentParser(prog="meanshifter train RECIPE", exit_on_error=False, add_help=False)
    built.add_class_arguments(TrainConfig)
    return built


def _without_shorthands(values: dict[str, Any], given: list[str]) -> tuple[dict[str, Any], list[str]]:
    """A recipe's values and a command line with the fields that `size` stands for; of `minutes` and `steps`, one.

    Raises:
        InputError: both on the command line, or a size that is none.
    """
    minutes, steps = _take(list(given), "minutes")[0], _take(list(given), "steps")[0]
    if minutes not in (None, "null") and steps is not None:
        raise InputError(f"command line: --minutes {minutes} stands beside --steps {steps}; give one of them")
    if steps is not None:
        values.pop("minutes", None)
    if (size := values.pop(SIZE, None)) is not None:
        values = with_size(values, size, wins=False)
    size, given = _take(given, SIZE)
    return (values if size in (None, "null") else with_size(values, size, wins=True)), given


def _take(given: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of a field on the command line, the last where it is given twice, and the command line without it."""
    value, left, place = None, [], 0
    while place < len(given):
        word, place = given[place], place + 1
        if word.startswith(f"--{name}="):
            value = word.partition("=")[2]
        elif word == f"--{name}" and place < len(given):
            value, place = given[place], place + 1
        else:
            left.append(word)
    return value, left


def _parse(values: Mapping[str, Any], fields: Sequence[str], source: str) -> tuple[TrainConfig, list[str]]:
    """The configuration without blocks that are out of range, and what is said of those."""
    options = _parser()
    try:
        base = options.parse_object(dict(values), defaults=True)
        parsed = options.parse_args(list(fields), namespace=base)
        wrong = _drop_wrong_blocks(parsed.model)
        return TrainConfig(**vars(options.instantiate(parsed))), wrong
    except (ArgumentError, TypeError, ValueError) as error:
        message = re.sub(r'^Parser key "(.+?)": ', r"\1: ", _one_line(error))
        raise InputError(f"{source}: {message}") from error


def _drop_wrong_blocks(model: Namespace) -> list[str]:
    """Take out the blocks whose fields are out of range, so that the other fields can be looked at too."""
    wrong = []
    for name, block in (("mean_shift", MeanShiftConfig), ("pixel_shift", PixelShiftConfig)):
        if isinstance(model[name], Namespace):
            try:
                block(**vars(model[name]))
            except InputError as error:
                wrong.append(of_model(str(error)))
                model[name] = None
    return wrong


def _find(recipe: str) -> tuple[str, str, list[str]]:
    """Name, text and implied fields of a recipe."""
    path = Path(recipe)
    if recipe in recipe_names():
        return recipe, _packaged(recipe), []
    if path.is_dir():
        return path.resolve().name, _packaged("folder_ti16"), ["--data.root", str(path)]
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path.stem, read_text(path, LARGEST_YAML), []
    near = get_close_matches(recipe, recipe_names(), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"recipes are {', '.join(recipe_names())}"
    raise InputError(f"{recipe}: no recipe, YAML file or data folder of that name; {hint}; it comes before the fields")


def _packaged(name: str) -> str:
    return (resources.files("meanshifter") / "recipes" / f"{name}.yaml").read_text("utf-8")


def _with_underscores(item: str) -> str:
    """`--num-nodes=2` as `--num_nodes=2`: no field has a dash in its name."""
    if not item.startswith("--"):
        return item
    name, equals, value = item.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}"


def _field_of(item: str) -> str:
    return item.removeprefix("--").split("=", 1)[0]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in _free_fields():
            yield from _leaves(value, f"{name}.")
        else:
            yield name


def _refuse_unknown(names: Iterator[str], source: str) -> None:
    known = {SIZE, *field_names(TrainConfig)}
    wrong = [name for name in names if name not in known and not name.startswith(tuple(_free_fields(".")))]
    if wrong:
        hints = [f"unknown field {name!r}{nearest(name)}" for name in wrong]
        raise InputError(f"{source}: {'; '.join(hints)}")


def _free_fields(suffix: str = "") -> list[str]:
    return [f"model.backbone_args{suffix}"]


def _nulls(config: Any, prefix: str = "") -> Iterator[str]:
    """Fields without a value that must have one, which the parser lets pass."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None and type(None) not in members(hints[field.name]):
            yield f"{prefix}{field.name}"
        elif dataclasses.is_dataclass(value):
            yield from _nulls(value, f"{prefix}{field.name}.")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
