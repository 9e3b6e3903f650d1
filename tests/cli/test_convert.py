"""`meanshifter convert`, and every command that reads a model, given files of other people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.cli.main import main
from tests.cli.test_predict import meanshifter
from tests.interop.foreign import Toy, mmsegmentation_state
from tests.interop.test_checkpoints import save_mmsegmentation

TOY = Toy()


class Command:
    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        return os.system, (self.text,)


def test_there_and_back_through_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = mmsegmentation_state(TOY, "mask")
    source = save_mmsegmentation(tmp_path / "source.pth", state, TOY)
    done = meanshifter("convert", source, tmp_path / "ours")
    assert done.returncode == 0, done.stderr
    assert ms.load_model(tmp_path / "ours").config.decoder == "mask"
    ours, back, hub = (str(tmp_path / name) for name in ("ours", "back.pth", "hub"))
    assert main(["convert", ours, back, "--to", "mmsegmentation"]) == 0
    assert capfd.readouterr().out.split() == [back, str(tmp_path / "back.py")]
    found = torch.load(back, weights_only=True)["state_dict"]
    assert all(torch.equal(found[name], value) for name, value in state.items())
    assert main(["convert", ours, hub, "--to", "hub"]) == 0
    assert (tmp_path / "hub" / "README.md").is_file()


def test_a_foreign_file_is_read_by_predict_as_it_is(tmp_path: Path) -> None:
    source = save_mmsegmentation(tmp_path / "source.pth", mmsegmentation_state(TOY, "linear"), TOY)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "photo.png")
    arguments = ["--short-side", "none", "--protocol", "mmsegmentation", "--out", str(tmp_path / "maps")]
    done = meanshifter("predict", source, tmp_path / "photo.png", *arguments)
    assert done.returncode == 0, done.stderr
    labels = np.asarray(Image.open(tmp_path / "maps" / "photo.png"))
    predictor = ms.Predictor(ms.load_model(source), short_side=None, protocol="mmsegmentation")
    np.testing.assert_array_equal(labels, predictor(tmp_path / "photo.png").labels)


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "{file}", "{photo}", "--out", "{out}"],
        ["evaluate", "{file}", "shapes"],
        ["convert", "{file}", "{out}"],
        ["compare", "{file}", "{file}", "shapes", "--out", "{out}"],
        ["modes", "{photo}", "--model", "{file}", "--out", "{out}"],
        ["train", "shapes", "--model.backbone_weights", "{file}", "--out", "{out}"],
    ],
    ids=lambda words: words[0],
)
def test_no_command_runs_what_a_pickle_asks_for(
    words: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file, photo, out = tmp_path / "evil.pth", tmp_path / "photo.png", tmp_path / "out"
    torch.save({"state_dict": {"w": Command(f"touch {tmp_path / 'ran'}")}}, file)
    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(photo)
    assert main([word.format(file=file, photo=photo, out=out) for word in words]) == 2
    error = capfd.readouterr().err
    assert "it asks for" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "ran").exists()


def test_mistakes_get_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = ms.create_model("segmenter-ti16", num_classes=2, image_size=32, backbone_args={"depth": 1})
    model.save(tmp_path / "model")
    for words, message in (
        ([tmp_path / "nothing.pth", tmp_path / "o"], "no such file"),
        ([tmp_path / "model", tmp_path / "o", "--results", tmp_path / "r.json"], "--to hub"),
        ([tmp_path / "model", tmp_path / "model" / "config.json"], "a file, but meanshifter is written as a folder"),
        ([tmp_path / "model", tmp_path / "o", "--to", "onnxx"], "invalid choice"),
    ):
        assert main(["convert", *map(str, words)]) == 2
        assert message in capfd.readouterr().err
