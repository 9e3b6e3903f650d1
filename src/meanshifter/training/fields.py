"""The fields of a configuration: their names, types and meanings, and the tuples among them."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from docstring_parser import parse_from_object

from meanshifter.training.config import TrainConfig

SIZE: Final = "size"


SIZE_HELP: Final = (
    "Image size S in pixels for training and evaluation; sets augment.crop S S, augment.resize_base 4·S S, "
    "model.image_size null (the crop), evaluation.window S, window_stride 15/16·S, short_side S, long_side 4·S. Fields "
    "that the recipe sets to null stay null, and each field can be overridden; config.yaml records the result."
)


def _fields(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any], type]]:
    """Dotted name, type, field and class of each field of a dataclass, followed by those of nested dataclasses."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield f"{prefix}{field.name}", hints[field.name], field, cls
        for member in members(hints[field.name]):
            if dataclasses.is_dataclass(member):
                yield from _fields(typing.cast(type, member), f"{prefix}{field.name}.")


def field_names(cls: type) -> Iterator[str]:
    """Dotted names of the fields of a dataclass, including those of nested dataclasses."""
    return (name for name, *_ in _fields(cls))


class FieldHelp(NamedTuple):
    """What there is to say about one field of a recipe."""

    name: str
    meaning: str
    kind: str
    default: str


def describe_fields() -> Iterator[FieldHelp]:
    """Name, meaning, type and default of each field of a recipe, as spelled in YAML and on the command line."""
    yield FieldHelp(SIZE, SIZE_HELP, "int | null", "null")
    for name, hint, field, owner in _fields(TrainConfig):
        if dataclasses.is_dataclass(hint):
            continue  # a section
        default = field.default
        if default is dataclasses.MISSING:
            default = field.default_factory() if field.default_factory in (dict, list) else None
        shown = str(list(default) if isinstance(default, tuple) else default)
        shown = {"None": "null", "True": "true", "False": "false"}.get(shown, shown)
        yield FieldHelp(name, _meanings(owner).get(field.name, ""), _spelled_type(hint), shown)


def field_help() -> str:
    """One line per field of a recipe, with its meaning, type and default."""
    entries = list(describe_fields())
    width = max(len(name) for name, *_ in entries)
    return "\n".join(f"--{name:<{width}}  {text} ({kind}; default {default})" for name, text, kind, default in entries)


@cache
def _meanings(cls: type) -> dict[str, str]:
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in parse_from_object(cls).params}


def _spelled_type(hint: Any) -> str:
    if len(members(hint)) > 1:
        return " | ".join(_spelled_type(member) for member in members(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return ", ".join(_spelled_type(member) for member in typing.get_args(hint))
    if hint is type(None):
        return "null"
    return str(getattr(typing.get_origin(hint) or hint, "__name__", hint))


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # the latter for Literal[…] | None
    return typing.get_args(hint) if union else (hint,)


def tuples() -> dict[str, tuple[int, bool]]:
    """Fields that are tuples: their length, and whether a single number stands for all elements (sizes)."""
    found = {}
    for name, hint, *_ in _fields(TrainConfig):
        for member in members(hint):
            if typing.get_origin(member) is tuple:
                parts = typing.get_args(member)
                found[name] = (len(parts), set(parts) == {int})
    return found


def join_tuples(items: Sequence[str]) -> list[str]:
    """The command line with tuples such as `--augment.crop 256 256` or `256` joined to `--augment.crop=[256, 256]`."""
    known, joined, place = tuples(), [], 0
    while place < len(items):
        word = items[place]
        name, equals, value = word.removeprefix("--").partition("=")
        place += 1
        if not word.startswith("--") or name not in known:
            joined.append(word)
            continue
        values = [value] if equals else []
        while not equals and place < len(items) and not items[place].startswith("--"):
            values.append(items[place])
            place += 1
        joined.append(f"--{name}={_as_list(values, *known[name])}" if values else word)
    return joined


def _as_list(values: list[str], count: int, alike: bool) -> str:
    text = " ".join(values).strip()
    if text in ("null", "None") or text.startswith("["):
        return text
    numbers = re.split(r"[\s,]+", text.removeprefix("(").removesuffix(")").strip())
    return f"[{', '.join(numbers * count if alike and len(numbers) == 1 else numbers)}]"


def spread_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a recipe file, with single numbers repeated where a size has several elements."""
    known = tuples()
    spread: dict[str, Any] = {}
    for key, value in values.items():
        count, alike = known.get(f"{prefix}{key}", (1, False))
        if isinstance(value, Mapping):
            spread[key] = spread_numbers(value, f"{prefix}{key}.")
        else:
            spread[key] = [value] * count if alike and type(value) is int else value
    return spread
