"""The tutorials run from top to bottom, shortened: once with the commands of their tabs, once with their Python."""

from __future__ import annotations

import shlex
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any

import pytest

import meanshifter as ms
from meanshifter.export.export import export
from tests.documented import QUICK, ROOT, blocks, parsed, run

PAGE = ROOT / "docs/tutorials/own-folder.md"
TINY = (
    "--steps 1 --batch_size 2 --size 32 --data.workers 0 --model.encoder_weights null --model.encoder_args.depth 1 "
    "--model.encoder_args.embed_dim 24 --model.encoder_args.num_heads 2"
)
FEWER = {"length=240": "length=12", "size=128, length": "size=64, length"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ms, "train", partial(_train, ms.train))


def _train(function: Any, *given: Any, **fields: Any) -> Any:
    return function(*given, **{**fields, **QUICK})


@pytest.mark.parametrize("way", ["bash", "python"])
def test_your_own_folder(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports, which take long, are only parsed: tests/test_examples.py runs one."""
    names: dict[str, Any] = {}
    exports: list[Any] = []
    monkeypatch.setattr(ms, "export", lambda *given, **named: exports.append(signature(export).bind(*given, **named)))
    for place, language, text, in_tab in blocks(PAGE):
        if language == "python" and (way == "python" or not in_tab):
            for long, short in FEWER.items():
                text = text.replace(long, short)
            exec(compile(text, place, "exec"), names)
        if language == "bash" and (way == "bash" or not in_tab):
            words = shlex.split(text, comments=True)[1:]
            if words[0] == "export":
                exports.append(parsed(words, monkeypatch))
                continue
            status, said = run([*words, *(shlex.split(TINY) if words[0] == "train" else [])])
            assert status == 0, said
    assert ms.load_model("runs/scenes").label_space.names == ms.datasets.Shapes().label_space.names
    assert len(exports) == 1
    if way == "python":
        assert 0 < names["result"].aAcc <= 100
        assert sum(names["seg"].class_areas().values()) == pytest.approx(1)
    else:
        assert (tmp_path / "labels/train_00003.png").is_file()
        assert (tmp_path / "labels/overlays").is_dir()
