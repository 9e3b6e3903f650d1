"""`meanshifter modes`, run as a process where the process matters."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.inference.protocol import as_segmenter
from tests import commands

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image, an untrained MeanShifter and a Segmenter."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("modes")
    for preset, name in (
        ("meanshifter-ti16", "shift"),
        ("segmenter-ti16", "plain"),
        ("meanshifter-pixel-ti16", "pixels"),
    ):
        ms.create_model(preset, num_classes=2, image_size=32, encoder_args=SMALL).save(folder / name)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_an_image_becomes_a_page_with_pictures_and_numbers(folder: Path) -> None:
    words = ["modes", "photo.png", "--model", "shift", "--layers", "2", "--short-side", "none"]
    done = commands.run(*words, cwd=folder)
    assert done.returncode == 0, done.stderr
    out = folder / "runs" / "modes" / "photo"
    names = {path.name for path in out.iterdir()}
    assert {"modes.html", "modes.json", "trajectories.png", "segments_step_2.png"} <= names
    assert f"page: {(out / 'modes.html').resolve()}" in done.stdout
    assert f"meanshifter {' '.join(words)}" in (out / "modes.html").read_text("utf-8")
    numbers = json.loads((out / "modes.json").read_text())
    assert (numbers["format_version"], numbers["model"], numbers["image"]) == (1, "shift", "photo.png")
    assert numbers["grid"] == [5, 7]
    assert [row["step"] for row in numbers["steps"]] == [0, 1, 2]
    modes = np.array(numbers["modes"])
    assert modes.shape == (5, 7)
    assert len(np.unique(modes)) == numbers["steps"][-1]["modes"]
    assert [len(np.unique(row["labels"])) for row in numbers["references"]] == [
        row["clusters"] for row in numbers["references"]
    ]
    with Image.open(out / "segments_step_2.png") as picture:
        assert picture.size == (56, 40)


def test_the_image_is_read_as_the_recipe_of_a_run_says(folder: Path, tmp_path: Path) -> None:
    as_segmenter(ms.load_model(folder / "shift")).save(tmp_path / "run" / "checkpoints" / "best")
    (tmp_path / "run" / "config.yaml").write_text(
        "evaluation: {window: 32, window_stride: 16, short_side: 20, long_side: 2048}"
    )
    words = ["modes", str(folder / "photo.png"), "--model", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert main([*words, "--layers", "1"]) == 0
    assert json.loads((tmp_path / "out" / "modes.json").read_text())["size"] == [20, 28]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo.png", "--model", "plain"], "model: has no mean shift block"),
        (["photo.png", "--model", "nowhere"], "nowhere: does not exist"),
        (["nowhere.png", "--model", "shift"], "nowhere.png"),
        (["notes.txt", "--model", "shift"], "notes.txt"),
        (["shift", "--model", "shift"], "shift: "),
        (["photo.png"], "--model"),
        (["photo.png", "--model", "shift", "--layers", "0"], "layers: 0"),
        (["photo.png", "--model", "shift", "--layers", "two"], "--layers"),
        (["photo.png", "--model", "shift", "--tolerance", "-1"], "tolerance: -1.0"),
        (["photo.png", "--model", "shift", "--out", "notes.txt"], "--out: notes.txt is a file"),
    ],
)
def test_wrong_command_lines(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    assert main(["modes", *words]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("meanshifter: ")]
    assert len(error) == 1
    assert message in error[0]


def test_a_refusal_leaves_the_process_with_status_2_and_one_line(folder: Path) -> None:
    done = commands.run("modes", "photo.png", "--model", "plain", cwd=folder)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("meanshifter: model: has no mean shift block")


def test_steps_from_pixels_are_said_to_be_there_and_what_is_named_instead_shows_them(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo, model = str(folder / "photo.png"), str(folder / "pixels")
    assert main(["modes", photo, "--model", model, "--out", str(tmp_path / "modes")]) == 2
    error = capsys.readouterr().err
    assert "pixel_shift" in error
    assert "no mean shift block" not in error
    assert not (tmp_path / "modes").exists()
    for steps in ("0", "2"):
        assert main(["predict", model, photo, "--mean-shift-layers", steps, "--out", str(tmp_path / steps)]) == 0
        assert list((tmp_path / steps).glob("*.png"))


def test_a_missing_library_is_said_before_the_model_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    assert main(["modes", "photo.png", "--model", "nowhere"]) == 2
    assert 'pip install "meanshifter[study]"' in capsys.readouterr().err


def test_the_input_image_is_never_replaced(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "image.png"
    image.write_bytes((folder / "photo.png").read_bytes())
    before = image.read_bytes()
    words = ["modes", str(image), "--model", str(folder / "shift"), "--layers", "1", "--out", str(tmp_path)]
    assert main([*words, "--short-side", "none"]) == 2
    assert f"--out: {image} is the input image" in capsys.readouterr().err
    assert image.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["image.png"]


def test_a_mask_adds_the_figures_of_classes_and_boundaries(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mask = np.zeros((40, 56), np.uint8)
    mask[:, 30:] = 1
    Image.fromarray(mask).save(folder / "mask.png")
    Image.fromarray(mask[:20]).save(folder / "half.png")
    words = ["modes", str(folder / "photo.png"), "--model", str(folder / "shift"), "--layers", "1"]
    words += ["--short-side", "none", "--out", str(folder / "labeled")]
    assert main([*words, "--labels", str(folder / "mask.png")]) == 0
    steps = json.loads((folder / "labeled" / "modes.json").read_text())["steps"]
    assert all(0 <= row["boundary_3"] <= 100 and row["separation"] > 0 for row in steps)
    assert main([*words, "--labels", str(folder / "half.png")]) == 2
    assert "half.png: 56×20 pixels, but the image has 56×40; " in capsys.readouterr().err
