"""A folder of another layout: trained on, resumed, scored and checked by the commands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meanshifter.cli.main import main
from meanshifter.data import Folder
from meanshifter.data.layout import FolderLayout

SMALL = """
data: {workers: 0}
model: {preset: segmenter-ti16, encoder_args: {patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}}
augment: {crop: [16, 16], resize_base: null}
evaluation: {interval: 0, window: null, short_side: null}
steps: 1
batch_size: 1
"""
LAYOUT = (
    "--data.images",
    "JPEGImages",
    "--data.masks",
    "labels",
    "--data.mask_suffix",
    "_gt",
    "--data.val_share",
    "0.4",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for folder in ("JPEGImages", "labels"):
        (root / folder).mkdir()
    for k in range(20):
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), np.uint8)).save(root / f"JPEGImages/{k:02}.jpg")
        Image.fromarray(rng.integers(0, 2, (16, 24), np.uint8)).save(root / f"labels/{k:02}_gt.png")
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    (folder / "small.yaml").write_text(SMALL)
    train = ["train", str(folder / "small.yaml"), "--data.root", str(data), "--out", str(folder / "run")]
    assert main([*train, *LAYOUT]) == 0
    return folder / "run"


def test_another_share_or_folder_is_another_run(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = ["train", str(run.parent / "small.yaml"), "--data.root", str(data), "--out", str(run), "--resume"]
    assert main([*train, *LAYOUT[:-1], "0.5"]) == 2
    assert "data.val_share" in capsys.readouterr().err


def scored(out: Path) -> tuple[int, str]:
    protocol = json.loads(out.read_text())["results"][0]["protocol"]
    return protocol["images"], protocol["split"]


def test_a_run_is_scored_on_what_it_held_out(run: Path, data: Path, tmp_path: Path) -> None:
    held = len(Folder(data, "val", layout=FolderLayout("JPEGImages", "labels", "_gt", 0.4)))
    for model in (run, run / "checkpoints" / "last"):
        assert main(["evaluate", str(model), str(data), "--out", str(tmp_path / "s.json")]) == 0
        assert scored(tmp_path / "s.json") == (held, "val, 0.4 held out")
    assert main(["evaluate", str(run), str(data), "--data.val_share", "0.9", "--out", str(tmp_path / "s.json")]) == 0
    assert scored(tmp_path / "s.json")[0] > held


def test_models_that_held_out_other_images_are_not_compared(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    train = ["train", str(run.parent / "small.yaml"), "--data.root", str(data), "--out", str(other)]
    assert main([*train, *LAYOUT[:-1], "0.5"]) == 0
    capsys.readouterr()
    assert main(["compare", str(run), str(other), str(data), "--out", str(tmp_path / "c")]) == 2
    error = capsys.readouterr().err
    assert "--data.val_share 0.4" in error
    assert "--data.val_share 0.5" in error


def test_the_check_sees_the_same_folder(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(data), *LAYOUT]) == 0
    held = len(Folder(data, "val", layout=FolderLayout("JPEGImages", "labels", "_gt", 0.4)))
    assert f"train {20 - held}, val {held} pairs" in capsys.readouterr().out
    assert main(["data", "check", str(data)]) == 2
    assert "--data.images JPEGImages --data.masks labels --data.mask_suffix _gt" in capsys.readouterr().err
