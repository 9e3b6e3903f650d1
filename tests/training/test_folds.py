"""Cross-validation: how images are divided, what each run sees, its scores and label maps, and resuming."""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.data.folds import fold_numbers
from meanshifter.errors import InputError
from meanshifter.evaluation import confusion_matrix, weights_hash
from meanshifter.evaluation.predictions import evaluate_predictions
from meanshifter.inference.ensemble import Ensemble
from meanshifter.training import folds as module
from meanshifter.training import loop
from meanshifter.training.config import TrainConfig
from meanshifter.training.folds import CrossValidation, cross_validate
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.setup import open_training_data
from tests import commands
from tests.training.test_resuming import LABELS, SHAPES, write_pair

NAMES = ("a1", "a2", "b1", "c1", "c2", "c3", "d1")


@settings(max_examples=30)
@given(st.sets(st.text(min_size=1), min_size=5, max_size=40), st.integers(2, 5), st.integers(0, 3), st.randoms())
def test_folds_are_equal_in_size_and_do_not_depend_on_the_order(
    names: set[str], folds: int, seed: int, random: Any
) -> None:
    ordered = sorted(names)
    numbers = dict(zip(ordered, fold_numbers(ordered, folds, seed=seed), strict=True))
    sizes = [list(numbers.values()).count(fold) for fold in range(folds)]
    assert max(sizes) - min(sizes) <= 1
    random.shuffle(ordered)
    assert dict(zip(ordered, fold_numbers(ordered, folds, seed=seed), strict=True)) == numbers


@settings(max_examples=30)
@given(st.lists(st.integers(0, 9), min_size=30, max_size=60), st.integers(2, 3))
def test_groups_stay_together_and_no_fold_is_empty(groups: list[int], folds: int) -> None:
    names = [f"p{group}/{place}" for place, group in enumerate(groups)]
    if len(set(groups)) < folds:
        return
    numbers = fold_numbers(names, folds, groups=r"^p(\d)/")
    where = {(group, number) for group, number in zip(groups, numbers, strict=True)}
    assert len(where) == len(set(groups))
    assert set(numbers) == set(range(folds))
    sizes = [numbers.count(fold) for fold in range(folds)]
    assert max(sizes) - min(sizes) <= max(groups.count(group) for group in set(groups))


def test_another_seed_divides_otherwise() -> None:
    names = [str(number) for number in range(40)]
    assert fold_numbers(names, 5, seed=0) != fold_numbers(names, 5, seed=1)
    assert fold_numbers(names, 5, seed=0)[:6] == [0, 2, 0, 0, 4, 1]  # changing it would change every stored run


def test_what_cannot_be_divided_is_refused() -> None:
    with pytest.raises(InputError, match=r"data\.folds: 3, but there are only 2 training images"):
        fold_numbers(["a", "b"], 3)
    with pytest.raises(InputError, match="only 3 training images in 1 groups"):
        fold_numbers(["a1", "a2", "a3"], 2, groups="([a-z])")
    with pytest.raises(InputError, match=r"data\.fold_groups: '\(x\)' does not match the image 'a'"):
        fold_numbers(["a", "x"], 2, groups="(x)")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, tiny_text: str) -> Path:
    root = tmp_path_factory.mktemp("folds")
    for split, names in (("train", NAMES), ("val", ("v", "w"))):
        for name in names:
            write_pair(root / "data", split, name)
    (root / "data" / "labels.json").write_text(json.dumps(LABELS))
    (root / "recipe.yaml").write_text(tiny_text.replace(SHAPES, "name: folder").replace("steps: 8", "steps: 4"))
    cross_validate(configured(root), quiet=True)
    return root


def configured(root: Path, *fields: str) -> TrainConfig:
    words = ["--data.root", str(root / "data"), "--out", str(root / "cv"), "--data.folds", "3", "--save_every", "1"]
    return parse_recipe(root / "recipe.yaml", [*words, "--data.fold_groups", "^([a-z])", *fields])


@pytest.fixture
def done(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


def files(cv: Path, *, logs: bool = False) -> dict[str, bytes]:
    """What resuming must reproduce; logs hold times."""
    kinds = (".safetensors", ".png", ".json", *((".jsonl", ".yaml") if logs else ()))
    return {str(path.relative_to(cv)): path.read_bytes() for path in cv.rglob("*") if path.suffix in kinds}


def resumed(root: Path, *fields: str) -> CrossValidation:
    return cross_validate(configured(root, *fields), resume=True, quiet=True)


def test_every_image_is_labeled_once_by_a_run_that_has_not_seen_it(done: Path) -> None:
    trained = [json.loads((done / f"cv/fold{k}/data.json").read_text())["train"]["names"] for k in range(3)]
    left_out = [set(NAMES) - set(names) for names in trained]
    assert sorted(name for names in left_out for name in names) == sorted(NAMES)
    assert {frozenset(name[0] for name in names) for names in left_out} in ({frozenset("c"), *more} for more in TWO)
    maps = sorted(path.stem for path in (done / "cv/out_of_fold").iterdir())
    assert maps == sorted(NAMES)
    for k, names in enumerate(left_out):
        predictor = ms.Predictor(done / f"cv/fold{k}", window=None, short_side=None)
        for name in names:
            labels = np.array(Image.open(done / f"cv/out_of_fold/{name}.png"))
            assert np.array_equal(labels, predictor(done / f"data/images/train/{name}.png").labels)


TWO = (
    {frozenset("a"), frozenset("bd")},
    {frozenset("ab"), frozenset("d")},
    {frozenset("ad"), frozenset("b")},
)
"""The divisions of the other groups among which the draw decides."""


def test_scores_are_those_of_the_label_maps(done: Path) -> None:
    found = resumed(done)
    dataset = ms.datasets.Folder(done / "data", "train")
    whole = evaluate_predictions(done / "cv/out_of_fold", dataset)
    assert np.array_equal(found.pooled.confusion, whole.confusion)
    assert (found.pooled.mIoU, found.pooled.ignored) == (whole.mIoU, whole.ignored)
    values = []
    for k, result in enumerate(found.folds):
        fold = open_training_data(replace(configured(done), data=replace(configured(done).data, fold=k)))[1]
        assert fold is not None
        expected = ms.evaluate(ms.Predictor(done / f"cv/fold{k}", window=None, short_side=None), fold)
        assert np.array_equal(result.confusion, expected.confusion)
        assert str(result.protocol) == str(expected.protocol)
        assert f"train, fold {k} of 3, {len(fold)} images" in str(expected.protocol)
        values.append(expected.mIoU)
    assert found.mean() == pytest.approx(statistics.mean(values))
    assert found.sd() == pytest.approx(np.std(values, ddof=1))
    stored = json.loads((done / "cv/folds.json").read_text())
    assert stored["mean"]["mIoU"] == found.mean()
    assert [entry["mIoU"] for entry in stored["folds"]] == values
    assert stored["pooled"]["protocol"]["weights"] == "+".join(result.protocol.weights for result in found.folds)
    assert "folder train, out of fold (3 folds), 7 images" in found.table()
    assert f"{found.mean():.2f} ± {found.sd():.2f}" in found.table()


def test_the_folder_is_the_ensemble_of_the_best_checkpoints(done: Path) -> None:
    loaded = ms.load_model(done / "cv")
    assert isinstance(loaded, Ensemble)
    runs = [ms.load_model(done / f"cv/fold{k}/checkpoints/best") for k in range(3)]
    assert [weights_hash(member.state_dict()) for member in loaded.members] == [
        weights_hash(run.state_dict()) for run in runs
    ]
    image = done / "data/images/val/v.png"
    assert np.array_equal(ms.Predictor(done / "cv")(image).labels, ms.Predictor(runs)(image).labels)


def test_finished_folds_are_not_trained_again(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(done / "cv", logs=True)
    monkeypatch.setattr(module, "train_config", None)
    resumed(done)
    assert files(done / "cv", logs=True) == before
    (done / "cv/out_of_fold/a1.png").unlink()
    with pytest.raises(TypeError):  # its fold is no longer finished
        resumed(done)


@pytest.mark.parametrize("left", ["nothing", "maps", "scores", "partial", "lock"])
def test_a_kill_at_any_point_is_resumed_to_the_same_files(left: str, done: Path) -> None:
    whole = files(done / "cv")
    for name in ("folds.json", "ensemble.json"):
        (done / "cv" / name).unlink()
    if left in ("nothing", "lock", "partial"):
        shutil.rmtree(done / "cv/fold2")
    if left in ("lock", "partial"):  # killed before config.yaml was written
        (done / "cv/fold2").mkdir()
        (done / "cv/fold2/.lock").touch()
    if left == "partial":
        (done / "cv/fold2/.config.yaml.123.tmp").touch()
    if left in ("scores", "maps"):
        (done / "cv/fold1/out_of_fold.json").unlink()
    if left == "maps":
        shutil.rmtree(done / "cv/out_of_fold")
    resumed(done)
    assert files(done / "cv") == whole


def test_a_run_that_was_stopped_within_a_fold_is_resumed_exactly(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files(done / "cv")
    shutil.rmtree(done / "cv")
    with monkeypatch.context() as patch:
        calls, take_step = [], loop.take_step

        def take(*args: Any, **options: Any) -> Any:
            calls.append(args)
            if len(calls) == 7:  # the third step of the second fold
                raise KeyboardInterrupt
            return take_step(*args, **options)

        patch.setattr(loop, "take_step", take)
        with pytest.raises(KeyboardInterrupt):
            cross_validate(configured(done), quiet=True)
    assert not (done / "cv/fold2").exists()
    resumed(done)
    assert files(done / "cv") == whole


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (["--data.folds", "4"], r"fold0: data\.folds is 4, but was 3"),
        (["--seed", "1"], "fold0: seed is 1, but was 0"),
        (["--data.fold_groups", "null"], r"fold0: data\.fold_groups is None, but was "),
        (["--evaluation.patience", "1"], r"fold0: evaluation\.patience is 1, but was None"),
    ],
)
def test_resuming_with_other_settings_is_refused(fields: list[str], named: str, done: Path) -> None:
    before = files(done / "cv", logs=True)
    with pytest.raises(InputError, match=named):
        resumed(done, *fields)
    assert files(done / "cv", logs=True) == before


def test_data_that_changed_are_refused_before_any_training(done: Path) -> None:
    shutil.rmtree(done / "cv/fold2")
    write_pair(done / "data", "train", "c4")
    with pytest.raises(InputError, match=r"fold\d: the data have changed .*'c4'"):
        resumed(done)
    assert not (done / "cv/fold2").exists()


def test_folders_that_are_taken_or_empty_are_refused(done: Path) -> None:
    with pytest.raises(InputError, match=r"cv: already exists; .*--resume"):
        cross_validate(configured(done), quiet=True)
    with pytest.raises(InputError, match="none: no folds to resume"):
        resumed(done, "--out", str(done / "none"))


def test_without_a_val_split_the_final_weights_are_scored(done: Path) -> None:
    shutil.rmtree(done / "data/images/val")
    shutil.rmtree(done / "data/masks/val")
    with pytest.raises(InputError, match=r"no split 'val'.*--data\.val_split null"):
        cross_validate(configured(done, "--out", str(done / "own")), quiet=True)
    config = configured(done, "--out", str(done / "own"), "--data.val_split", "null")
    found = cross_validate(config, quiet=True)
    members = json.loads((done / "own/ensemble.json").read_text())["members"]
    assert [entry["path"] for entry in members] == [f"fold{k}/checkpoints/last" for k in range(3)]
    assert found.checkpoint == "last"
    assert "checkpoints/last" in found.table()
    left_out = json.loads((done / "own/fold0/data.json").read_text())
    assert not set(left_out["val"]["names"]) & set(left_out["train"]["names"])
    with pytest.raises(InputError, match=r"evaluation\.patience: 1, but data\.val_split is null"):
        configured(done, "--data.val_split", "null", "--evaluation.patience", "1")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (["--data.folds", "1"], r"data\.folds: 1 must be at least 2"),
        (["--data.fold", "3"], r"data\.fold: 3 must be from 0 to 2"),
        (["--data.folds", "null", "--data.fold", "0"], r"data\.fold: 0, but data\.folds is null"),
        (["--data.folds", "null"], r"data\.fold_groups: .*, but data\.folds is null"),
        (["--data.fold_groups", "(a)(b)"], r"data\.fold_groups: '\(a\)\(b\)' has 2 groups"),
        (["--data.fold_groups", "a"], r"data\.fold_groups: 'a' has 0 groups"),
        (["--data.fold_groups", "(a"], r"data\.fold_groups: '\(a' is not a regular expression"),
        (
            ["--data.folds", "null", "--data.fold_groups", "null", "--data.val_split", "null"],
            r"data\.val_split: null, but data\.folds is null",
        ),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: list[str], named: str, original: Path) -> None:
    with pytest.raises(InputError, match=named) as raised:
        configured(original, *fields)
    found = str(raised.value).split("; data.")
    assert len(found) == len({phrase.removeprefix("data.") for phrase in found}), "each once"


def test_train_and_cross_validate_name_each_other(original: Path) -> None:
    with pytest.raises(InputError, match=r"data\.fold: null, .*--folds 3 or meanshifter\.cross_validate"):
        ms.train(replace(configured(original), out="none"), quiet=True)
    with pytest.raises(InputError, match=r"data\.folds: 3 with data\.fold 1"):
        cross_validate(configured(original, "--data.fold", "1"))


def test_a_single_fold_is_a_run_like_any_other(done: Path) -> None:
    path = ms.train(configured(done, "--data.fold", "1", "--out", str(done / "one")), quiet=True).path
    for file in ("model.safetensors", "training.safetensors"):
        last = Path("checkpoints") / "last" / file
        assert (path / last).read_bytes() == (done / "cv/fold1" / last).read_bytes()


def command(root: Path, *words: str) -> list[str]:
    fields = ["--data.root", str(root / "data"), "--out", str(root / "run"), "--save_every", "1"]
    return ["train", str(root / "recipe.yaml"), "--folds", "3", "--fold-groups", "^([a-z])", *fields, *words]


def test_the_command_is_killed_and_resumed(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    started = commands.start(*command(done), cwd=done)
    while not (done / "run/fold1/checkpoints/last/training.safetensors").exists():
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert not (done / "run/ensemble.json").exists()
    assert main(command(done)) == 2
    assert "run: already exists; continue it with --resume" in capsys.readouterr().err
    assert main(command(done, "--data.folds", "3")) == 2
    assert "--data.folds: also given" in capsys.readouterr().err
    ended = commands.run(*command(done, "--resume"), cwd=done)
    assert ended.returncode == 0, ended.stderr
    assert "pooled mIoU" in ended.stdout
    assert files(done / "run") == files(done / "cv")
    assert main(["predict", str(done / "run"), str(done / "data/images/val/v.png"), "--out", str(done / "maps")]) == 0
    assert (done / "maps/v.png").is_file()
    assert main(["evaluate", str(done / "run"), str(done / "data"), "--device", "cpu"]) == 0
    assert "folder val, 2 images" in capsys.readouterr().out


def test_two_processes_write_what_one_writes_and_stop_early_together(done: Path) -> None:
    # the weights stay as they are, so that no evaluation is better than the first
    still = ["--optimizer.name", "sgd", "--ema", "null", "--optimizer.weight_decay", "0"]
    still += [word for name in ("lr", "head_lr", "min_lr") for word in (f"--optimizer.{name}", "1e-30")]
    patience = ["--evaluation.interval", "1", "--evaluation.patience", "1"]
    words = command(done, "--devices", "2", "--batch_size", "1", "--accelerator", "cpu", *still, *patience)
    line = [sys.executable, "-m", "meanshifter", *words]  # Fabric starts the other process with these words
    ended = subprocess.run(line, capture_output=True, text=True, timeout=240, cwd=done, check=False)
    assert (ended.returncode, ended.stdout.count("pooled mIoU")) == (0, 1), ended.stderr
    assert ended.stderr.count("evaluation.patience 1: training ends after step 2 of 4") == 3
    assert sorted(files(done / "run")) == sorted(files(done / "cv"))
    found = json.loads((done / "run/folds.json").read_text())
    dataset = ms.datasets.Folder(done / "data", "train")
    pairs = [(np.array(Image.open(done / f"run/out_of_fold/{s.name}.png")), s.labels) for s in dataset]
    total = sum(confusion_matrix(labels, pixels, 3, ignore=255) for pixels, labels in pairs)
    assert found["pooled"]["confusion"] == np.asarray(total).tolist()
