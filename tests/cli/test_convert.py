"""`meanshifter convert`, and every command that reads a model, given files of other people."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.checkpoints.load import cache_folder
from meanshifter.cli.main import main
from tests import commands
from tests.checkpoints.foreign import Toy, mmsegmentation_state
from tests.checkpoints.test_checkpoints import save_mmsegmentation

TOY = Toy()


class Command:
    def __init__(self, text: str) -> None:
        self.text = text

    def __reduce__(self) -> Any:
        return os.system, (self.text,)


def test_there_and_back_through_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    state = mmsegmentation_state(TOY, "mask")
    source = save_mmsegmentation(tmp_path / "source.pth", state, TOY)
    done = commands.run("convert", source, tmp_path / "ours")
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
    arguments = ["--short-side", "none", "--compat", "mmsegmentation", "--out", str(tmp_path / "maps")]
    done = commands.run("predict", source, tmp_path / "photo.png", *arguments)
    assert done.returncode == 0, done.stderr
    labels = np.asarray(Image.open(tmp_path / "maps" / "photo.png"))
    predictor = ms.Predictor(ms.load_model(source), short_side=None, compat="mmsegmentation")
    np.testing.assert_array_equal(labels, predictor(tmp_path / "photo.png").labels)


def test_predict_needs_a_model_and_a_photo_only(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save("photo.png")
    assert main(["predict", str(ours), "photo.png"]) == 0
    assert "1 of 1 label map written to meanshifter-labels" in capfd.readouterr().out
    assert np.asarray(Image.open("meanshifter-labels/photo.png")).shape == (20, 30)


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "{file}", "{photo}", "--out", "{out}"],
        ["evaluate", "{file}", "shapes"],
        ["convert", "{file}", "{out}"],
        ["compare", "{file}", "{file}", "shapes", "--out", "{out}"],
        ["modes", "{photo}", "--model", "{file}", "--out", "{out}"],
        ["train", "shapes", "--model.encoder_weights", "{file}", "--out", "{out}"],
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
    model = ms.create_model("segmenter-ti16", num_classes=2, image_size=32, encoder_args={"depth": 1})
    model.save(tmp_path / "model")
    for words, message in (
        ([tmp_path / "nothing.pth", tmp_path / "o"], "no such file"),
        ([tmp_path / "model", tmp_path / "o", "--results", tmp_path / "r.json"], "--to hub"),
        ([tmp_path / "model", tmp_path / "model" / "config.json"], "a file, but meanshifter is written as a folder"),
        ([tmp_path / "model", tmp_path / "o", "--to", "onnxx"], "invalid choice"),
    ):
        assert main(["convert", *map(str, words)]) == 2
        assert message in capfd.readouterr().err


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    model = ms.create_model("segmenter-ti16", num_classes=2, image_size=32, encoder_args={"depth": 1})
    model.save(tmp_path / "ours")
    return tmp_path / "ours"


@pytest.mark.filterwarnings("ignore:.*computes this model slightly differently")
def test_nothing_is_written_over_unless_asked(ours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script, checkpoint, folder = tmp_path / "train.py", tmp_path / "train.pth", tmp_path / "theirs"
    script.write_text("precious")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("precious")

    def line(*words: object) -> str:
        assert main(["convert", *map(str, words)]) == 2
        return capfd.readouterr().err

    assert "train.py: already exists; replace it with --overwrite" in line(ours, checkpoint, "--to=mmsegmentation")
    assert "mmsegmentation is written as a file; use the suffix .pth or .pt" in line(
        ours, script, "--to=mmsegmentation", "--overwrite"
    )
    assert "is the source model" in line(ours, ours, "--overwrite")
    assert "contains mine.txt" in line(ours, tmp_path / "notes", "--overwrite")
    assert script.read_text() == "precious"
    assert not checkpoint.exists()
    assert main(["convert", str(ours), str(folder), "--to=segmenter"]) == 0
    assert "already exists" in line(ours, folder)
    assert main(["convert", str(ours), str(folder), "--overwrite"]) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_options_for_files_of_others_are_refused_for_ours(
    ours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for words in (["--mean-shift-layers", "2"], ["--allow-missing"]):
        assert main(["convert", str(ours), str(tmp_path / "out"), *words]) == 2
        assert "third-party checkpoints only" in capfd.readouterr().err


def test_how_a_run_reads_images_goes_with_its_model(ours: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ours.rename(tmp_path / "best")
    (run / "checkpoints").mkdir(parents=True)
    (tmp_path / "best").rename(run / "checkpoints" / "best")
    (run / "config.yaml").write_text("evaluation: {window: null, window_stride: 480, short_side: 90, long_side: 200}\n")
    assert main(["convert", str(run), str(tmp_path / "hub"), "--to", "hub"]) == 0
    reading = ms.Predictor(ms.load_model(tmp_path / "hub")).preprocess
    assert (reading.window, reading.short_side, reading.long_side) == (None, 90, 200)


@pytest.mark.filterwarnings("ignore:.*computes this model slightly differently")
def test_the_source_is_not_written_over(ours: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    theirs, run, notes = tmp_path / "theirs", tmp_path / "run", tmp_path / "notes"
    assert main(["convert", str(ours), str(theirs), "--to", "segmenter"]) == 0
    shutil.copytree(ours, run / "checkpoints" / "best")
    notes.mkdir()
    (notes / "README.md").write_text("precious")
    (tmp_path / "dir.pth").mkdir()
    for source, out, line in (
        (theirs / "checkpoint.pth", theirs, "is the source model"),
        (theirs, theirs, "is the source model"),
        (run, run / "checkpoints" / "best", "is the source model"),
        (ours, notes, "contains README.md"),
    ):
        before = sorted(path.name for path in out.iterdir())
        assert main(["convert", str(source), str(out), "--overwrite"]) == 2
        assert line in capfd.readouterr().err
        assert sorted(path.name for path in out.iterdir()) == before
    assert main(["convert", str(ours), str(tmp_path / "dir.pth"), "--to", "mmsegmentation", "--overwrite"]) == 2
    assert "dir.pth: is a folder, but mmsegmentation is written as a file" in capfd.readouterr().err
    assert main(["convert", str(ours), str(tmp_path / "new.pth")]) == 2
    assert "new.pth: named like a file, but meanshifter is written as a folder" in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:.*computes this model slightly differently")
def test_nor_is_a_part_of_it(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "cache"))
    name = "segmenter-mask-ti16-ade20k-official"
    theirs, best, cached = tmp_path / "theirs", tmp_path / "run" / "checkpoints" / "best", cache_folder(name)
    assert main(["convert", str(ours), str(theirs), "--to", "segmenter"]) == 0
    shutil.copytree(ours, best)
    shutil.copytree(theirs, cached)
    file = save_mmsegmentation(tmp_path / "their.pth", mmsegmentation_state(TOY, "linear"), TOY)
    file.with_suffix(".py").write_text("model = dict()")
    for source, out, to in (
        (ours, ours / "model.safetensors", "timm"),
        (best.parent.parent, best / "model.safetensors", "timm"),
        (theirs, theirs / "checkpoint.pth", "mmsegmentation"),
        (theirs / "checkpoint.pth", theirs / "checkpoint.pth", "mmsegmentation"),
        (file, file.with_suffix(".pt"), "mmsegmentation"),
        (name, cached, "segmenter"),
    ):
        capfd.readouterr()
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert main(["convert", str(source), str(out), "--to", to, "--overwrite"]) == 2
        assert "is the source model" in capfd.readouterr().err
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    assert main(["convert", str(file), str(tmp_path / "other.pth"), "--to", "mmsegmentation"]) == 0
    assert main(["convert", str(ours), str(tmp_path / "other.pth"), "--to", "mmsegmentation", "--overwrite"]) == 0


def test_a_name_that_is_a_part_of_a_model(tmp_path: Path) -> None:
    (tmp_path / "variant.yml").write_text("net_kwargs: {}")
    with pytest.raises(ms.InputError, match=r"variant\.yml: describes a model but"):
        ms.load_model(tmp_path / "variant.yml")
