"""The command as a process: what a user sees, and how it ends."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meanshifter.cli.main import COMMANDS, main
from tests import commands

TINY = [
    "--model.encoder=vit_tiny_patch16_224",
    "--model.encoder_weights=null",
    '--model.encoder_args={"embed_dim": 24, "depth": 5, "num_heads": 2}',
    "--augment.crop=[32, 32]",
    "--augment.resize_base=null",
    "--data.workers=0",
    "--steps=2",
    "--batch_size=2",
    "--evaluation.window=null",
    "--evaluation.short_side=null",
]


def refused(result: subprocess.CompletedProcess[str]) -> str:
    """The one line of a refusal: status 2, no traceback."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight images of 40×48 with masks of two classes."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for k in range(8):
        mask = np.zeros((40, 48), np.uint8)
        mask[:, 10 + 3 * k :] = 1
        pixels = (mask[..., None] * 120 + rng.integers(0, 100, (40, 48, 3))).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{k}.jpg")
        Image.fromarray(mask).save(tmp_path / "data" / "masks" / f"{k}.png")
    return tmp_path / "data"


def test_help_is_quick_and_neither_it_nor_the_import_needs_torch() -> None:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        result = subprocess.run(
            [sys.executable, "-m", "meanshifter", "--help"], capture_output=True, text=True, check=False
        )
        seconds.append(time.perf_counter() - began)
    assert result.returncode == 0
    for command in COMMANDS:
        assert f"  {command} " in result.stdout
    assert min(seconds) < 0.5
    heavy = "[name for name in ('torch', 'timm', 'numpy') if name in sys.modules]"
    code = f"import sys, meanshifter, meanshifter.cli.main; print({heavy})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, and of every action that one has."""
    found = {}
    for command in COMMANDS:
        found[command] = argparse.ArgumentParser()
        import_module(f"meanshifter.cli.{command}").configure(found[command])
        for argument in found[command]._actions:
            if isinstance(argument, argparse._SubParsersAction):
                found |= {f"{command} {name}": parser for name, parser in argument.choices.items()}
    return found


@pytest.mark.parametrize("words", parsers())
def test_every_command_explains_itself(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([*words.split(), "--help"])
    said = capsys.readouterr().out
    assert left.value.code == 0
    assert said.startswith(f"usage: meanshifter {words}")
    for argument in parsers()[words]._actions:
        assert argument.help or isinstance(argument, argparse._SubParsersAction), f"{argument.dest} is not explained"
        for option in argument.option_strings:
            assert option in said


def test_a_folder_is_trained_scored_and_predicted(folder: Path, tmp_path: Path) -> None:
    trained = commands.run("train", str(folder), *TINY, "--out", "run", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "mIoU" in trained.stdout
    scored = commands.run("evaluate", "run", str(folder), "--split", "val", "--out", "score.json", cwd=tmp_path)
    assert scored.returncode == 0, scored.stderr
    assert (tmp_path / "score.json").is_file()
    predicted = commands.run("predict", "run", str(folder / "images"), "--out", "labels", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    masks = sorted((tmp_path / "labels").rglob("*.png"))
    assert [mask.stem for mask in masks] == [str(k) for k in range(8)]
    for mask in masks:
        with Image.open(mask) as picture:
            assert picture.size == (48, 40)
    again = commands.run("train", str(folder), *TINY, "--out", "run", cwd=tmp_path)
    assert "already exists; continue it with --resume" in refused(again)


def test_wrong_commands_and_fields_are_refused_with_the_nearest_right_one(folder: Path) -> None:
    assert "no such command; did you mean 'predict'" in refused(commands.run("perdict"))
    assert "did you mean 'camvid_ti16'" in refused(commands.run("train", "camvid_ti61"))
    wrong = commands.run("train", str(folder), "--optimizer.learning", "1")
    assert "unknown field 'optimizer.learning'" in refused(wrong)


def test_wrong_folders_and_files_are_refused_by_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def line(*words: str) -> str:
        assert main(["train", *words, *TINY]) == 2
        (only,) = capfd.readouterr().err.splitlines()
        return only

    monkeypatch.chdir(tmp_path)
    missing = ["camvid_ti16", "--data.root", "nowhere"]
    for precision in ("fp32", "bf16"):
        assert "nowhere" in line(*missing, f"--precision={precision}")
    half = line(*missing, "--precision=fp16", "--accelerator=cpu")
    assert "precision: 'fp16' training" in half
    assert not (tmp_path / "runs").exists(), "nothing is written before the data is found"
    (tmp_path / "empty" / "images").mkdir(parents=True)
    (tmp_path / "empty" / "masks").mkdir()
    assert "empty" in line("empty")
    Image.new("L", (10, 10)).save(folder / "masks" / "3.png")
    assert "3.png" in line(str(folder), "--out", "a")
    assert not (tmp_path / "a").exists()


def test_a_wrong_mask_in_a_worker_is_refused_like_any_other(folder: Path, tmp_path: Path) -> None:
    for k in range(8):
        Image.new("RGB", (48, 40), (k, 0, 0)).save(folder / "masks" / f"{k}.png")
    (folder / "classes.txt").write_text("left\nright\n")
    line = refused(commands.run("train", str(folder), *TINY, "--data.workers=1", "--out", str(tmp_path / "run")))
    assert "masks" in line
    assert "RGB" in line


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_has_saved_and_says_how_to_go_on(
    folder: Path, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    words = [*TINY, "--steps=100000", "--log_every=1", "--out", "run"]
    process = commands.start("train", folder, *words, cwd=tmp_path)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and metrics.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, number)
    done = process.wait(60)
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
    assert "resume with the same command and --resume" in done.stderr.splitlines()[-1]
    assert (tmp_path / "run" / "checkpoints" / "last" / "training.safetensors").is_file()
