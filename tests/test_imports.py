"""The rooms of the package import in one direction, and no two modules import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import meanshifter

ROOT = Path(meanshifter.__file__).parent
ORDER = (
    *("errors", "utils", "data", "ops", "model", "inference"),
    *("export", "checkpoints", "evaluation", "training", "jobs", "analysis", "app", "cli"),
)
"""Rooms from the bottom up; each imports itself and those before it."""
SEAMS = {
    ("inference.resolve", "checkpoints.load"),  # names where a model is expected, Predictor("runs/x"),
    ("inference.resolve", "checkpoints.compat"),  # of tools where a Preprocess is,
    ("inference.resolve", "export.engines"),  # and of engines
    ("inference.protocol", "evaluation.result"),  # what a model evaluates to
    ("model.segmenter", "model.saving"),  # methods of a model that call what is above it: save, from_pretrained,
    ("model.segmenter", "model.hub"),  # save_pretrained and push_to_hub,
    ("model.segmenter", "inference.predictor"),  # predict,
    ("model.segmenter", "inference.segmentation"),
    ("model.segmenter", "evaluation.evaluate"),  # evaluate,
    ("model.segmenter", "evaluation.result"),
    ("model.segmenter", "export.export"),  # and export
}
"""Two conveniences that point up, from within functions or for types."""


def modules() -> dict[str, ast.Module]:
    found = {}
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text("utf-8"))
    return found


TREES = modules()


def imports(name: str) -> Iterator[tuple[str, bool]]:
    """Modules of the package that a module imports, and whether not when it is itself imported."""
    inner = {id(node) for part in lazy_parts(TREES[name]) for node in ast.walk(part)}
    for node in ast.walk(TREES[name]):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("meanshifter."):
            continue
        module = str(node.module).removeprefix("meanshifter.")
        for alias in node.names:
            deeper = f"{module}.{alias.name}"
            yield deeper if deeper in TREES else module, id(node) in inner


def lazy_parts(tree: ast.Module) -> Iterator[ast.AST]:
    """Functions, and what is for type checkers only."""
    for node in ast.walk(tree):
        types = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        if types or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_rooms_import_what_is_below_them() -> None:
    rank = {room: place for place, room in enumerate(ORDER)}
    wrong = [
        f"{name} imports {target}"
        for name in TREES
        if name not in ("__init__", "__main__")
        for target, inner in imports(name)
        if rank[target.partition(".")[0]] > rank[name.partition(".")[0]] and not (inner and (name, target) in SEAMS)
    ]
    assert not wrong


def test_no_modules_import_each_other() -> None:
    """Not even from within functions, or for types alone."""
    below = {name: {target for target, _ in imports(name) if (name, target) not in SEAMS} - {name} for name in TREES}
    while leaves := [name for name, targets in below.items() if not targets]:
        below = {name: targets - set(leaves) for name, targets in below.items() if name not in leaves}
    assert not below


def test_the_seams_are_there() -> None:
    assert {(name, target) for name, target in SEAMS if (target, True) in imports(name)} == SEAMS
