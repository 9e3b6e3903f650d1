"""The site of docs/: what is generated is complete, every page can be reached, and faults of a built page are found."""

from __future__ import annotations

import argparse
import re
from importlib import import_module
from pathlib import Path

import pytest
import yaml

import meanshifter as ms
from meanshifter.cli.main import COMMANDS
from meanshifter.model.presets import PRESETS
from meanshifter.training.config import TrainConfig
from meanshifter.training.fields import describe_fields, field_names
from tests.documented import ROOT

pytest.importorskip("markdown")

from docs import build, drawings, generated


def rows(table: str) -> list[str]:
    """The first cells of the tables of a text."""
    return re.findall(r"^\| `([^`]+)`", table, re.M)


def test_every_option_of_every_command_is_in_the_reference() -> None:
    text = generated.options()
    for name in COMMANDS:
        section = text.split(f"## meanshifter {name}\n")[1].split("\n## ")[0]
        parser = argparse.ArgumentParser()
        import_module(f"meanshifter.cli.{name}").configure(parser)
        listed = {word.strip(",") for row in rows(section) for word in row.split() if word.startswith("-")}
        assert listed == options_of(parser) - {"-h", "--help"}, name


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    found: set[str] = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found |= {name for choice in action.choices.values() for name in options_of(choice)}
    return found


def test_every_field_of_a_recipe_is_in_the_reference_once_with_its_meaning_and_default() -> None:
    text = generated.fields()
    listed = rows(text)
    assert sorted(listed) == sorted(entry.name for entry in describe_fields())
    sections = {"data", "model", "augment", "loss", "optimizer", "evaluation"}
    assert set(field_names(TrainConfig)) - set(listed) == sections
    assert "| `optimizer.lr`<br>float, `0.001` |" in text
    assert all(entry.meaning for entry in describe_fields())


def test_every_preset_and_recipe_is_in_the_reference() -> None:
    assert rows(generated.presets()) == list(PRESETS)
    files = sorted(path.stem for path in (ROOT / "src/meanshifter/recipes").glob("*.yaml"))
    assert re.findall(r"^## (.*)$", generated.recipes(), re.M) == files


def test_help_texts_are_no_markup() -> None:
    assert generated._escape("a DIR_NAME, [x] of `a|b` or *") == r"a DIR\_NAME, \[x\] of `a\|b` or \*"


def test_markers_name_parts_and_every_page_is_in_the_navigation() -> None:
    assert list(build.not_in_navigation(ROOT)) == []
    for page in (ROOT / "docs").rglob("*.md"):
        for marker in generated.MARKER.finditer(page.read_text("utf-8")):
            assert marker[1] in generated.PARTS, page
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2])
    assert [name for name in listed if not (ROOT / "docs" / name).exists()] == []


def test_names_of_the_python_reference_exist() -> None:
    page = (ROOT / "docs/reference/python.md").read_text("utf-8")
    for name in re.findall(r"^::: ([\w.]+)$", page, re.M):
        module, _, last = name.rpartition(".")
        assert hasattr(import_module(module), last), name


def test_a_page_that_misses_a_file_or_loads_one_from_elsewhere_is_reported(tmp_path: Path) -> None:
    (tmp_path / "there.svg").touch()
    (tmp_path / "style.css").write_text("@import '//cdn.example/a.css'; p { background: url(there.svg) }")
    (tmp_path / "page.html").write_text(
        '<a href="https://example.org/paper">paper</a><a href="#part">part</a><img src="there.svg">'
        '<img src="lost.svg"><a href="gone.html#part">gone</a><script src="https://cdn.example/a.js"></script>'
    )
    pattern = r"(\w+\.\w+): .*?([\w.]+\.(?:svg|html|js|css))\b"
    assert [re.findall(pattern, fault)[0] for fault in build.faults_of(tmp_path)] == [
        ("page.html", "lost.svg"),
        ("page.html", "gone.html"),
        ("page.html", "a.js"),
        ("style.css", "a.css"),
    ]


def test_drawings_are_those_of_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawings, "FOLDER", tmp_path)
    drawings.main()
    for path in tmp_path.iterdir():
        numbers = [
            [float(number) for number in re.findall(r"-?\d+\.?\d*", text)]
            for text in (path.read_text("utf-8"), (ROOT / "docs/images" / path.name).read_text("utf-8"))
        ]
        assert numbers[0] == pytest.approx(numbers[1], abs=0.2)


def test_citation_and_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert (citation["version"], citation["cff-version"]) == (ms.__version__, "1.2.0")
    assert ms.__version__ in (ROOT / "CHANGELOG.md").read_text("utf-8")
    for page in (ROOT / ".github").rglob("*.yml"):
        assert yaml.safe_load(page.read_text("utf-8")), page


def test_the_public_workflow_does_what_ci_does() -> None:
    own = (ROOT / ".ci/run").read_text("utf-8")
    public = (ROOT / ".github/workflows/ci.yml").read_text("utf-8")
    for command in ("ruff check .", "ruff format --check .", "mypy", "python docs/build.py"):
        assert f"\n{command}\n" in own
        assert f"run: {command}\n" in public
