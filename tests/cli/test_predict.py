"""`meanshifter predict`, run as a process where the process matters."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.cli.main import main
from tests import commands

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    ms.create_model("segmenter-ti16", classes=["sky", "road"], image_size=32, encoder_args=SMALL).save(folder)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("photos/a.jpg", "photos/trip/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path / "photos"


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The only line on standard error, where the status is 2."""
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_folder_becomes_masks_and_overlays(model_folder: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = commands.run("predict", model_folder, photos, "--out", out, "--overlay", "--window", "none")
    assert (done.returncode, done.stderr) == (0, "")
    assert files(out) == ["a.png", "overlays/a.png", "overlays/trip/b.png", "trip/b.png"]
    assert "2 of 2 label maps written" in done.stdout
    with Image.open(out / "trip" / "b.png") as mask:
        assert mask.mode == "P"
        expected = ms.Predictor(ms.load_model(model_folder), window=None)(photos / "trip" / "b.png")
        np.testing.assert_array_equal(np.array(mask), expected.labels)
    with Image.open(out / "overlays" / "a.png") as overlay:
        assert overlay.width > 30  # the legend lies beside the image


def test_an_unreadable_file_is_named_and_the_others_are_written(
    model_folder: Path, photos: Path, tmp_path: Path
) -> None:
    good = (photos / "a.jpg").read_bytes()
    (photos / "half.jpg").write_bytes(good[: len(good) // 2])
    done = commands.run("predict", model_folder, photos, "--out", tmp_path / "out")
    assert "half.jpg" in one_line(done)
    assert files(tmp_path / "out") == ["a.png", "trip/b.png"]
    assert "2 of 3 label maps written" in done.stdout


def test_a_large_file_that_breaks_off_below_its_header_is_named_and_the_others_are_written(
    model_folder: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rasterio")
    monkeypatch.setattr("meanshifter.data.rows.LARGE", 10_000)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 120, 3), dtype=np.uint8)
    for name in ("broken.tif", "whole.tif"):
        Image.fromarray(pixels).save(photos / name, compression="tiff_adobe_deflate")
    data = (photos / "broken.tif").read_bytes()
    (photos / "broken.tif").write_bytes(data[:9000] + b"\x55" * 400 + data[9400:])
    out = tmp_path / "out"
    assert main(["predict", str(model_folder), str(photos), "--out", str(out), "--short-side", "none"]) == 2
    assert files(out) == ["a.png", "trip/b.png", "whole.png"]
    (line,) = capfd.readouterr().err.splitlines()
    assert "broken.tif: cannot be decoded (" in line


@pytest.mark.parametrize("archive", [(), ("--resume",)])
def test_what_is_passed_over_is_said_in_one_line(
    model_folder: Path, photos: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], archive: tuple[str, ...]
) -> None:
    for name in ("b.HEIC", ".ipynb_checkpoints/a.jpg", "trip/notes.txt"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).touch()
    Image.new("RGB", (30, 20)).save(photos / "c.gif")
    assert main(["predict", str(model_folder), str(photos), "--out", str(tmp_path / "out"), *archive]) == 0
    told = capfd.readouterr()
    assert "3 of 3 label maps written" in told.out
    (line,) = told.err.splitlines()
    assert "3 skipped" in line
    for kind in (".heic (1)", "hidden or system folders (1)", ".txt (1)"):
        assert kind in line


def test_conflicts_stop_before_any_work(model_folder: Path, photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").write_bytes((photos / "trip" / "b.png").read_bytes())
    done = commands.run("predict", model_folder, photos, "--out", tmp_path / "out")
    assert "would be written for both" in one_line(done)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder"),
        (["photos", "--window-stride", "600"], "window_stride: 600 is above the window of 512"),
        (["photos", "--workers", "8"], "--workers: only applies to --backend ray"),
        (["photos", "--alpha", "2"], "--alpha: 2.0; expected 0"),
        (["photos", "--window", "wide"], "'wide'; expected a number of pixels or none"),
        (["photos", "--mean-shift-layers", "2"], "mean_shift_layers: 2"),
        (["photos", "--out", "photos/a.jpg"], "--out: photos/a.jpg is a file"),
    ],
)
def test_wrong_command_lines(
    model_folder: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(photos.parent)
    assert main(["predict", "--out", "out", str(model_folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("out").exists()


def test_a_missing_model_is_named(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "no" / "model"
    assert main(["predict", str(missing), str(photos), "--out", str(tmp_path / "out")]) == 2
    assert str(missing) in capsys.readouterr().err


def test_label_maps_already_there_are_replaced(model_folder: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"old")
    assert main(["predict", str(model_folder), str(photos / "a.jpg"), "--out", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "a.png") as mask:
        assert mask.size == (30, 20)


def test_scores_and_probabilities_become_16_bit_images(
    model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["predict", str(model_folder), str(photos), "--out", str(out), "--short-side", "none"]
    assert main([*words, "--confidence", "margin", "--probabilities", "sky", "road"]) == 0
    sky, road, margin = (
        np.asarray(Image.open(out / "confidence" / name / "trip" / "b.png")).astype(int)
        for name in ("sky", "road", "margin")
    )
    labels = np.asarray(Image.open(out / "trip" / "b.png"))
    assert abs(sky + road - 65535).max() <= 1
    assert abs(abs(sky - road) - margin).max() <= 1
    np.testing.assert_array_equal(labels[margin > 0], (road > sky)[margin > 0])
    assert main([*words, "--probabilities", "sea"]) == 2
    assert "the model has no class 'sea'" in capsys.readouterr().err


def test_images_above_max_pixels_are_passed_over(
    model_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(model_folder), str(photos), "--out", str(tmp_path / "out"), "--max-pixels", "599"]
    assert main(words) == 2
    assert "30×20 is 600 pixels, above max_pixels 599" in capsys.readouterr().err


def test_the_authors_segmenter_labels_and_scores_in_different_ways(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    run, rng = tmp_path / "run", np.random.default_rng(0)
    model = ms.create_model("segmenter-ti16", num_classes=2, image_size=64, encoder_args=SMALL)
    for parameter in model.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    model.config = replace(model.config, window=48, window_stride=40, short_side=40, long_side=160)
    model.save(run / "checkpoints" / "best")
    reading = "{window: 48, window_stride: 40, short_side: 40, long_side: 160}"
    (run / "config.yaml").write_text(f"evaluation: {reading}\n")
    image = rng.integers(0, 256, (70, 130, 3), dtype=np.uint8)
    for folder, pixels in (("images", image), ("masks", image[..., 0] % 2)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    common = ["--compat", "segmenter"]
    for model_path in (run, run / "checkpoints" / "best"):
        assert (
            main(["predict", str(model_path), str(tmp_path / "images"), "--out", str(tmp_path / "out"), *common]) == 0
        )
        theirs = ms.Predictor(model, compat="segmenter", window=48, window_stride=40, short_side=None)(image).labels
        with Image.open(tmp_path / "out" / "a.png") as labels:
            np.testing.assert_array_equal(np.asarray(labels), theirs)
        evaluate = ["evaluate", str(model_path), "folder", "--root", str(tmp_path), "--split", "all", *common]
        assert main(evaluate) == 0
        assert "resized to fit 160×40; window 64, stride 32" in capsys.readouterr().out
        assert main([*evaluate, "--window", "50", "--window-stride", "20", "--short-side", "none"]) == 0
        assert "not resized; window 50, stride 20" in capsys.readouterr().out
