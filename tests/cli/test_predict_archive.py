"""`meanshifter predict` with a manifest, and on Ray, as processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.cli.main import main

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
IMAGES = 48


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    ms.create_model("segmenter-ti16", classes=["sky", "road"], image_size=32, encoder_args=SMALL).save(folder)
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two tars, with one sample that is no image."""
    folder = tmp_path_factory.mktemp("shards")
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        Image.fromarray(rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    (folder / "bad.jpg").write_bytes(b"no image")
    for shard in range(2):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as file:
            for path in sorted([*folder.glob("*.png"), *folder.glob("*.jpg")])[shard::2]:
                file.add(path, path.name)
    return str(folder / "s-{0..1}.tar")


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.jsonl")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def outputs(out: Path) -> list[str]:
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()[1:]]
    return sorted(line["output"] for line in lines if "output" in line)


def descendants(pid: int) -> dict[int, str]:
    """Process → title, of all below `pid`."""
    parents, titles = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            titles[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except OSError:  # gone meanwhile
            continue
    found: dict[int, str] = {}
    new = {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new and child not in found}
        found |= {child: titles[child] for child in new}
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds a worker of Ray's in /proc")
def test_ray_writes_what_one_process_does_though_a_worker_is_killed(
    model_folder: Path, shards: str, tmp_path: Path
) -> None:
    pytest.importorskip("ray.data")
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert main(["predict", str(model_folder), shards, "--out", str(alone)]) == 2
    words = ["predict", str(model_folder), shards, "--out", str(out), "--backend", "ray", "--workers", "1"]
    lead = subprocess.Popen(
        [sys.executable, "-m", "meanshifter", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "RAY_worker_niceness": "0"},
    )
    family: dict[int, str] = {}
    workers: list[int] = []
    while not workers and lead.poll() is None:
        family |= descendants(lead.pid)
        workers = [pid for pid, title in family.items() if "MapWorker" in title]
        time.sleep(0.02)
    os.kill(workers[0], signal.SIGKILL)
    written, told = lead.communicate(timeout=240)
    assert lead.returncode == 2
    assert f"{IMAGES} of {IMAGES + 1} label maps written" in written
    reasons = [line for line in told.splitlines() if "per second" not in line]
    assert len(reasons) == 1, told
    assert "::bad.jpg: not an image" in reasons[0]
    assert files(out) == files(alone)
    assert outputs(out) == outputs(alone) == sorted(files(alone))
    family |= descendants(lead.pid)
    assert not [pid for pid in family if Path(f"/proc/{pid}/cmdline").exists() and descendants(pid)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "2"], "--workers: only applies to --backend ray"),
        (["--probabilities", "sky", "sky"], "'sky': given 2 times"),
        (["--cpus-per-worker", "2"], "--cpus-per-worker: only applies to --backend ray"),
        (["--backend", "ray", "--workers", "0"], "--workers: 0; expected at least 1"),
        (["--backend", "ray", "--out", "memory://labels"], "memory://labels: "),
        (["--backend", "spark"], "invalid choice: 'spark'"),
    ],
)
def test_wrong_command_lines(
    model_folder: Path,
    shards: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    assert main(["predict", str(model_folder), shards, "--out", str(tmp_path / "out"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_ray_is_named_with_its_extra(
    model_folder: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["predict", str(model_folder), shards, "--out", str(tmp_path / "out"), "--backend", "ray"]) == 2
    assert 'pip install "meanshifter[ray]"' in capsys.readouterr().err


def test_resume_says_what_was_there_and_ctrl_c_how_to_go_on(
    model_folder: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["predict", str(model_folder), shards.replace("{0..1}", "0"), "--out", str(tmp_path / "out")]
    predicted = ms.Predictor.__call__
    calls = []

    def interrupted(self: ms.Predictor, image: Any, **options: Any) -> Any:
        calls.append(image)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return predicted(self, image, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ms.Predictor, "__call__", interrupted)
        assert main(words) == 130
    assert "resume with the same command" in capsys.readouterr().err
    assert len(outputs(tmp_path / "out")) == 3
    assert main(words) == 2  # one sample is no image
    assert f"{IMAGES // 2 - 3} of {IMAGES // 2 - 2} label maps written" in capsys.readouterr().out


def test_an_address_where_no_cluster_answers_is_told_at_once(
    model_folder: Path, shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ray.data")
    words = ["predict", str(model_folder), shards, "--out", str(tmp_path / "out"), "--backend", "ray"]
    assert main([*words, "--address", "127.0.0.1:9"]) == 2
    assert "127.0.0.1:9" in capsys.readouterr().err
