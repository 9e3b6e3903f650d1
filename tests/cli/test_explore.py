"""`meanshifter explore` as a command: what it serves, what it refuses, how it ends."""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meanshifter.app import server
from meanshifter.cli import explore
from meanshifter.cli.main import main
from tests import commands
from tests.conftest import ModelFactory


@pytest.fixture
def model(tiny_model: ModelFactory, tmp_path: Path) -> Path:
    """A model folder."""
    tiny_model().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder of images and masks, in two splits."""
    for split in ("train", "val"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / kind / split).mkdir(parents=True)
            picture = np.zeros((24, 32, 3) if kind == "images" else (24, 32), np.uint8)
            Image.fromarray(picture).save(tmp_path / "data" / kind / split / f"{split}.png")
    return tmp_path / "data"


def explored(monkeypatch: pytest.MonkeyPatch, *words: object) -> dict[str, Any]:
    """The arguments with which the command calls `explore`."""
    found: dict[str, Any] = {}

    def serve(models: Any, images: Any, **options: Any) -> None:
        found.update(models=models, images=images, **options)

    monkeypatch.setattr(server, "explore", serve)
    assert main(["explore", *map(str, words)]) == 0
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["explore", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_it_prints_its_address_serves_the_page_and_ends_at_ctrl_c(model: Path, data: Path) -> None:
    running = commands.start("explore", model, data / "images" / "val", "--port", 0)
    out, end, found = running.out, time.monotonic() + 120, None
    while found is None:
        assert time.monotonic() < end
        time.sleep(0.05)
        found = re.search(r"http://127\.0\.0\.1:\d+/", out.read_text() if out.exists() else "")
    with urllib.request.urlopen(found[0] + "api/state", timeout=60) as answer:
        assert b'"val.png"' in answer.read()
    os.kill(running.pid, signal.SIGINT)
    done = running.wait()
    assert (done.returncode, done.stderr) == (130, "meanshifter: interrupted\n")


def test_the_last_word_may_be_images(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = tmp_path / "photo.JPG"
    Image.new("RGB", (8, 8)).save(photo, "JPEG")
    found = explored(monkeypatch, model, photo, "--mean-shift-layers", 3)
    assert (list(found["models"]), found["images"], found["steps"]) == (["model"], str(photo), 3)
    assert explored(monkeypatch, model, model)["images"] is None
    assert len(explored(monkeypatch, model, model)["models"]) == 2
    assert explored(monkeypatch, model, data / "images")["images"] == data / "images"
    both = explored(monkeypatch, model, data)["images"]
    assert (list(both.names), both.labeled) == (["train", "val"], True)
    assert list(explored(monkeypatch, model, data, "--split", "val")["images"].names) == ["val"]
    assert explored(monkeypatch, model, "shapes")["images"].split == "val"


def test_options_of_predict_apply(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (predictor,) = explored(monkeypatch, model, "--short-side", "none", "--window", 64, "--window-stride", 32)[
        "models"
    ].values()
    assert (predictor.preprocess.short_side, predictor.preprocess.window) == (None, 64)


def test_without_a_model_the_newest_runs_are_opened(
    tiny_model: ModelFactory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "MODEL" in refused(capsys)
    for age, name in enumerate(("newest", "older", "oldest")):
        best = tmp_path / "runs" / name / "checkpoints" / "best"
        tiny_model().save(best)
        os.utime(best / "config.json", (10**9 - age, 10**9 - age))
    assert explore._newest_runs() == ["runs/newest", "runs/older"]


def test_what_contradicts_is_refused_before_serving(
    model: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--root" in refused(capsys, model, "camvid")
    assert "--split: val" in refused(capsys, model, "--split", "val")
    assert "--split: val" in refused(capsys, model, data / "images", "--split", "val")
    assert "nowhere" in refused(capsys, model, "nowhere")
    assert "--port: 70000" in refused(capsys, model, "--port", 70000)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "--port 0" in refused(capsys, model, "--port", taken.getsockname()[1])
    assert "steps: -2" in refused(capsys, model, "--port", 0, "--mean-shift-layers", -2)


def test_the_help_names_the_extra() -> None:
    parser = argparse.ArgumentParser()
    explore.configure(parser)
    assert "[app]" in str(parser.description)
