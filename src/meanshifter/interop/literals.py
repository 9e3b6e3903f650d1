"""The values that an MMEngine configuration states, read from its text without running it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any


def read_config(text: str) -> dict[str, Any]:
    """Top-level assignments of Python text: literals and `dict(…)`, and names that were assigned before.

    What is anything else (a call, an import, an expression) is left out, and so is text that is no Python.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    known: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            try:
                known[node.targets[0].id] = _value(node.value, known)
            except (ValueError, TypeError, RecursionError):
                continue
    return known


def look_up(config: Mapping[str, Any], *keys: str) -> Any:
    """`config[keys[0]][keys[1]]…`, or None where the way ends."""
    found: Any = config
    for key in keys:
        if not isinstance(found, Mapping) or key not in found:
            return None
        found = found[key]
    return found


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {word.arg: _tolerant(word.value, known) for word in node.keywords if word.arg is not None}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {_value(key, known): _tolerant(value, known) for key, value in pairs if key is not None}
    if isinstance(node, ast.List | ast.Tuple):
        return [_tolerant(entry, known) for entry in node.elts]
    return ast.literal_eval(node)


def _tolerant(node: ast.expr, known: Mapping[str, Any]) -> Any:
    """A value within another: None where it is no literal, so that its neighbours are read all the same."""
    try:
        return _value(node, known)
    except (ValueError, TypeError):
        return None
