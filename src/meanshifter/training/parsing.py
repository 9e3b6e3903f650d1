"""Parsing of recipes and the command line: shorthands such as `size`, tuples, nested blocks, and unknown names."""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Final

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from meanshifter.errors import InputError, did_you_mean, summarize_error
from meanshifter.model.config import FORMAT_VERSION, MeanShiftConfig, PixelShiftConfig, TokenMergingConfig
from meanshifter.model.migration import FORMER, migrate_recipe
from meanshifter.model.presets import PRESETS, SHIFTS, parse_preset
from meanshifter.training.config import TrainConfig
from meanshifter.training.fields import SIZE, field_names, join_tuples, members, spread_numbers
from meanshifter.training.recipes import recipe_names, recipe_text
from meanshifter.training.sections import LoraConfig, ModelRecipe, of_model
from meanshifter.utils.files import LARGEST_YAML, parse_yaml, read_text

BLOCKS: Final = {
    "mean_shift": MeanShiftConfig,
    "pixel_shift": PixelShiftConfig,
    "token_merging": TokenMergingConfig,
}
"""Optional sections of `model`."""
KINDS: Final = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "Path": "a path",
    "dict": "a mapping",
    "list": "a list, such as [a, b]",
    "NoneType": "null",
    "LoraConfig": "a mapping of its fields",
    "MeanShiftConfig": "a mapping of its fields",
    "PixelShiftConfig": "a mapping of its fields",
    "TokenMergingConfig": "a mapping of its fields",
}
"""Types of fields, as messages name them."""
FREE_FORM: Final = ("model.encoder_args", "optimizer.args", "loss.class_weights")
"""Fields whose keys are not checked here."""
KEPT: Final = ("init_from", "drop_path")
"""Fields of the model that apply next to `init_from`."""


def with_size(values: Mapping[str, Any], size: Any, *, wins: bool) -> dict[str, Any]:
    """The values of a recipe, nested as in its file, with all fields that follow from `size` in pixels.

    With `wins`, these override the recipe, except null; without, values of the recipe take precedence.
    """
    try:
        side = int(size) if isinstance(size, str) else size
    except ValueError:
        side = None
    if type(side) is not int or side < 1:
        raise InputError(f"size: {size!r} is not a number of pixels of at least 1, such as 256")
    # with cached tokens, each crop is a whole image
    data = values.get("data")
    longest = side if isinstance(data, Mapping) and data.get("token_cache") is not None else 4 * side
    following: dict[str, dict[str, Any]] = {
        "augment": {"crop": [side, side], "resize_base": [longest, side]},
        "evaluation": {
            "window": side,
            "window_stride": max(side * 15 // 16, 1),
            "short_side": side,
            "long_side": longest,
        },
    }
    if (values.get("evaluation") or {}).get("window", side) is not None:  # whole images have a size of their own
        following["model"] = {"image_size": None}
    out = dict(values)
    for group, fields in following.items():
        own = out.get(group)
        if own is not None and not isinstance(own, Mapping):
            continue  # invalid, which is reported with the other fields
        own = dict(own or {})
        given = {name for name, value in own.items() if value is None or not wins}
        out[group] = {**own, **{name: value for name, value in fields.items() if name not in given}}
    return out


def nearest(name: str) -> str:
    """A question that suggests similar field names, or "": those with the same last part come first."""
    known = sorted({SIZE, *field_names(TrainConfig)})
    last = name.rpartition(".")[2]
    same = [field for field in known if field.rpartition(".")[2] == last]
    if len(same) > 1:
        same = get_close_matches(name, same, n=1, cutoff=0.75) or same[:3]
    near = same or get_close_matches(name, known, n=1, cutoff=0.6)
    if not near:
        parts = {field.rpartition(".")[2]: field for field in known}
        near = [parts[part] for part in get_close_matches(last, parts, n=1, cutoff=0.6)]
    near = near or get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {' or '.join(map(repr, near))}?" if near else ""


def read_run_config(run: str | Path) -> Any:
    """The `config.yaml` of a run folder, with current field names; an InputError if it is missing or not YAML."""
    path = Path(run) / "config.yaml"
    values = parse_yaml(read_text(path), run)
    former = isinstance(values, Mapping) and values.get("format_version") == FORMER
    return migrate_recipe(values, path) if former else values


def parse_recipe(recipe: str | Path, fields: Sequence[str] = ()) -> TrainConfig:
    """Create a training configuration from a recipe.

    Args:
        recipe: one of `recipe_names()`, a YAML file, or a data folder, on which the recipe `folder` is used.
        fields: command-line overrides, such as `["--model.mean_shift.layers", "2"]`.

    Raises:
        InputError: the recipe or a field is unknown (with the nearest valid name), or a value is invalid.
    """
    name, text, preset_fields = _find(str(recipe))
    values = parse_yaml(text, recipe)
    if not isinstance(values, Mapping):
        raise InputError(f"{recipe}: expected a mapping of fields, got {type(values).__name__}")
    values = spread_numbers(values)
    if values.get("format_version") == FORMER:
        values = migrate_recipe(values, recipe)
    if (version := values.pop("format_version", FORMAT_VERSION)) != FORMAT_VERSION:
        raise InputError(f"{recipe}: format_version {version}; this version of meanshifter reads {FORMAT_VERSION}")
    _refuse_unknown(_leaves(values), f"{recipe}: ")
    dashes = re.compile(r"^--[^=]+")  # in option names, where fields have underscores
    words = (dashes.sub(lambda option: _underscored(option[0]), field) for field in fields)
    given = join_tuples([*preset_fields, *words])
    _refuse_unknown(item[2:].split("=", 1)[0] for item in given if item.startswith("--"))
    _refuse_beside_init(given)
    values, given = _without_shorthands(values, given)
    values, given = _merge_blocks(values, given)
    config, wrong = _parse(values, given, str(recipe))
    if nulls := list(_nulls(config)):
        raise InputError(f"{recipe}: {', '.join(nulls)}: null; set a value, or leave the field out")
    config.out = f"runs/{name}" if config.out is None else config.out
    if wrong := [*config.violations(), *wrong]:
        raise InputError("; ".join(wrong))
    return config


def _refuse_beside_init(given: Sequence[str]) -> None:
    """Raise an InputError for fields that `init_from` replaces; a recipe may have them, the command line not."""
    options = [item[2:].split("=", 1)[0] for item in given if item.startswith("--")]
    if "model.init_from" not in options or _take(list(given), "model.init_from")[0] in (None, "null"):
        return
    own = tuple(f"model.{field.name}" for field in dataclasses.fields(ModelRecipe) if field.name not in KEPT)
    if wrong := [option for option in options if option.startswith(own)]:
        raise InputError(f"{wrong[0]}: conflicts with model.init_from, whose model has its own; leave one out")


def _underscored(option: str) -> str:
    """An option with underscores for dashes, except in names that are free, such as those of classes."""
    plain = "--" + option[2:].replace("-", "_")
    prefix = next((f"--{field}." for field in FREE_FORM if plain.startswith(f"--{field}.")), None)
    return plain if prefix is None else prefix + option[len(prefix) :]


def config_of(
    data: str | Path | Mapping[str, Any] | None, recipe: str | Path, fields: Mapping[str, Any]
) -> TrainConfig:
    """Create a training configuration from a recipe and the keywords of `train`.

    Args:
        data: the dataset folder, or a mapping of fields of the section `data`; None: as in the recipe and `fields`.
        recipe: as in `parse_recipe`.
        fields: overrides: `{"steps": 10, "optimizer": {"lr": 0.1}, "model.preset": "segmenter-s16"}`.

    Raises:
        InputError: as `parse_recipe`.
    """
    sections = TrainConfig()
    if isinstance(data, Mapping):
        data, fields = None, {"data": data, **fields}
    if isinstance(data, str) and data in recipe_names() and not Path(data).exists():
        raise InputError(f"data: {data!r} is a recipe, not a folder; use ms.train(DIR, recipe={data!r})")
    words = [] if data is None else ["--data.root", str(data)]
    for name, value in fields.items():
        section = isinstance(value, Mapping) and dataclasses.is_dataclass(getattr(sections, name, None))
        inner = value.items() if section else [(None, value)]
        for key, part in inner:
            plain = str(part) if isinstance(part, Path) else part
            words += [
                f"--{name}" if key is None else f"--{name}.{key}",
                json.dumps(plain) if not isinstance(plain, str) else plain,
            ]
    return parse_recipe(recipe, words)


@cache
def _parser(fields: type) -> ArgumentParser:
    """Every field of a dataclass as an option."""
    built = ArgumentParser(prog="meanshifter train RECIPE", exit_on_error=False, add_help=False)
    built.add_class_arguments(fields)
    return built


def _without_shorthands(values: dict[str, Any], given: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Expand `size` in the values and the command line, and let `steps` of the command line replace `minutes`."""
    minutes, steps = _take(given, "minutes")[0], _take(given, "steps")[0]
    if minutes not in (None, "null") and steps is not None:
        raise InputError(f"minutes: {minutes} conflicts with steps {steps}; give one of them")
    if steps is not None:
        values.pop("minutes", None)
    if (size := values.pop(SIZE, None)) is not None:
        values = with_size(values, size, wins=False)
    size, given = _take(given, SIZE)
    return (values if size in (None, "null") else with_size(values, size, wins=True)), given


def _merge_blocks(values: dict[str, Any], given: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Move the blocks of the command line into the values, since jsonargparse cannot merge fields into a dataclass.

    Fields of the command line override the recipe's block, which overrides the preset's.
    """
    model = values.get("model")
    model = dict(model) if isinstance(model, Mapping) else {}
    asked = _take(given, "model.preset")[0]
    preset = str(model.get("preset") if asked is None else asked)
    family = preset.rpartition("-")[0].removesuffix("-mask")
    for name in BLOCKS:
        words, given = _take_block(given, f"model.{name}")
        block = _overridden(model.get(name), words, f"--model.{name}")
        if words:
            model[name] = block
        if name == "mean_shift" and isinstance(block, Mapping) and family in SHIFTS:
            model[name] = {**dataclasses.asdict(SHIFTS[family]), **block}
        if name == "token_merging" and isinstance(block, Mapping) and preset in PRESETS:
            merging = parse_preset(preset).token_merging
            model[name] = {**({} if merging is None else dataclasses.asdict(merging)), **block}
    words, given = _take_block(given, "lora")
    lora = _overridden(values.get("lora"), words, "--lora")
    values = {**values, "lora": lora} if words else values
    return {**values, "model": model} if model else values, given


def _overridden(block: Any, words: Sequence[tuple[str | None, str]], source: str) -> Any:
    """A block with the values of the command line: complete blocks (None), or fields, which are added."""
    for field, text in words:
        value = parse_yaml(text, source)
        block = value if field is None else {**(block if isinstance(block, Mapping) else {}), field: value}
    return block


def _take_block(given: list[str], name: str) -> tuple[list[tuple[str | None, str]], list[str]]:
    """The values of a block and its fields on the command line (None: the complete block), and the other words."""
    taken: list[tuple[str | None, str]] = []
    left, place = [], 0
    while place < len(given):
        word, place = given[place], place + 1
        option, equals, text = word.partition("=")
        if option != f"--{name}" and not option.startswith(f"--{name}."):
            left.append(word)
            continue
        if not equals:
            if place == len(given):
                raise InputError(f"{option}: no value; give one after it")
            text, place = given[place], place + 1
        taken.append((option[len(name) + 3 :] or None, text))
    return taken, left


def _take(given: list[str], name: str) -> tuple[str | None, list[str]]:
    """The last value of a field on the command line, and the other words."""
    taken, left = _take_block(given, name)
    return (taken[-1][1] if taken else None), left


def _parse(values: Mapping[str, Any], fields: Sequence[str], source: str) -> tuple[TrainConfig, list[str]]:
    """The configuration without invalid blocks, and the messages about those."""
    options = _parser(TrainConfig)
    try:
        base = options.parse_object(_with_blocks(values), defaults=True)
        parsed = options.parse_args(list(fields), namespace=base)
        wrong = _drop_wrong_blocks(parsed.model)
        return TrainConfig(**vars(options.instantiate(parsed))), wrong
    except (ArgumentError, TypeError, ValueError) as error:
        message = _of_parser(error)
        name = message.partition(":")[0]
        prefix = "" if any(word.partition("=")[0] == f"--{name}" for word in fields) else f"{source}: "
        raise InputError(prefix + message) from error


def _of_parser(error: Exception) -> str:
    """jsonargparse's error in one line: the field, the value, and what is expected in place of types of Python."""
    found = re.fullmatch(r'Parser key "(?P<key>.+?)":\s+(?P<rest>.*)', str(error), re.S)
    if found is None:
        return summarize_error(error)
    single = re.fullmatch(r"Expected an? (?P<kind>.+)\. Got value: (?P<value>.*)", found["rest"], re.S)
    several = re.search(r"Subtypes: \[(?P<kind>.*?)\]\n.*Given value: (?P<value>.*)", found["rest"], re.S)
    stated = single or several
    if stated is None:
        return f"{found['key']}: {summarize_error(Exception(found['rest']))}"
    return f"{found['key']}: {stated['value']!r:.80} is not {_kinds(stated['kind'])}"


def _kinds(stated: str) -> str:
    choices = re.findall(r"Literal\[(.*?)\]", stated + "]")
    several = [len(part.split(",")) for part in re.findall(r"\btuple\[([^\]]*)\]", stated)]
    names = re.findall(r"<class '(.*?)'>|\b(list|dict)\[", stated)
    kinds = [f"{count} numbers" for count in several]
    kinds += [KINDS.get(name.rpartition(".")[2], name) for name in map("".join, names)]
    if choices or len(kinds) > 1:
        kinds = [kind.partition(",")[0] for kind in kinds]  # without an example
    return " or ".join([f"one of {part.replace(chr(39), '')}" for part in choices] + kinds) or stated


def _with_blocks(values: Mapping[str, Any]) -> dict[str, Any]:
    """Parse the values of blocks on their own, since jsonargparse names no field within an optional dataclass."""
    found = dict(values)
    if "lora" in found:
        found["lora"] = _parsed_block("lora", found["lora"], LoraConfig)
    if not isinstance(found.get("model"), Mapping):
        return found
    found["model"] = dict(found["model"])
    for name, block in BLOCKS.items():
        if name in found["model"]:
            found["model"][name] = _parsed_block(f"model.{name}", found["model"][name], block)
    return found


def _parsed_block(name: str, given: Any, block: type) -> Any:
    """The values of a block, with defaults; what is no mapping is returned as it is."""
    if not isinstance(given, Mapping):
        return given
    try:
        return _parser(block).parse_object(dict(given), defaults=True).as_dict()
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(f"{name}.{_of_parser(error)}") from error


def _drop_wrong_blocks(model: Namespace) -> list[str]:
    """Remove blocks with invalid fields, so that the other fields can be checked as well."""
    wrong = []
    for name, block in BLOCKS.items():
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
        return recipe, recipe_text(recipe), []
    if path.is_dir():
        return path.resolve().name, recipe_text("folder"), ["--data.root", str(path)]
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path.stem, read_text(path, LARGEST_YAML), []
    hint = did_you_mean(recipe, recipe_names(), f"recipes are {', '.join(recipe_names())}")
    raise InputError(f"{recipe}: no such folder, YAML file or recipe; {hint}")


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and name not in FREE_FORM:
            yield from _leaves(value, f"{name}.")
        else:
            yield name


def _refuse_unknown(names: Iterator[str], prefix: str = "") -> None:
    known = {SIZE, *field_names(TrainConfig)}
    free = tuple(f"{field}." for field in FREE_FORM)
    wrong = [name for name in names if name not in known and not name.startswith(free)]
    if wrong:
        hints = [f"unknown field {name!r}{nearest(name)}" for name in wrong]
        raise InputError(f"{prefix}{'; '.join(hints)}")


def _nulls(config: Any, prefix: str = "") -> Iterator[str]:
    """Fields that are null but must have a value, which the parser accepts."""
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is None and type(None) not in members(hints[field.name]):
            yield f"{prefix}{field.name}"
        elif dataclasses.is_dataclass(value):
            yield from _nulls(value, f"{prefix}{field.name}.")
