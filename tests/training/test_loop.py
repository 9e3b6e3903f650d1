from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import meanshifter as ms
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.errors import InputError, RunError
from meanshifter.evaluation.metrics import mean_iou, near_boundary
from meanshifter.inference.protocol import as_segmenter
from meanshifter.model import saving
from meanshifter.model.config import MeanShiftConfig
from meanshifter.model.mean_shift import MeanShift
from meanshifter.training import loop, state
from meanshifter.training import loop as step_module
from meanshifter.training.config import TrainConfig
from meanshifter.training.data_record import DataRecord
from meanshifter.training.loop import train
from meanshifter.training.setup import build_model, open_data
from meanshifter.training.state import RunFolder, TrainState
from meanshifter.utils.distributed import Processes


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve(run: Path) -> list[tuple[float, ...]]:
    """What of the metrics does not depend on the clock."""
    return [tuple(line[key] for key in ("step", "loss", "lr", "mIoU") if key in line) for line in metrics(run)]


def test_a_run_leaves_what_the_run_folder_promises(tiny: TrainConfig) -> None:
    trained = train(tiny, quiet=True)
    run = trained.path
    for name in ("config.yaml", "metrics.jsonl", "checkpoints/last/training.safetensors"):
        assert (run / name).is_file(), name
    assert list(run.glob("events.*"))
    assert ms.load_model(run).label_space == Shapes().label_space
    lines = metrics(run)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8]
    assert [line["step"] for line in lines if "mIoU" in line] == [4, 8]
    assert trained.best == max(line["mIoU"] for line in lines if "mIoU" in line)
    assert not list(run.rglob(".*")), "nothing half-written is left"


def test_a_run_can_be_validated_on_the_images_that_it_holds_out(tiny: TrainConfig) -> None:
    train_set, val_set = open_data(dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, val_split="held_out")))
    assert not {*train_set.names} & {*val_set.names}
    assert {*train_set.names} | {*val_set.names} == {*Shapes(split="train").names}
    assert all(set(name.removeprefix("train_")) & set("23456789") for name in val_set.names)


def test_each_evaluation_leaves_scores_per_class_and_near_boundaries(tiny: TrainConfig, tmp_path: Path) -> None:
    run = train(tiny, quiet=True).path
    shapes, model = Shapes(), ms.load_model(run / "checkpoints" / "last")
    predictor = ms.Predictor(model, window=None, short_side=None)
    near = np.zeros((2, 7, 7), np.int64)
    for sample in (shapes[0], shapes[1]):
        found = predictor(sample.image).labels
        for radius, counts in zip((3, 9), near, strict=True):
            where = near_boundary(sample.labels, radius, 255) & (sample.labels != 255)
            np.add.at(counts, (sample.labels[where], found[where]), 1)
    result = ms.evaluate(predictor, shapes, limit=2)
    line = next(line for line in reversed(metrics(run)) if "mIoU" in line)
    per_class: Any = line["IoU"]
    assert list(per_class) == list(shapes.label_space.names)
    for name, score in result.per_class.items():
        assert per_class[name] == (None if np.isnan(score.IoU) else pytest.approx(score.IoU))
    assert [line["boundary_3"], line["boundary_9"]] == pytest.approx(mean_iou(near).tolist())
    table = (run / "per_class.md").read_text()
    assert table.startswith("Step 8\n")
    assert result.table().splitlines()[:-1] == table.splitlines()[2:-1]


def test_a_class_without_a_score_is_null(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    score = loop.score

    def without_cross(*args: Any, **options: Any) -> Any:
        result, boundary = score(*args, **options)
        confusion = result.confusion.copy()
        confusion[6] = confusion[:, 6] = 0
        return dataclasses.replace(result, confusion=confusion), boundary

    monkeypatch.setattr(loop, "score", without_cross)
    run = train(tiny, quiet=True).path
    lines = (run / "metrics.jsonl").read_text().splitlines()
    scored = [json.loads(line, parse_constant=pytest.fail) for line in lines if "mIoU" in line]
    assert [line["IoU"]["cross"] for line in scored] == [None, None]
    assert all(line["IoU"]["background"] is not None for line in scored)


def test_a_signal_ends_a_run_that_waits_for_data(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    next_crops, calls = step_module.next_crops, 0

    def stuck(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            pytest.fail("the wait went on")
        return next_crops(*args, **options)

    monkeypatch.setattr("meanshifter.training.loop.next_crops", stuck)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 3 of 8; resume with the same command and --resume"):
        train(tiny, quiet=True)
    monkeypatch.undo()
    train(tiny, resume=True, quiet=True)
    train(dataclasses.replace(tiny, out=str(tmp_path / "whole")), quiet=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_training_learns(tiny: TrainConfig) -> None:
    config = dataclasses.replace(tiny, steps=60, batch_size=8, log_every=10, ema=None, evaluation=tiny.evaluation)
    config.evaluation.interval = 0
    losses = [line["loss"] for line in metrics(train(config, quiet=True).path) if "loss" in line]
    assert losses[-1] < losses[0] - 0.08


@pytest.mark.parametrize(("stopped_at", "gpu_cache"), [(3, False), (5, False), (5, True)])
def test_a_stopped_run_resumes_to_the_same_weights(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int, gpu_cache: bool
) -> None:
    tiny = dataclasses.replace(tiny, data=dataclasses.replace(tiny.data, gpu_cache=gpu_cache))
    whole = dataclasses.replace(tiny, out=str(tmp_path / "whole"))
    train(whole, quiet=True)

    calls = 0
    crop_loss = step_module.crop_loss

    def interrupting(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == stopped_at:
            os.kill(os.getpid(), signal.SIGINT)
        return crop_loss(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(step_module, "crop_loss", interrupting)
    with pytest.raises(
        KeyboardInterrupt, match=f"stopped after step {stopped_at} of 8; resume with the same command and --resume"
    ):
        train(tiny, quiet=True)
    monkeypatch.undo()
    train(tiny, resume=True, quiet=True)
    for name in ("model.safetensors", "training.safetensors"):
        ours, theirs = (load_file(tmp_path / run / "checkpoints" / "last" / name) for run in ("run", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_a_loss_that_is_not_finite_stops_before_the_weights(tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    crop_loss = step_module.crop_loss

    def poisoned(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        loss = crop_loss(*args)  # type: ignore[arg-type]
        return loss * float("nan") if calls == 5 else loss

    monkeypatch.setattr(step_module, "crop_loss", poisoned)
    with pytest.raises(RunError, match="step 5: the loss is nan") as caught:
        train(tiny, quiet=True)
    run = Path(str(tiny.out))
    kept = load_file(run / "nonfinite" / "step_5.safetensors")
    assert kept["images"].shape == (2, 3, 64, 64)
    assert kept["labels"].shape == (2, 64, 64)
    assert str(run / "nonfinite" / "step_5.safetensors") in str(caught.value)
    last = load_file(run / "checkpoints" / "last" / "training.safetensors")
    assert all(value.isfinite().all() for value in last.values())


def test_a_gradient_that_is_not_finite_stops_before_the_weights(
    tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    crop_loss = step_module.crop_loss

    class Poison(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, loss: torch.Tensor) -> torch.Tensor:
            return loss.clone()

        @staticmethod
        def backward(ctx: object, *upstream: torch.Tensor) -> torch.Tensor:
            return upstream[0] * float("inf")

    monkeypatch.setattr(step_module, "crop_loss", lambda *args: Poison.apply(crop_loss(*args)))
    with pytest.raises(RunError, match="step 1: the gradient is"):
        train(tiny, quiet=True)
    assert not (Path(str(tiny.out)) / "checkpoints").exists()


def test_a_run_that_failed_before_its_first_checkpoint_starts_again_with_resume(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crop_loss = step_module.crop_loss
    monkeypatch.setattr(step_module, "crop_loss", lambda *args: crop_loss(*args) * float("nan"))
    with pytest.raises(RunError, match="no checkpoint was written yet"):
        train(tiny, quiet=True)
    monkeypatch.undo()
    train(tiny, resume=True, quiet=True)
    whole = dataclasses.replace(tiny, out=str(tmp_path / "whole"))
    train(whole, quiet=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_fields_that_do_not_change_the_weights_may_differ_in_a_resumed_run(tiny: TrainConfig) -> None:
    train(tiny, quiet=True)
    longer = dataclasses.replace(tiny, evaluation=dataclasses.replace(tiny.evaluation, limit=1))
    assert train(longer, resume=True, quiet=True).result.protocol.images == 1


def test_batches_made_on_the_device_teach_the_same(tiny: TrainConfig, tmp_path: Path) -> None:
    """Losses hardly move in eight steps; what the weights learned differs by far less than they moved."""
    tiny.optimizer = dataclasses.replace(tiny.optimizer, name="sgd", lr=0.1, head_lr=None)
    start = dict(build_model(tiny, Shapes().label_space).named_parameters())
    moves = []
    for name, gpu_cache in (("workers", False), ("device", True)):
        data = dataclasses.replace(tiny.data, gpu_cache=gpu_cache)
        run = train(dataclasses.replace(tiny, data=data, out=str(tmp_path / name)), quiet=True).path
        state = load_file(run / "checkpoints" / "last" / "training.safetensors")
        moves.append(torch.cat([(state[f"model.{key}"] - value).flatten() for key, value in start.items()]))
    assert (moves[0] - moves[1]).norm() < 0.05 * moves[0].norm()


def test_the_best_of_all_evaluations_is_kept_also_where_it_is_resumed(
    tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scores 50, 60, 60, 40: the second 60 is best, and 40 after resuming does not take its place."""
    tiny.evaluation.interval = 2
    scores, kept = iter((50.0, 60.0, 60.0)), {}
    run = Path(str(tiny.out))

    def save(run: RunFolder, state: TrainState, _: float, processes: Processes) -> None:
        score = next(scores)
        kept[state.progress.step] = {key: value.clone() for key, value in state.evaluated.state_dict().items()}
        save_best(run, state, score, processes)

    save_best = RunFolder.save_best
    monkeypatch.setattr(RunFolder, "save_best", save)
    with pytest.raises(StopIteration):  # in place of the fourth score
        train(tiny, quiet=True)
    scores = iter((40.0,))
    assert train(tiny, resume=True, quiet=True).best == 60.0
    best, last = (load_file(run / "checkpoints" / name / "model.safetensors") for name in ("best", "last"))
    assert all(torch.equal(best[key], kept[6][key]) for key in best)
    assert all(torch.equal(last[key], kept[8][key]) for key in last)
    assert not all(torch.equal(best[key], last[key]) for key in best)


def test_a_block_is_calibrated_on_the_crops_of_the_first_step(
    tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.model.mean_shift, tiny.steps = MeanShiftConfig(layers=1, channels=8, init_neighbors=4.0), 1
    seen, calibrate = [], MeanShift.calibrate

    def watched(self: MeanShift, tokens: torch.Tensor, *grid: Any) -> None:
        seen.append(len(tokens))
        calibrate(self, tokens, *grid)

    monkeypatch.setattr(MeanShift, "calibrate", watched)
    train(tiny, quiet=True)
    assert seen == [tiny.batch_size]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_mixed_precision_clipping_and_cosine_go_together(tiny: TrainConfig, name: Any) -> None:
    tiny.precision = "bf16"
    tiny.optimizer = dataclasses.replace(tiny.optimizer, name=name, clip_norm=0.1, schedule="cosine", warmup=2)
    trained = train(tiny, quiet=True)
    assert trained.result.protocol.precision == "bf16"
    assert all(np.isfinite(line["loss"]) for line in metrics(trained.path) if "loss" in line)


@pytest.mark.parametrize("reduction", ["mean_valid", "mean_all"])
def test_accumulated_parts_are_one_batch(tiny: TrainConfig, tmp_path: Path, reduction: Any) -> None:
    tiny.optimizer.name, tiny.optimizer.lr = "sgd", 0.1
    tiny.loss.reduction, tiny.loss.class_weight_power = reduction, 0.5
    states = []
    for name, batch_size, accumulate in (("one", 4, 1), ("parts", 2, 2)):
        config = dataclasses.replace(
            tiny, out=str(tmp_path / name), batch_size=batch_size, accumulate=accumulate, steps=2
        )
        states.append(load_file(train(config, quiet=True).path / "checkpoints" / "last" / "model.safetensors"))
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-4, atol=1e-6)


def test_an_evaluation_that_was_stopped_is_made_up_for(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(dataclasses.replace(tiny, out=str(tmp_path / "whole")), quiet=True)
    score = loop.score

    def stopped(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return score(*args, **options)

    monkeypatch.setattr(loop, "score", stopped)
    with pytest.raises(KeyboardInterrupt, match="stopped after step 4 of 8, before its evaluation"):
        train(tiny, quiet=True)
    assert [line["step"] for line in metrics(tmp_path / "run")] == [2, 4]
    monkeypatch.undo()
    train(tiny, resume=True, quiet=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_a_score_that_was_logged_but_not_saved_is_logged_once(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(dataclasses.replace(tiny, out=str(tmp_path / "whole")), quiet=True)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "save_best", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, quiet=True)
    monkeypatch.undo()
    assert "mIoU" in metrics(tmp_path / "run")[-1]
    train(tiny, resume=True, quiet=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_a_run_folder_in_use_is_refused(tiny: TrainConfig, tmp_path: Path) -> None:
    train(tiny, quiet=True)
    hold = "import sys, time; from pathlib import Path; from meanshifter.utils.files import Lock\n"
    hold += f"lock = Lock(Path({str(tmp_path / 'run' / '.lock')!r})); lock.take('taken')\n"
    hold += "print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=rf"another process is training .*\(process {holder.pid} on "):
            train(tiny, resume=True, quiet=True)
        holder.kill()
    train(tiny, resume=True, quiet=True)
    assert not (tmp_path / "run" / ".lock").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = saving.save_tensors

    def full(path: Path, tensors: Any, metadata: Any) -> None:
        if json.loads(metadata["facts"])["step"] > 4:
            raise InputError(f"{path}: cannot be written (No space left on device); choose a place with space")
        write(path, tensors, metadata)

    monkeypatch.setattr(state, "save_tensors", full)
    with pytest.raises(RunError, match=r"No space left on device.*the previous checkpoint is intact.*--resume"):
        train(tiny, quiet=True)
    monkeypatch.undo()
    assert ms.load_model(tmp_path / "run" / "checkpoints" / "last").label_space == Shapes().label_space
    train(tiny, resume=True, quiet=True)
    train(dataclasses.replace(tiny, out=str(tmp_path / "whole")), quiet=True)
    assert curve(tmp_path / "run") == curve(tmp_path / "whole")


def test_a_step_may_be_split_otherwise_when_a_run_is_resumed(tiny: TrainConfig, tmp_path: Path) -> None:
    train(dataclasses.replace(tiny, out=str(tmp_path / "whole")), quiet=True)
    folder = state.RunFolder(tmp_path / "run")
    folder.claim(tiny, DataRecord.of(*open_data(tiny)), resume=False)
    folder.release()
    (tmp_path / "run" / "checkpoints").mkdir()
    with pytest.raises(InputError, match="is 4, but was 2"):
        train(dataclasses.replace(tiny, accumulate=2), resume=True, quiet=True)
    train(dataclasses.replace(tiny, batch_size=1, accumulate=2), resume=True, quiet=True)
    ours, theirs = ([line["loss"] for line in metrics(tmp_path / run) if "loss" in line] for run in ("run", "whole"))
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_segmenter_recipe_with_the_block_given_is_a_meanshifter(tiny: TrainConfig) -> None:
    tiny.model.mean_shift = MeanShiftConfig(layers=2, channels=8)
    run = train(tiny, quiet=True).path
    model = as_segmenter(ms.load_model(run))
    assert isinstance(model.mean_shift, MeanShift)
    assert (model.mean_shift.layers, model.mean_shift.channels) == (2, 8)
    evaluations = [line for line in metrics(run) if "mIoU" in line]
    assert all(1 <= line["step2/neighbors"] <= 200 and line["step2/boundary_3"] >= 0 for line in evaluations)


def test_signals_are_left_alone_after_a_run(tiny: TrainConfig) -> None:
    before = signal.getsignal(signal.SIGINT)
    train(tiny, quiet=True)
    assert signal.getsignal(signal.SIGINT) is before
