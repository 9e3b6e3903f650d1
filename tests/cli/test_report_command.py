"""`meanshifter report`, and the report at the end of `meanshifter train`, as a process."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.commands import run, start

TINY = (
    *("train", "shapes", "--data.val_pattern", "*[2-9]*", "--data.workers", 0, "--steps", 2, "--batch_size", 2),
    *("--evaluation.interval", 0, "--evaluation.limit", 3, "--model.drop_path", 0, "--out", "run"),
    *("--model.encoder_args", "{patch_size: 16, embed_dim: 24, depth: 1, num_heads: 2}", "--augment.crop", 64),
)
BROKEN = """
import sys, time
from meanshifter.analysis import report
from meanshifter.cli.main import main

def fail(*_, **__):
    print("writing", flush=True)
    {body}

report.report = fail
sys.exit(main(sys.argv[1:]))
"""


def test_train_writes_it_and_the_command_writes_it_again(tmp_path: Path) -> None:
    trained = run(*TINY, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    page = tmp_path / "run" / "report.html"
    assert "report: run/report.html" in trained.stdout
    assert trained.stdout.rstrip().splitlines()[-1].startswith("next: meanshifter predict run")
    said = re.search("^aAcc.*mIoU ([0-9.]+)", trained.stdout, flags=re.MULTILINE)
    assert said is not None
    assert f"<dt>mIoU</dt><dd>{said[1]}</dd>" in page.read_text("utf-8"), "the last is the only evaluation"
    again = run("report", "run", "--limit", 1, "--out", "one.html", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"report: {tmp_path.resolve() / 'one.html'}\n"
    assert "<dt>scored images</dt><dd>1</dd>" in (tmp_path / "one.html").read_text("utf-8")
    other = run("report", "run", "shapes", "--split", "train", "--limit", 2, cwd=tmp_path)
    assert other.returncode == 0, other.stderr
    assert "shapes train, first 2 of" in page.read_text("utf-8")
    for words, named in (
        (("run", "--limit", 0), "limit: 0"),
        (("run", "--data.images", "x"), "--data.images"),
        (("run", "--out", "run"), "--out"),
    ):
        refused = run("report", *words, cwd=tmp_path)
        assert refused.returncode == 2
        assert named in refused.stderr
        assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("body", ["raise RuntimeError('out of ink')", "time.sleep(60)"])
def test_a_report_that_fails_or_is_interrupted_is_no_failed_training(body: str, tmp_path: Path) -> None:
    running = start(*TINY, cwd=tmp_path, code=BROKEN.format(body=body))
    if "sleep" in body:
        while "writing" not in running.out.read_text():
            time.sleep(0.05)
        os.kill(running.pid, signal.SIGINT)
    done = running.wait()
    assert done.returncode == 0
    last = done.stderr.splitlines()[-1]
    assert "meanshifter report run" in last
    assert ("interrupted" if "sleep" in body else "out of ink") in last
    assert "training is complete" in last
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "checkpoints" / "best" / "model.safetensors").is_file()
    assert not (tmp_path / "run" / "report.html").exists()
    assert "next: meanshifter predict run" in done.stdout


def test_it_can_be_left_out(tmp_path: Path) -> None:
    done = run(*TINY, "--no-report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "report" not in done.stdout
    assert not (tmp_path / "run" / "report.html").exists()
