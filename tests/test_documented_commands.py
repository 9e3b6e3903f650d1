"""Every command and all Python that README and docs print: it runs, or the real parser takes it."""

from __future__ import annotations

import argparse
import ast
import inspect
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import torch

import meanshifter as ms
from meanshifter.analysis.study_plan import load_plan
from meanshifter.checkpoints.load import PUBLISHED
from meanshifter.cli.main import COMMANDS
from meanshifter.training.config import TrainConfig
from meanshifter.training.fields import field_names
from meanshifter.training.parsing import parse_recipe
from tests import documented
from tests.documented import PAGES, QUICK, ROOT, Command, Workshop, parsed, run

SHORTER = {
    "evaluate": ("--limit", "2"),
    "compare": ("--limit", "2", "--num-images", "1", "--mean-shift-layers", "0", "1"),
    "train": ("--print-config",),
    "modes": ("--layers", "2"),
}
"""What is added so that a command takes less than a second or two."""
RUN = {"evaluate", "compare", "train", "modes", "predict", "convert", "models", "data"}
"""Commands that are run; the others would train, time or export for long."""
FOREIGN = {"--shm-size"}
"""Options of other programs."""


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("documented"))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def of(*programs: str) -> list[Command]:
    return [command for command in documented.commands() if command.words[0] in programs]


def is_local(words: tuple[str, ...]) -> bool:
    """Whether the command needs no network, no cluster and no other process."""
    foreign = {"--backend", "--devices", "download", "push", *PUBLISHED}
    return not foreign & set(words) and not any("://" in word for word in words)


def test_the_pages_have_commands_and_python() -> None:
    assert len(documented.commands()) > 80
    assert len(documented.python_blocks()) >= 3


@pytest.mark.parametrize("command", of("meanshifter"), ids=str)
def test_a_command_runs_or_is_parsed(command: Command, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    check(command.words[1:], command.whole, workshop, monkeypatch)


def check(words: tuple[str, ...], whole: bool, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    name = words[0]
    for place in {"DIR", "scenes", "large"} & set(words if name == "train" else ()):
        workshop.data(place)
    if name == "train" and "RUN/config.yaml" in words:
        workshop.model("RUN")
    args = parsed(words, monkeypatch, whole=whole)
    if name == "train":
        parse_recipe("camvid_ti16" if args.recipe is None else args.recipe, args.fields)
    if name == "study":
        packaged = args.study is not None and not args.study.endswith(".yaml")
        parse_recipe(load_plan(args.study).recipe if packaged else "camvid_half", args.fields)
    if whole and name in RUN and is_local(words) and "--engine" not in words:  # which exports
        workshop.prepare(name, args)
        quick = "--list" in words or "--list-options" in words
        status, said = run([*words, *(() if quick or "--predictions" in words else SHORTER.get(name, ()))])
        assert status == 0, said


@pytest.mark.parametrize("words", [("models",), ("data", "list")], ids=" ".join)
def test_the_command_is_a_program(words: tuple[str, ...]) -> None:
    assert any(command.words[1:] == words for command in of("meanshifter"))
    program = [sys.executable, "-m", "meanshifter", *words]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", of("torchrun", "srun"), ids=str)
def test_a_launcher_starts_a_command(command: Command, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.distributed.run import get_args_parser

    start = command.words.index("meanshifter")
    if command.words[0] == "torchrun":
        given = get_args_parser().parse_args(command.words[1:])
        assert (given.no_python, given.training_script) == (True, "meanshifter")
    check(command.words[start + 1 :], command.whole, workshop, monkeypatch)


@pytest.mark.parametrize("command", of("python", "python3"), ids=str)
def test_a_script_is_there_and_takes_its_arguments(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    script, *words = command.words[1:]
    if script == "-m":
        assert find_spec(words[0]) is not None
        if words[0] == "pip":
            check_pip(words[1:])
        return
    parse_script(ROOT / script, words, monkeypatch)


class Parsed(BaseException):
    """Ends a script once it has taken its arguments."""


def parse_script(path: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = path.read_text("utf-8")
    if "argparse" not in text:
        assert not words, f"{path.name} takes no arguments"
        compile(text, path, "exec")
        return
    parse: Callable[..., Any] = argparse.ArgumentParser.parse_known_args

    def stop(self: argparse.ArgumentParser, *given: Any, **named: Any) -> Any:
        assert parse(self, *given, **named)[1] == []
        raise Parsed

    def stop_before_fields(self: argparse.ArgumentParser, *given: Any, **named: Any) -> Any:
        rest = parse(self, *given, **named)[1]
        assert {word.removeprefix("--") for word in rest if word.startswith("--")} <= set(field_names(TrainConfig))
        raise Parsed

    with monkeypatch.context() as here:
        here.setattr(argparse.ArgumentParser, "parse_args", stop)
        here.setattr(argparse.ArgumentParser, "parse_known_args", stop_before_fields)
        here.setattr(sys, "argv", [str(path), *words])
        here.syspath_prepend(path.parent)
        with pytest.raises(Parsed):
            runpy.run_path(str(path), run_name="__main__")


@pytest.mark.parametrize("command", of("pip"), ids=str)
def test_what_pip_is_asked_for_is_there(command: Command) -> None:
    check_pip(list(command.words[1:]))


def check_pip(words: list[str]) -> None:
    """An extra of this package is one; the package itself comes from a clone, for it is on no index."""
    assert words[0] == "install"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for target in words[1:]:
        name, _, named = target.partition("[")
        assert name in (".", "meanshifter") or not named, target
        assert name != "meanshifter" or named, "no index has it"
        assert set(filter(None, named.removesuffix("]").split(","))) <= set(extras)


def test_options_in_running_text_exist() -> None:
    known = {*FOREIGN, "--debug", "--size", *(f"--{name}" for name in field_names(TrainConfig))}
    for name in COMMANDS:
        known |= options(f"meanshifter.cli.{name}")
    for script in (ROOT / "benchmarks").rglob("*.py"):
        known |= set(re.findall(r'add_argument\(\s*"(--[\w-]+)"', script.read_text("utf-8")))
    wrong = {
        f"{page.name}: {option}"
        for page in PAGES
        for text in documented.inline(page)
        for option in re.findall(r"(?:^|\s)(--[A-Za-z][\w.-]*)", text)
        if text.startswith("-") and option not in known and not is_placeholder(option, known)
    }
    assert not wrong


def test_fields_in_running_text_exist(workshop: Workshop) -> None:
    """Of recipes, or of the Python object where `model.` is that."""
    fields, model = set(field_names(TrainConfig)), ms.load_model(workshop.store / "run")
    groups = {name.split(".")[0] for name in fields if "." in name}
    dotted = re.compile(rf"({'|'.join(groups)})(\.[a-z]\w*)+")
    files = (".json", ".safetensors", ".onnx", ".xml", ".bin", ".pt2", ".pth", ".py")
    for page in PAGES:
        for text in documented.inline(page):
            if dotted.fullmatch(text) and not text.endswith(files) and text not in fields:
                assert text.startswith("model."), f"{page.name}: {text} is no field"
                attrgetter(text.removeprefix("model."))(model)


def is_placeholder(option: str, known: set[str]) -> bool:
    """Whether it stands for several, as --model.mean_shift.NAME does."""
    group, _, last = option.rpartition(".")
    return last.isupper() and any(name.startswith(f"{group}.") for name in known)


def options(module: str) -> set[str]:
    parsers = [argparse.ArgumentParser()]
    import_module(module).configure(parsers[0])
    found: set[str] = set()
    for parser in parsers:
        for action in parser._actions:
            found |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return found


LOADS = re.compile(r"load_model|parts_of")
"""Calls whose texts are names of models."""
TUTORIALS = tuple(page.name for page in PAGES if page.parent.name == "tutorials")
OWN_TEST = ("loops.md", *TUTORIALS)  # tests/test_examples.py, tests/test_tutorials.py


@pytest.mark.parametrize(
    ("place", "text"),
    [block for block in documented.python_blocks() if not block[0].startswith(OWN_TEST)],
    ids=lambda value: str(value).split("\n")[0],
)
def test_python_runs(place: str, text: str, workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"ms": ms, "images": torch.zeros(1, 3, 48, 40)}
    monkeypatch.setattr(ms, "train", partial(ms.train, **QUICK))
    for statement in ast.parse(text).body:
        written = {node.value for node in ast.walk(statement) if isinstance(node, ast.Constant)}
        for name in sorted(name for name in written if isinstance(name, str)):
            if name.endswith((".jpg", ".png", ".mp4")) and "save" not in ast.dump(statement):
                workshop.images(name)
            elif name == "DIR":
                workshop.data(name)
            elif LOADS.search(ast.dump(statement)) and name not in PUBLISHED:
                workshop.model(name)
        check_names(statement)
        if not written & set(PUBLISHED):  # which would be fetched
            exec(compile(ast.Module([statement], []), place, "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_of_the_package_in_running_text_exist(page: Path) -> None:
    for text in documented.inline(page):
        if re.match(r"(ms|meanshifter)\.[a-z]", text):
            resolve(re.match(r"[\w.]+", text)[0].rstrip("."))  # type: ignore[index]
        if re.match(r"(ms|meanshifter|[A-Z]\w+)[\w.]*\(.*\)$", text):
            try:
                expression = ast.parse(text.replace("…", "..."), mode="eval")
            except SyntaxError:
                continue  # shortened otherwise
            check_names(expression)


def check_names(tree: ast.AST) -> None:
    """Calls of the package are of things that exist, with arguments that they take."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (function := known(ast.unparse(node.func))) is not None:
            parameters = inspect.signature(function).parameters
            taken = {*parameters, *(field_names(TrainConfig) if "fields" in parameters else ())}
            for keyword in node.keywords:
                assert keyword.arg in taken, f"{ast.unparse(node)}: {keyword.arg}"


def known(name: str) -> Any:
    """The function or class of the package that is called `name` in the docs, or None for a name of anything else."""
    if re.fullmatch(r"(ms|meanshifter)(\.\w+)+", name):
        return resolve(name)
    for module in ("meanshifter", "meanshifter.data"):
        if name in import_module(module).__all__:
            return getattr(import_module(module), name)
    return None


def resolve(name: str) -> Any:
    """What the package has under a dotted name."""
    first, *parts = name.split(".")
    found: Any = ms
    path = "meanshifter"
    assert first in ("ms", "meanshifter")
    for part in parts:
        path = f"{path}.{part}"
        found = getattr(found, part) if hasattr(found, part) else import_module(path)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = [text for text in documented.inline(page) if re.fullmatch(r"(tests|src|benchmarks|docs)/[\w./-]+", text)]
    linked = re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text("utf-8"))
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [name for name in linked if not (page.parent / name).exists()]
    assert not missing


def test_a_renamed_option_or_field_is_noticed(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    for line in ("meanshifter evaluate MODEL camvid --roots X", "meanshifter train camvid_ti16 --data.rot CamVid"):
        with pytest.raises((AssertionError, ms.InputError), match=r"--roots|data\.rot"):
            check(tuple(shlex.split(line)[1:]), True, workshop, monkeypatch)
