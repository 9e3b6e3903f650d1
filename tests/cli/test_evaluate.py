"""`meanshifter evaluate`, run as a process where the process matters."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.data.catalog.shapes import Shapes
from tests import commands

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of the classes of Shapes, and one of two classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    labels = Shapes(split="val").label_space
    ms.create_model("meanshifter-ti16", classes=labels, image_size=32, encoder_args=SMALL).save(folder / "shapes")
    ms.create_model("segmenter-ti16", num_classes=2, image_size=32, encoder_args=SMALL).save(folder / "two")
    return folder


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line on standard error, where the status is 2."""
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_the_protocol_states_merged_tokens(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    done = commands.run("evaluate", models / "shapes", "shapes", "--limit", 2, "--merge-tokens", 0.75, "--out", out)

    assert (done.returncode, done.stderr) == (0, "")
    assert "75% of windows of tokens merged" in done.stdout
    assert json.loads(out.read_text())["results"][0]["protocol"]["merge_tokens"] == 0.75


def test_several_depths_are_printed_and_written(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "scores" / "result.json"
    done = commands.run(
        "evaluate", models / "shapes", "shapes", "--limit", 3, "--short-side", "none", "--window", "none",
        "--mean-shift-layers", 0, 1, 2, "--out", out,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(out.read_text())
    assert document["format_version"] == 1
    assert [result["protocol"]["mean_shift_layers"] for result in document["results"]] == [0, 1, 2]
    for result in document["results"]:
        assert result["protocol"]["images"] == 3
        assert f"mIoU {result['mIoU']:.2f}" in done.stdout
        assert f"weights {result['protocol']['weights']}" in done.stdout
    for name in Shapes(split="val").label_space.names:
        assert f"| {name} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["two", "shapes"], "the model has 2 classes, but shapes val has"),
        (["shapes", "camvid"], "--root: missing; camvid is read from a folder"),
        (["shapes", "camvid", "--root", "nowhere"], "nowhere"),
        (["shapes", "shape"], "did you mean 'shapes'"),
        (["shapes", "shapes", "--limit", "0"], "limit: 0 images"),
        (["shapes", "shapes", "--mean-shift-layers", "-1"], "mean_shift_layers: -1"),
        (["shapes", "shapes", "--merge-tokens", "-0.5"], "merge_tokens: -0.5"),
        (["shapes", "shapes", "--out", "."], "--out: . is a folder"),
        (["shapes", "shapes", "--out", "file/scores.json"], "--out: file/scores.json would be in file"),
        (["shapes", "--predictions", ".", "--devices", "2"], "--devices: only applies to models"),
        (
            ["shapes", "shapes", "--label-offset", "1"],
            "--label-offset: only applies to label maps; add --predictions DIR",
        ),
        (["shapes", "shapes", "--allow-missing"], "--allow-missing: only applies to label maps; add --predictions DIR"),
    ],
)
def test_wrong_command_lines(
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(models)
    (models / "file").touch()
    assert main(["evaluate", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_an_error_leaves_the_process_with_status_2_and_one_line(models: Path) -> None:
    done = commands.run("evaluate", models / "two", "shapes")
    assert "the model has 2 classes, but shapes val has 7" in one_line(done)


def test_a_folder_without_names_is_read_with_the_classes_of_the_model(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for folder, shape, top in (("images", (20, 24, 3), 256), ("masks", (20, 24), 2)):
        (tmp_path / folder).mkdir()
        for k in range(2):
            Image.fromarray(rng.integers(0, top, shape, dtype=np.uint8)).save(tmp_path / folder / f"{k}.png")
    command = ["evaluate", str(models / "shapes"), "folder", "--root", str(tmp_path), "--split", "all"]
    assert main([*command, "--short-side", "none"]) == 0
    assert "folder all, 2 images; not resized" in capsys.readouterr().out
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert main(command) == 2
    assert "the model has 7 classes, but folder all has 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "line"),
    [
        (["--window", "64"], "--window: only applies to models"),
        (["--flip"], "--flip: only applies to models"),
        (["--merge-tokens", "0.5"], "--merge-tokens: only applies to models"),
        (["--mean-shift-layers", "1"], "--mean-shift-layers: only applies to models"),
        (["--window", "none"], "--window: only applies to models"),
        (["--short-side", "none"], "--short-side: only applies to models"),
        (["--limit", "-1"], "--limit: -1; expected at least 1"),
    ],
)
def test_label_maps_take_no_options_of_models(
    option: list[str], line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "shapes", "--predictions", str(tmp_path), *option]) == 2
    assert line in capfd.readouterr().err
