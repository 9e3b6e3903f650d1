"""The tutorials run from top to bottom, shortened: once with the commands of their tabs, once with their Python."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import meanshifter as ms
from meanshifter.analysis import study, tables
from meanshifter.analysis.study_plan import Cell
from meanshifter.data.catalog import shapes
from meanshifter.export.export import export
from tests.documented import QUICK, ROOT, blocks, parsed, run

PAGES = ROOT / "docs/tutorials"
RUN = "--steps 1 --batch_size 2 --size 28 --data.workers 0"
ENCODER = "--model.encoder_args.depth 5 --model.encoder_args.embed_dim 24 --model.encoder_args.num_heads 2"
STUDY = "--steps 1 --batch_size 2 --evaluation.limit 1 --data.workers 0"
OWN_FOLDER = {"length=240": "length=12", "size=128, length": "size=64, length"}
LARGE = {"rows, columns, side = 6, 8, 128": "rows, columns, side = 2, 3, 32", "(13, 10, 1)": "(2, 2, 1)"}
THESIS = {'"--steps", "100"': ", ".join(f'"{word}"' for word in f"{STUDY} {ENCODER}".split())}
WAYS = pytest.mark.parametrize("way", ["bash", "python"])


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ms, "train", partial(_train, ms.train))


def _train(function: Any, *given: Any, **fields: Any) -> Any:
    quick = {**QUICK, "size": 28, "evaluation": {**fields.get("evaluation", {}), "limit": 1}}
    if "model" in fields:  # its init_from has an architecture
        del quick["model"]
    return function(*given, **{**fields, **quick})


def follow(name: str, way: str, fewer: Mapping[str, str], *, parse: Any = None) -> dict[str, Any]:
    """Do what a page says, with its commands or its Python where it has both; returns the names that Python has set.

    Of the texts in Python, those in `fewer` are replaced. A command for which `parse` is true is only shown to it.
    """
    names: dict[str, Any] = {}
    for place, language, text, in_tab in blocks(PAGES / name):
        if language == "python" and (way == "python" or not in_tab):
            for long, short in fewer.items():
                text = text.replace(long, short)
            exec(compile(text, place, "exec"), names)
        if language == "bash" and (way == "bash" or not in_tab):
            for line in text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)[1:]
                if not words or (parse is not None and parse(words)):
                    continue
                status, said = run([*words, *_shorter(words)])
                assert status == 0, f"{place}: {said}"
    return names


def _shorter(words: list[str]) -> list[str]:
    if words[0] == "train":
        own = "" if "--model.init_from" in words else f"--model.encoder_weights null {ENCODER}"
        return f"{RUN} {own}".split()
    return f"{STUDY} {ENCODER}".split() if words[0] == "study" else []


@WAYS
def test_your_own_folder(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports, which take long, are only parsed: tests/test_examples.py runs one."""
    exports: list[Any] = []
    monkeypatch.setattr(ms, "export", lambda *given, **named: exports.append(signature(export).bind(*given, **named)))

    def parse(words: list[str]) -> bool:
        if words[0] == "export":
            exports.append(parsed(words, monkeypatch))
        return words[0] == "export"

    names = follow("own-folder.md", way, OWN_FOLDER, parse=parse)
    assert ms.load_model("runs/scenes").label_space.names == ms.datasets.Shapes().label_space.names
    assert len(exports) == 1
    if way == "python":
        assert 0 < names["result"].aAcc <= 100
        assert sum(names["seg"].class_areas().values()) == pytest.approx(1)
    else:
        assert (tmp_path / "labels/train_00003.png").is_file()
        assert (tmp_path / "labels/overlays").is_dir()


@WAYS
@pytest.mark.filterwarnings("ignore:.*weights are random")  # in place of DINO's
def test_a_dino_encoder(way: str, tmp_path: Path) -> None:
    _, _, scenes, _ = next(block for block in blocks(PAGES / "own-folder.md") if block[1] == "python")
    for long, short in OWN_FOLDER.items():
        scenes = scenes.replace(long, short)
    exec(scenes, {})
    follow("dino-encoder.md", way, {})
    frozen, finetuned = ms.load_model("runs/frozen"), ms.load_model("runs/finetuned")
    assert frozen.config.encoder == finetuned.config.encoder
    assert "patch14_reg4_dinov2" in frozen.config.encoder
    assert (tmp_path / ("overlay.png" if way == "python" else "labels/overlays")).exists()


@WAYS
def test_large_images(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = follow("large-images.md", way, LARGE, parse=parses("explore", monkeypatch))
    model = ms.load_model("runs/large")
    assert model.config.short_side is None
    assert model.config.window == 28
    with Image.open("huge_labels.png" if way == "python" else "labels/huge.png") as labels:
        assert labels.size == (2 * 3 * 32, 2 * 2 * 32)
    if way == "python":
        assert names["stored"].mIoU >= 0
        assert names["whole"].protocol != names["stored"].protocol != names["resized"].protocol


@WAYS
def test_the_tables_of_the_thesis(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings are in this process, since one of their own takes seconds to start; so does a dry run."""
    monkeypatch.setattr(study, "run_cells", _train_here)
    monkeypatch.setattr(tables, "write_plots", lambda *_: None)
    monkeypatch.setitem(shapes.LENGTHS, "val", 2)
    follow("thesis-tables.md", way, THESIS, parse=parses("--dry-run", monkeypatch))
    table = (tmp_path / "runs/thesis/table_2.md").read_text()
    assert len(re.findall(r"^\| MeanShifter-Ti/16", table, re.M)) == 8  # two rows, with L'_ms 1 to 4
    assert (tmp_path / "runs/thesis/table_1.tex").is_file()


def _train_here(cells: Sequence[Cell], *, depths: Sequence[int], splits: Sequence[str], **_: Any) -> None:
    for cell in cells:
        cell.folder.mkdir(parents=True)
        study._train_and_score(cell, list(depths), list(splits))


def parses(word: str, patch: pytest.MonkeyPatch) -> Callable[[list[str]], bool]:
    """For `follow`: commands with this word are parsed instead of run."""

    def parse(words: list[str]) -> bool:
        return word in words and parsed(words, patch) is not None

    return parse
