"""Early stopping: when it ends a run, that it resumes exactly, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from meanshifter.errors import InputError
from meanshifter.training import loop
from meanshifter.training.budget import fit
from meanshifter.training.config import TrainConfig
from meanshifter.training.loop import train
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.state import Progress, RunFolder


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Callable[[list[float]], None]:
    """Sets the mIoU of the evaluations to come, in place of the measured one."""

    score = loop.score

    def set_scores(values: list[float]) -> None:
        coming = iter(values)

        def scored(*args: Any, **options: Any) -> Any:
            result, boundary = score(*args, **options)
            if "limit" in options:  # timed for the estimate
                return result, boundary
            object.__setattr__(result, "__class__", type("Scored", (type(result),), {"mIoU": next(coming)}))
            return result, boundary

        monkeypatch.setattr(loop, "score", scored)

    return set_scores


def patient(config: TrainConfig, patience: int | None = 2, **fields: Any) -> TrainConfig:
    return replace(config, evaluation=replace(config.evaluation, interval=1, patience=patience), **fields)


def interrupt_after(step: int, patch: pytest.MonkeyPatch) -> None:
    """Let a run end before its next step, as a kill does."""
    take_step = loop.take_step

    def take(*args: Any, **options: Any) -> Any:
        if args[2].state.progress.step == step:
            raise KeyboardInterrupt
        return take_step(*args, **options)

    patch.setattr(loop, "take_step", take)


def progress_of(path: Path) -> Progress:
    loaded = RunFolder(path).load_state()
    assert loaded is not None
    return loaded[1]


def evaluated_steps(run: Path) -> list[int]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "mIoU" in line]


@pytest.mark.parametrize(
    ("values", "end", "best"),
    [
        ([5, 4, 3], 3, 5),
        ([5, 4, 6, 6, 1], 5, 6),  # an equal score is not better
        ([1, 2, 3, 4, 5, 6, 7, 8], 8, 8),
        ([1, 2, 3, 4, 5, 6, 6, 5], 8, 6),  # at the last step there is nothing left to stop
        ([float("nan"), float("nan")], 2, float("-inf")),
    ],
)
def test_a_run_ends_after_so_many_evaluations_without_a_better_one(
    values: list[float],
    end: int,
    best: float,
    tiny: TrainConfig,
    scores: Callable[[list[float]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    scores(values)
    done = train(patient(tiny))
    assert progress_of(done.path).step == end
    assert evaluated_steps(done.path) == list(range(1, end + 1))
    assert (done.best, done.result.mIoU) == (best, values[end - 1]) or best == float("-inf")
    said = [line for line in capsys.readouterr().err.splitlines() if "evaluation.patience" in line]
    assert len(said) == (end < 8)
    if said:
        assert f"after step {end} of 8" in said[0]
        assert f"{best:.2f}" in said[0]


def test_learning_rates_and_weights_are_those_of_the_same_steps_without_patience(
    tiny: TrainConfig, tmp_path: Path, scores: Callable[[list[float]], None]
) -> None:
    scores([5, 4, 3])
    stopped = train(patient(tiny), quiet=True).path
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(3, patch)
        scores([1, 2, 3])
        with pytest.raises(KeyboardInterrupt):
            train(patient(tiny, None, out=str(tmp_path / "whole")), quiet=True)
    for file in ("model.safetensors", "config.json"):
        last = Path("checkpoints") / "last" / file
        assert (stopped / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_resuming_keeps_the_count_and_a_run_that_has_ended_says_so(
    tiny: TrainConfig, scores: Callable[[list[float]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    config = patient(tiny)
    scores([5, 4])
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(config, quiet=True)
    scores([3])
    run = train(config, resume=True, quiet=True).path
    assert (progress_of(run).step, progress_of(run).since_best) == (3, 2)
    before = {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    capsys.readouterr()
    scores([3])
    again = train(config, resume=True)
    assert "evaluation.patience 2: training ends after step 3 of 8" in capsys.readouterr().err
    assert (again.best, again.result.mIoU) == (5, 3)
    assert before == {path: path.read_bytes() for path in run.rglob("*.safetensors")}
    scores([6, 5, 5, 5])  # with more patience it goes on where it was
    assert progress_of(train(patient(tiny, 3), resume=True, quiet=True).path).step == 7


def test_a_checkpoint_from_before_counts_from_zero() -> None:
    assert Progress.from_json('{"step": 3, "best": 1.5, "loss_sum": [0, 0]}').since_best == 0


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (["--evaluation.patience", "2", "--evaluation.interval", "0"], "evaluation.patience: 2, but .*interval is 0"),
        (["--evaluation.patience", "0"], "evaluation.patience: 0 must be at least 1"),
    ],
)
def test_what_contradicts_is_refused(fields: list[str], named: str, tiny_text: str, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(tiny_text)
    with pytest.raises(InputError, match=named):
        parse_recipe(tmp_path / "tiny.yaml", fields)


def test_a_plan_for_minutes_with_one_evaluation_can_be_resumed(tiny: TrainConfig) -> None:
    config = replace(patient(tiny), minutes=1.0)
    planned = fit(config, step_seconds=1.0, image_seconds=10.0, images=2, spent=0.0)
    assert planned.evaluation.interval == planned.steps
    assert planned.violations() == []
