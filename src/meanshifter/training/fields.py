"""Fields of a recipe as a person writes them: sizes that belong together, pairs of numbers, names nearly right."""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Final

from docstring_parser import parse_from_object

from meanshifter.errors import InputError
from meanshifter.training.recipe import TrainConfig

SIZE: Final = "size"
SIZE_HELP: Final = (
    "Side in pixels of all that belongs together: augment.crop S S, augment.base 4·S S, model.image_size null (the "
    "crop), evaluation.window S, stride 15/16·S, short_side S, long_side 4·S. What the recipe sets to null stays null, "
    "and each can still be given beside it; config.yaml has what follows from it."
)


def field_names(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted names of the fields of a dataclass and of the dataclasses in it."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        yield f"{prefix}{field.name}"
        for inner in members(hints[field.name]):
            if dataclasses.is_dataclass(inner):
                yield from field_names(typing.cast(type, inner), f"{prefix}{field.name}.")


def field_help() -> str:
    """Every field of a recipe with type, default and meaning, one after the other, those of blocks included."""
    entries = [(SIZE, "int | null", "null", SIZE_HELP), *_described(TrainConfig)]
    width = max(len(name) for name, *_ in entries)
    return "\n".join(
        f"--{name:<{width}}  {meaning} ({kind}; default {default})" for name, kind, default, meaning in entries if kind
    )


def _described(cls: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Name, type, default and meaning of each field; a group of fields has no type."""
    hints = typing.get_type_hints(cls)
    meanings = {entry.arg_name: " ".join((entry.description or "").split()) for entry in parse_from_object(cls).params}
    for field in dataclasses.fields(cls):
        hint, default = hints[field.name], field.default
        inner = [member for member in members(hint) if dataclasses.is_dataclass(member)]
        kind = "" if inner and len(members(hint)) == 1 else _spelt_type(hint)
        if default is dataclasses.MISSING:
            default = {} if field.default_factory is dict else None
        shown = "null" if default is None else str(list(default) if isinstance(default, tuple) else default)
        yield f"{prefix}{field.name}", kind, shown, meanings.get(field.name, "")
        for part in inner:
            yield from _described(typing.cast(type, part), f"{prefix}{field.name}.")


def _spelt_type(hint: Any) -> str:
    if len(members(hint)) > 1:
        return " | ".join(_spelt_type(member) for member in members(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    if typing.get_origin(hint) is tuple:
        return ", ".join(_spelt_type(member) for member in typing.get_args(hint))
    if hint is type(None):
        return "null"
    return str(getattr(typing.get_origin(hint) or hint, "__name__", hint))


def members(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one."""
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)  # the latter of Literal[…] | None
    return typing.get_args(hint) if union else (hint,)


def tuples(cls: type = TrainConfig, prefix: str = "") -> dict[str, tuple[int, bool]]:
    """The fields that are tuples: how many numbers they have, and whether one number stands for all (sizes)."""
    found = {}
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        for member in members(hints[field.name]):
            if typing.get_origin(member) is tuple:
                parts = typing.get_args(member)
                found[f"{prefix}{field.name}"] = (len(parts), set(parts) == {int})
            elif dataclasses.is_dataclass(member):
                found |= tuples(typing.cast(type, member), f"{prefix}{field.name}.")
    return found


def join_tuples(items: Sequence[str]) -> list[str]:
    """Command-line words, with `--augment.crop 256 256` and `--augment.crop 256` as `--augment.crop=[256, 256]`."""
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
    """The values of a recipe file, with one number for a size of several as that often."""
    known = tuples()
    spread: dict[str, Any] = {}
    for key, value in values.items():
        count, alike = known.get(f"{prefix}{key}", (1, False))
        if isinstance(value, Mapping):
            spread[key] = spread_numbers(value, f"{prefix}{key}.")
        else:
            spread[key] = [value] * count if alike and type(value) is int else value
    return spread


def with_size(values: Mapping[str, Any], size: Any, *, wins: bool) -> dict[str, Any]:
    """The values of a recipe with what follows from `size`.

    Args:
        values: nested, as a recipe file has them.
        size: a side in pixels.
        wins: over what the recipe has, but for null; else the recipe wins.

    Raises:
        InputError: no whole number of at least 1.
    """
    try:
        side = int(size) if isinstance(size, str) else size
    except ValueError:
        side = None
    if type(side) is not int or side < 1:
        raise InputError(f"size: {size!r} is not a number of pixels of at least 1, such as 256")
    following: dict[str, dict[str, Any]] = {
        "augment": {"crop": [side, side], "base": [4 * side, side]},
        "evaluation": {"window": side, "stride": max(side * 15 // 16, 1), "short_side": side, "long_side": 4 * side},
    }
    if (values.get("evaluation") or {}).get(
        "window", side
    ) is not None:  # else the whole images have a size of their own
        following["model"] = {"image_size": None}
    out = dict(values)
    for group, fields in following.items():
        own = out.get(group)
        if own is not None and not isinstance(own, Mapping):
            continue  # which is refused with the other fields
        own = dict(own or {})
        given = {name for name, value in own.items() if value is None or not wins}
        out[group] = {**own, **{name: value for name, value in fields.items() if name not in given}}
    return out


def nearest(name: str) -> str:
    """A question that names the fields that may be meant, or nothing: those of the same last part come first."""
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
