"""What a person sees of a training before its first figures, and while it runs."""

from __future__ import annotations

import dataclasses
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.progress
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from meanshifter.training import display
from meanshifter.training.config import TrainConfig
from meanshifter.training.display import Pace, spell
from meanshifter.training.loop import train


def test_the_bar_of_a_terminal_moves_with_the_steps(tiny: TrainConfig, tmp_path: Path) -> None:
    main, side = pty.openpty()
    command = [sys.executable, "-m", "meanshifter", "train", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "r")]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(command, stderr=side, stdout=subprocess.DEVNULL, env=environment) as process:
        os.close(side)
        shown = b""
        try:
            while part := os.read(main, 65536):
                shown += part
        except OSError:  # what Linux says where macOS says nothing: the process has ended
            pass
        assert process.wait() == 0
    os.close(main)
    assert b"8/8" in shown
    assert b" left" in shown


def test_each_step_is_shown(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    completed = []
    update = rich.progress.Progress.update

    def noting(self: Any, *args: Any, **values: Any) -> None:
        completed.append(values.get("completed"))
        update(self, *args, **values)

    monkeypatch.setattr(rich.progress.Progress, "update", noting)
    train(tiny, quiet=True)
    assert [done for done in completed if done is not None] == list(range(9))


def test_classes_and_ignored_pixels_are_told_before_the_first_step(
    tiny: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    for number in range(4):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / f"data/images/{number}.png")
        mask = np.array([0, 1, 2, 255], np.uint8)[np.arange(64 * 64).reshape(64, 64) % 4]
        Image.fromarray(mask).save(tmp_path / f"data/masks/{number}.png")
    (tmp_path / "data/classes.txt").write_text("a\nb\nc\n")
    data = dataclasses.replace(tiny.data, name="folder", root=str(tmp_path / "data"))
    run = train(dataclasses.replace(tiny, data=data, steps=2)).path
    lines = capsys.readouterr().err.splitlines()
    place = next(k for k, line in enumerate(lines) if "3 classes (a, b, c)" in line and "classes.txt" in line)
    assert "25.0% of the pixels" in lines[place]
    assert not any("loss" in line for line in lines[: place + 1])
    assert "25.0% of all" in (run / "per_class.md").read_text()


def test_lines_say_what_is_trained_and_how_long_it_takes(
    tiny: TrainConfig, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "LONG", 0)
    tiny = dataclasses.replace(tiny, steps=12, log_every=11)
    train(tiny)
    lines = capsys.readouterr().err.splitlines()
    before = "\n".join(lines[:3])
    for fact in (
        "shapes",
        "16 training images",
        "2 validation images",
        "7 classes (background",
        "segmenter-ti16",
        "cpu, fp32",
    ):
        assert fact in before
    parameters = re.search(r"([\d,]+) parameters", before)
    assert parameters is not None
    assert int(parameters[1].replace(",", "")) > 1000
    assert "12 steps of 2 crops of 64×64" in before
    assert re.search(r"3/12 · about \d+ s in total, evaluations included", lines[3])
    assert "--minutes 30" in lines[4]
    assert "--size 32" in lines[4]
    assert any(re.search(r"10/12 · about \d+ s left", line) for line in lines)
    assert any(re.search(r"11/12 · loss .* · about \d+ s left", line) for line in lines)


@pytest.mark.parametrize(("warmup", "told"), [(2, True), (1, False)])
def test_a_warmup_that_never_ends_is_told(
    warmup: int, told: bool, tiny: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    train(dataclasses.replace(tiny, steps=2, optimizer=dataclasses.replace(tiny.optimizer, warmup=warmup)))
    assert ("optimizer.warmup: 2 of 2 steps" in capsys.readouterr().err) == told


class Clock:
    """Time that passes only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(
    every=st.integers(0, 40),
    steps=st.integers(4, 300),
    seconds=st.floats(0.01, 10),
    evaluation=st.floats(0, 1000),
    done=st.integers(3, 300),
)
def test_the_estimate_is_the_steps_and_evaluations_to_come(
    every: int, steps: int, seconds: float, evaluation: float, done: int
) -> None:
    done = min(done, steps)
    clock, patch = Clock(), pytest.MonkeyPatch()
    patch.setattr("meanshifter.training.display.time.perf_counter", clock)
    try:
        pace = Pace(steps, every)
        clock.now += 500  # the first steps, which compile
        pace.step()
        for _ in range(done - 1):
            clock.now += seconds
            pace.step()
        pace.evaluation = evaluation
        due = [n for n in range(done + 1, steps + 1) if n == steps or (every and n % every == 0)]
        left = (steps - done) * seconds + len(due) * evaluation
        assert pace.left(done) == pytest.approx(left, rel=1e-6, abs=1e-6)
        assert pace.whole(done) == pytest.approx(left + clock.now, rel=1e-6)
    finally:
        patch.undo()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (3600, "60 min"), (7800, "2 h 10 min"), (274_000, "3 days 4 h")],
)
def test_durations_are_spelled_to_be_read(seconds: float, text: str) -> None:
    assert spell(seconds) == text
