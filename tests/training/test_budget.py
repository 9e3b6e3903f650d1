"""`minutes`: as many steps as fit, then a training like any other."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from meanshifter.errors import InputError
from meanshifter.training import budget
from meanshifter.training import loop as step_module
from meanshifter.training.budget import EVALUATION_SHARE, fit
from meanshifter.training.config import TrainConfig
from meanshifter.training.loop import train
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.sections import EvaluationConfig, OptimizerConfig


@given(
    minutes=st.floats(0.5, 600),
    step=st.floats(0.01, 20),
    image=st.floats(0.001, 5),
    images=st.integers(1, 3000),
    every=st.integers(0, 1000),
)
def test_what_is_planned_fits_and_fills_the_time(
    minutes: float, step: float, image: float, images: int, every: int
) -> None:
    recipe = TrainConfig(
        minutes=minutes, steps=2000, evaluation=EvaluationConfig(interval=every), optimizer=OptimizerConfig(warmup=50)
    )
    planned = fit(recipe, step, image, images, spent=5)
    scored = images if planned.evaluation.limit is None else min(planned.evaluation.limit, images)
    interval = planned.evaluation.interval
    evaluations = planned.steps // interval + (planned.steps % interval > 0) if interval else 1
    seconds = 5 + planned.steps * step + evaluations * scored * image
    assert planned.minutes is None
    if planned.steps > 1:
        assert seconds <= 60 * minutes + 1e-6
        assert seconds >= (1 - EVALUATION_SHARE) * 60 * minutes - step
    assert evaluations <= max(1, -(-2000 // every) if every else 1)
    assert planned.optimizer.warmup <= planned.steps // 10
    assert 1 <= planned.log_every <= max(planned.steps, 1)


def state(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "training.safetensors")


def stored(run: Path) -> dict[str, object]:
    loaded: dict[str, object] = yaml.safe_load((run / "config.yaml").read_text())
    return loaded


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_run_of_some_minutes_is_one_of_its_steps(
    tiny: TrainConfig, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "fit", lambda config, *_, **__: dataclasses.replace(config, minutes=None, steps=6))
    tiny.optimizer.name = name
    run = train(dataclasses.replace(tiny, minutes=0.01), quiet=True).path
    assert (stored(run)["steps"], stored(run)["minutes"]) == (6, None)
    again = train(parse_recipe(run / "config.yaml", ["--out", str(tmp_path / "again")]), quiet=True).path
    ours, theirs = state(run), state(again)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_it_takes_about_the_time_that_was_given(tiny: TrainConfig) -> None:
    tiny = dataclasses.replace(tiny, minutes=0.05, steps=100_000)
    tiny.evaluation.interval = 0
    began = time.perf_counter()
    run = train(tiny, quiet=True).path
    assert int(str(stored(run)["steps"])) > 1
    assert time.perf_counter() - began < 20  # with all that stands before it


def test_a_resumed_run_keeps_its_steps(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = dataclasses.replace(tiny, minutes=0.01)
    losses, stop_at = 0, 2
    crop_loss = step_module.crop_loss

    def interrupting(*args: object) -> torch.Tensor:
        nonlocal losses
        losses += 1
        if losses == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return crop_loss(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(step_module, "crop_loss", interrupting)
    with pytest.raises(KeyboardInterrupt, match="while timing the first steps"):
        train(asked, quiet=True)
    run = Path(str(tiny.out))
    assert stored(run)["minutes"] == 0.01
    assert not (run / "checkpoints").exists()

    monkeypatch.setattr(budget, "fit", lambda config, *_, **__: dataclasses.replace(config, minutes=None, steps=7))
    monkeypatch.setattr(budget, "MEASURED", (1, 1))
    losses, stop_at = 0, 3 + 4
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 7"):
        train(asked, resume=True, quiet=True)
    monkeypatch.undo()
    train(asked, resume=True, quiet=True)
    assert (stored(run)["steps"], stored(run)["minutes"]) == (7, None)
    whole = train(dataclasses.replace(tiny, steps=7, out=f"{run}-whole"), quiet=True).path
    ours, theirs = state(run), state(whole)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("minutes", ["0", "-1", ".nan", ".inf"])
def test_minutes_are_a_time(minutes: str) -> None:
    with pytest.raises(InputError, match=r"minutes: .* must be (above 0|a finite number)"):
        parse_recipe("shapes", [f"--minutes={minutes}"])


def test_minutes_and_steps_are_not_given_together(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"minutes: 5 conflicts with steps 100"):
        parse_recipe("shapes", ["--minutes", "5", "--steps", "100"])
    (tmp_path / "mine.yaml").write_text("data: {name: shapes}\nminutes: 5\n")
    config = parse_recipe(tmp_path / "mine.yaml", ["--steps", "100"])
    assert (config.minutes, config.steps) == (None, 100)
    assert parse_recipe(tmp_path / "mine.yaml").minutes == 5
