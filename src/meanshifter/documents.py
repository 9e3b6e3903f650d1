"""Text, YAML and JSON that somebody else wrote: of a sane size, plain values only, and every fault told in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from meanshifter.errors import InputError
from meanshifter.files import require_file

if TYPE_CHECKING:
    from yaml import Node, SafeLoader

LARGEST_YAML: Final = 256 * 1024
"""Bytes; recipes have 1 or 2 thousand, and the parser takes a second for half a million."""
LARGEST: Final = 10_000_000
"""Bytes of JSON and of lists."""
LARGEST_EXPANSION: Final = 100_000
"""Values of a YAML file once every alias is written out."""


def read_text(path: str | Path, largest: int = LARGEST) -> str:
    """What a file of UTF-8 says, without a byte order mark.

    Raises:
        InputError: it is missing, no regular file, larger than `largest` bytes or no text.
    """
    path = Path(path)
    require_file(path)
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if len(content) > largest:
        raise InputError(f"{path}: more than {largest:,} bytes, which no such file has; give the right one")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: no UTF-8 text ({error.reason} at byte {error.start}); save it as such") from error


def parse_json(text: str, source: object) -> Any:
    """The values in `text`; `source` is named in messages.

    Raises:
        InputError: no JSON, or nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{source}: no JSON that can be read (nested too deeply)") from error
    except ValueError as error:  # of numbers with thousands of digits too
        raise InputError(f"{source}: no JSON ({_one_line(error)}); copy or write it again") from error


def dump_json(value: Any, *, indent: int | None = None, ensure_ascii: bool = True) -> str:
    """`value` as JSON for strict parsers: numbers that are not finite, of which JSON has none, become null."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ensure_ascii, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def parse_yaml(text: str, source: object, loader: type[SafeLoader] | None = None) -> Any:
    """The plain values in `text`; tags that would construct anything else are refused.

    Raises:
        InputError: no such YAML, more than `LARGEST_YAML` of it, nested too deeply, or aliases that explode.
    """
    import yaml

    if len(text) > LARGEST_YAML:
        raise InputError(f"{source}: more than {LARGEST_YAML:,} characters, which no such file has")
    try:
        reader = (loader or yaml.SafeLoader)(text)
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _expansion(node, {}, source)
            return reader.construct_document(node)
        finally:
            reader.dispose()
    except InputError:
        raise
    except RecursionError as error:
        raise InputError(f"{source}: not YAML that can be read (nested too deeply)") from error
    except Exception as error:  # besides its own errors, PyYAML raises whatever int, datetime or a dict do
        raise InputError(f"{source}: not YAML of plain values ({_one_line(error)}); correct it") from error


def _expansion(node: Node, known: dict[int, int], source: object) -> int:
    """How many values the node stands for once every alias is written out; a loop counts as endless."""
    from yaml import CollectionNode

    if not isinstance(node, CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = LARGEST_EXPANSION  # while it is in work: met again, it holds itself
        parts = [part for entry in node.value for part in (entry if isinstance(entry, tuple) else (entry,))]
        known[id(node)] = 1 + sum(_expansion(part, known, source) for part in parts)
        if known[id(node)] > LARGEST_EXPANSION:
            raise InputError(
                f"{source}: its aliases stand for more than {LARGEST_EXPANSION:,} values, or for themselves; write the "
                "values out"
            )
    return known[id(node)]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
