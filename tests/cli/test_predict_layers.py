"""`meanshifter predict` after several numbers of mean shift steps, and the sheet of its label maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.cli.main import main
from tests import commands

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
PLAIN = ["--window", "none", "--short-side", "none"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models")
    for name in ("segmenter", "meanshifter"):
        model = ms.create_model(f"{name}-ti16", classes=["sky", "road", "car"], image_size=32, encoder_args=SMALL)
        for parameter in model.decoder.parameters():
            torch.nn.init.normal_(parameter)
        model.save(folder / name)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("photos/a.jpg", "photos/trip/b.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path / "photos"


def files(folder: Path) -> dict[str, bytes]:
    """All files but the records, whose paths depend on the folder."""
    records = ("manifest.jsonl", "predictions.json")
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in records)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["predict", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    return error


def test_each_number_of_steps_has_a_folder_with_what_a_run_of_its_own_writes(
    models: Path, photos: Path, tmp_path: Path
) -> None:
    more = ["--overlay", "--confidence", "margin", "--probabilities", "car", *PLAIN]
    layers = ["--mean-shift-layers", 0, 3, 0, "--out", tmp_path / "out"]
    done = commands.run("predict", models / "meanshifter", photos, *more, *layers)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 of 4 label maps written" in done.stdout
    expected: dict[str, bytes] = {}
    for steps in ("0", "3"):
        out = tmp_path / f"alone_{steps}"
        arguments = [models / "meanshifter", photos, *more, "--mean-shift-layers", steps, "--out", out]
        assert main(["predict", *map(str, arguments)]) == 0
        alone = files(out)
        assert len(alone) == 2 * 4
        assert (out / "predictions.json").is_file()
        assert (tmp_path / "out" / f"layers_{steps}" / "predictions.json").is_file()
        assert "trip/b.png" in alone
        expected |= {f"layers_{steps}/{name}": data for name, data in alone.items()}
    assert files(tmp_path / "out") == expected
    assert expected["layers_0/a.png"] != expected["layers_3/a.png"]


def test_a_manifest_is_kept_and_only_what_is_missing_is_done_again(
    models: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plain = tmp_path / "out", tmp_path / "plain"
    command = [
        "predict",
        str(models / "meanshifter"),
        str(photos),
        "--mean-shift-layers",
        "0",
        "1",
        "--overlay",
        *PLAIN,
    ]
    assert main([*command, "--out", str(plain)]) == 0
    assert main([*command, "--out", str(out), "--resume"]) == 0
    assert files(out) == files(plain)
    header = json.loads((out / "manifest.jsonl").read_text().splitlines()[0])
    assert header["protocol"]["mean_shift_layers"] == [0, 1]
    capsys.readouterr()
    assert main([*command, "--out", str(out), "--resume"]) == 0
    assert "0 of 0 label maps written" in capsys.readouterr().out
    (out / "layers_1" / "trip" / "b.png").unlink()
    assert main([*command, "--out", str(out), "--resume"]) == 0
    assert "2 of 2 label maps written" in (said := capsys.readouterr().out)
    assert "2 already existed" in said
    assert files(out) == files(plain)


def test_the_sheet_has_a_row_for_each_image_that_can_be_read(
    models: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    (photos / "bad.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    for model, layers in (("meanshifter", ["--mean-shift-layers", "0", "1", "2"]), ("segmenter", [])):
        command = ["predict", str(models / model), str(photos), *layers, "--sheet", "--out", str(out), *PLAIN]
        assert main(command) == 2
        said = capsys.readouterr()
        assert "bad.jpg" in said.err
        assert f"sheet: {out / 'sheet.png'}, {out / 'sheet.pdf'}" in said.out
        columns = max(1 + max(len(layers) - 1, 1), 3)
        with Image.open(out / "sheet.png") as picture:
            wide = (picture.width - 12 - 12 * (len(layers) or 2 - 1)) / (1 + (len(layers) - 1 if layers else 1))
            column = (2062 - 12 - 12 * (columns - 1)) // columns
            assert wide == pytest.approx(column, abs=24)
            assert 2 * column * 40 / 60 < picture.height < 2 * column * 40 / 60 + 200
            assert "mean_shift_layers" in picture.info["Protocol"]


def test_wrong_command_lines(models: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    steps = ["--mean-shift-layers", "0", "1"]
    error = refusal(capsys, models / "segmenter", photos, *steps, "--out", out)
    assert "mean shift" in error
    error = refusal(capsys, models / "meanshifter", photos, "--mean-shift-layers", "1", "-2", "--out", out)
    assert "mean_shift_layers: -2" in error
    error = refusal(capsys, models / "meanshifter", photos, *steps, "--sheet", "--resume", "--out", out)
    assert "--sheet" in error
    pixels = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    pixels.save(photos / "sheet.jpg")
    error = refusal(capsys, models / "segmenter", photos, "--sheet", "--out", out)
    assert f"{out / 'sheet.png'}: would be written for both" in error
    for number in range(20):
        pixels.save(photos / f"{number}.png")
    error = refusal(capsys, models / "meanshifter", photos, *steps, "--sheet", "--out", out)
    assert "--sheet: 23 images; expected at most 20" in error
    assert not out.exists()
    (tmp_path / "in" / "layers_0").mkdir(parents=True)
    pixels.save(tmp_path / "in" / "a.png")
    pixels.save(tmp_path / "in" / "layers_0" / "a.png")
    error = refusal(capsys, models / "meanshifter", tmp_path / "in", *steps, "--out", tmp_path / "in")
    assert f"{tmp_path}/in/layers_0/a.png" in error
