"""`meanshifter compare`, run as a process where the process matters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.data.catalog.shapes import Shapes
from tests import commands

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of the classes of Shapes, with and without the block, and one of two classes."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    for name, preset in (("plain", "segmenter-ti16"), ("other", "segmenter-ti16"), ("shifted", "meanshifter-ti16")):
        model = ms.create_model(preset, classes=Shapes().label_space, image_size=32, encoder_args=SMALL)
        model.save(folder / name)
    ms.create_model("segmenter-ti16", num_classes=2, image_size=32, encoder_args=SMALL).save(folder / "two")
    # The recipe of a run says how its images are read.
    reading = "evaluation: {window: 64, window_stride: 48, short_side: null, long_side: 2048}\n"
    (folder / "shifted" / "config.yaml").write_text(reading)
    return folder


def test_a_comparison_is_written_and_scored_as_evaluate_does(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = commands.run(
        "compare", models / "plain", models / "shifted", "shapes", "--limit", 4, "--num-images", 1,
        "--mean-shift-layers", 0, 2, "--names", "Segmenter", "MeanShifter", "--out", out,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    written = json.loads((out / "compare.json").read_text("utf-8"))
    sheets = [name for sheet in written["sheets"] for name in sheet["files"]]
    assert sheets
    assert all(f"{name}: " in done.stdout or f"{name}, " in done.stdout for name in sheets)
    assert sorted(path.name for path in out.glob("sheet_*")) == sorted(sheets)
    assert len(list(out.glob("*.png"))) == 3 + len(sheets) // 2
    assert f"page: {(out / 'compare.html').resolve()}" in done.stdout
    assert [entry["name"] for entry in written["models"]] == ["Segmenter", "MeanShifter"]
    assert [entry["protocol"]["window"] for entry in written["models"]] == [512, 64]
    assert list(written["chosen"][0]["by_mean_shift_layers"]["MeanShifter"]["wrong"]) == ["0", "2"]
    evaluated = tmp_path / "result.json"
    assert main(["evaluate", str(models / "shifted"), "shapes", "--limit", "4", "--out", str(evaluated)]) == 0
    (result,) = json.loads(evaluated.read_text("utf-8"))["results"]
    assert written["models"][1] == {"name": "MeanShifter", **result}


def test_three_models_are_compared(models: Path, tmp_path: Path) -> None:
    three = [str(models / name) for name in ("plain", "shifted", "other")]
    command = ["compare", *three, "shapes", "--limit", "2", "--images", "val_00001"]
    assert main([*command, "--window", "none", "--short-side", "none", "--out", str(tmp_path)]) == 0
    written = json.loads((tmp_path / "compare.json").read_text("utf-8"))
    assert list(written["chosen"][0]["mIoU"]) == ["plain", "shifted", "other"]
    assert written["difference"] == "wrong pixels of plain less those of other"


def test_one_model_is_compared_with_itself(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", str(models / "shifted"), "shapes", "--limit", "2", "--mean-shift-layers", "0", "2"]
    assert main([*command, "--names", "MeanShifter", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "L'_ms = 2" in said
    assert "sheet_layers.png, sheet_layers.pdf: MeanShifter after each number of mean shift steps" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plain", "shapes"], "models: 1 given"),
        (["shifted", "shapes", "--mean-shift-layers", "2"], "mean_shift_layers: 2 for one model"),
        (["plain", "nowhere", "shapes"], "nowhere: does not exist"),
        (["plain", "two", "shapes"], "two has 2 classes, but shapes val has 7"),
        (["plain", "other", "shape"], "did you mean 'shapes'"),
        (["plain", "other", "camvid"], "--root: missing; camvid is read from a folder"),
        (["plain", "other", "shapes", "--images", "val_00001.png"], "did you mean 'val_00001'"),
        (["plain", "other", "shapes", "--images", "val_00001", "--num-images", "2"], "not allowed with"),
        (["plain", "other", "shapes", "--mean-shift-layers", "1"], "none of the models has a mean shift block"),
        (["plain", "other", "shapes", "--names", "a", "a"], "--names: a a; expected 2 different names"),
        (["plain", "other", "shapes", "--out", "."], "already exists; "),
    ],
)
def test_wrong_command_lines(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(models)
    assert main(["compare", "--out", str(tmp_path / "out"), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_error_leaves_the_process_with_status_2_and_one_line(models: Path, tmp_path: Path) -> None:
    done = commands.run("compare", models / "two", models / "plain", "shapes", "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr
