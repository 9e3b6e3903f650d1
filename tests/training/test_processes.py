"""Two processes of gloo on this machine do what one does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.errors import InputError
from meanshifter.evaluation import save_results
from meanshifter.utils.distributed import Processes, process_counts


def meanshifter(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meanshifter", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> Path:
    """Twelve steps with everything that could depend on the process: draws, labeled pixels, averages."""
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(tiny_text.replace("adamw", "sgd") + "loss: {reduction: mean_valid, class_weight_power: 0.5}\n")
    return path


def test_two_processes_train_and_score_as_one(recipe: Path, tmp_path: Path) -> None:
    assert main(["train", str(recipe), "--out", str(tmp_path / "one"), "--batch_size", "4"]) == 0
    done = meanshifter("train", recipe, "--out", tmp_path / "two", "--devices", "2")
    assert (done.returncode, done.stdout.count("best mIoU")) == (0, 1), done.stderr
    assert "Traceback" not in done.stderr
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert [line["step"] for line in one] == [line["step"] for line in two]
    for ours, theirs in zip(two, one, strict=True):
        assert ours.get("loss") == pytest.approx(theirs.get("loss"), abs=1e-5)
        assert ours.get("mIoU") == theirs.get("mIoU")
    weights = [load_file(tmp_path / name / "checkpoints" / "last" / "model.safetensors") for name in ("one", "two")]
    for key in weights[0]:
        torch.testing.assert_close(weights[1][key], weights[0][key], rtol=1e-4, atol=1e-6)

    done = meanshifter(
        *("evaluate", tmp_path / "one", "shapes", "--limit", "7", "--detailed"),
        *("--devices", "2", "--out", tmp_path / "two.json"),
    )
    assert (done.returncode, done.stdout.count("aAcc")) == (0, 1), done.stderr
    reader = ms.Predictor(ms.load_model(tmp_path / "one"), window=None, short_side=None)
    save_results(tmp_path / "one.json", [ms.evaluate(reader, Shapes(), limit=7, detailed=True)])
    assert (tmp_path / "two.json").read_text() == (tmp_path / "one.json").read_text()

    images = [(tmp_path / "images" / f"{n}.png", np.full((20 + n, 30, 3), 40 * n, np.uint8)) for n in range(3)]
    (tmp_path / "images").mkdir()
    for path, pixels in images:
        Image.fromarray(pixels).save(path)
    (tmp_path / "images" / "bad.png").write_text("no image")
    done = meanshifter("predict", tmp_path / "one", tmp_path / "images", "--out", tmp_path / "maps", "--devices", "2")
    assert (done.returncode, done.stdout) == (2, f"3 of 4 label maps written to {tmp_path / 'maps'}\n")
    assert done.stderr.count("bad.png: not an image") == 1
    for path, pixels in images:
        assert (np.asarray(Image.open(tmp_path / "maps" / path.name)) == reader(pixels).labels).all()


def test_what_one_process_cannot_read_is_said_once(recipe: Path, tmp_path: Path) -> None:
    for split, count in (("train", 8), ("val", 2)):
        for n in range(count):
            for kind, shape in (("images", (70, 70, 3)), ("masks", (70, 70))):
                file = tmp_path / "data" / kind / split / f"{n}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.random.default_rng(n).integers(0, 2, shape, dtype=np.uint8)).save(file)
    (tmp_path / "data" / "images" / "train" / "3.png").write_bytes(b"no image")
    data = ("--data.name", "folder", "--data.root", tmp_path / "data", "--data.val_pattern", "null")
    (tmp_path / "data" / "classes.txt").write_text("a\nb\n")
    done = meanshifter(
        "train", recipe, "--out", tmp_path / "run", "--devices", "2", "--loss.class_weight_power", "0", *data
    )
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("meanshifter:")]
    assert len(said) == 1
    assert "3.png: not an image" in said[0]


def test_numbers_of_processes_follow_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_counts(None, None) == (1, 1)
    assert process_counts(4, 2) == (4, 2)
    with pytest.raises(InputError, match=r"devices: 0; .*at least 1"):
        process_counts(0, None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert process_counts(None, None) == (2, 3)
    with pytest.raises(InputError, match="devices: 4, but torchrun or SLURM started 2; leave devices out"):
        process_counts(4, None)
    monkeypatch.undo()
    monkeypatch.setenv("SLURM_NTASKS", "16")
    monkeypatch.setenv("SLURM_NNODES", "2")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    assert process_counts(None, None) == (8, 2)


def test_they_take_leave_before_the_interpreter_goes(tmp_path: Path) -> None:
    script = """
        import atexit, torch.distributed as dist
        from meanshifter.utils.distributed import create_fabric, launch

        if __name__ == "__main__":
            processes = launch(create_fabric(accelerator="cpu", devices=2))
            connected = dist.is_initialized()
            atexit._run_exitfuncs()
            print(processes.rank, connected, dist.is_initialized(), flush=True)
    """
    (tmp_path / "leave.py").write_text(dedent(script))
    done = subprocess.run(
        [sys.executable, tmp_path / "leave.py"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "0 True False" in done.stdout.splitlines()


@pytest.mark.parametrize(
    ("environment", "status"),
    [({}, 2), ({"LOCAL_RANK": "0"}, 2), ({"LOCAL_RANK": "1"}, 0), ({"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, 2)],
)
def test_a_process_that_fabric_started_has_no_status_of_its_own(
    environment: dict[str, str], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["pretict"]) == status  # Fabric kills the others for any but 0
    assert capsys.readouterr().err.count("\n") == 1


def test_one_process_alone_needs_nobody() -> None:
    alone = Processes()
    assert alone.is_main
    assert alone.sum(torch.tensor(3)) == 3
    assert alone.broadcast(lambda: "made") == "made"
    with pytest.raises(InputError, match="wrong"):
        alone.all_agree(InputError("wrong"))
