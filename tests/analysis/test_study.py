"""A study from its file to its tables, with a kill in between."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.figure import Figure

from meanshifter.analysis import tables
from meanshifter.analysis.study import claim, run_cells, threads_of
from meanshifter.analysis.study_plan import load_plan, slug, study_names
from meanshifter.analysis.study_scores import reader, scores_of
from meanshifter.analysis.study_training import train_cell
from meanshifter.analysis.tables import _count_steps
from meanshifter.cli.main import main
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import evaluate
from meanshifter.inference.predictor import Predictor
from meanshifter.model.saving import read_model
from meanshifter.training.setup import open_split
from meanshifter.utils.files import lock_file

RECIPE = """
format_version: 1
data: {name: shapes, workers: 0}
model:
  preset: segmenter-ti16
  encoder: vit_tiny_patch16_224
  encoder_args: {patch_size: 16, embed_dim: 16, depth: 1, num_heads: 2}
  drop_path: 0.0
augment: {crop: [96, 96], resize_base: null, scale: [1, 1], max_class_share: 1, photometric_distortion: false}
optimizer: {name: adamw, lr: 1.0e-3, min_lr: 1.0e-6}
batch_size: 2
steps: 12
save_every: 2
evaluation: {interval: 0, window: null, short_side: null, limit: 5}
accelerator: cpu
"""
STUDY = """
recipe: {recipe}
fields: {{optimizer.lr: 2.0e-3}}
rows:
  Plain: {{}}
  "Block, 2 steps": {{model.mean_shift: {{layers: 2, channels: 16, kernel: gaussian, init_neighbors: 8}}}}
seeds: [0, 1]
depths: [0, 1, 2, 3]
splits: [val]
pairs: [["Block, 2 steps", Plain]]
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(recipe=tmp_path / "tiny.yaml"))
    return path


def words(study: Path, out: Path) -> list[str]:
    return ["study", str(study), "--out", str(out), "--jobs", "2"]


def test_a_killed_study_ends_with_the_table_of_one_that_was_left_alone(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(words(study, whole)) == 0
    said = capsys.readouterr().out
    assert said == (whole / "table.md").read_text()
    assert sorted(path.name for path in whole.glob("*.svg")) == ["depth_val.svg", "diagnostics.svg", "layers_val.svg"]
    monkeypatch.setattr(tables, "write_plots", lambda *_: None)  # which take seconds

    command = [sys.executable, "-m", "meanshifter", *words(study, killed)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as process:
        while process.poll() is None and not list(killed.glob("runs/*/*/scores.json")):
            time.sleep(0.02)
        time.sleep(random.uniform(0, 1))
        process.kill()
    assert not (killed / "table.md").exists()
    finished = {path: path.stat().st_mtime_ns for path in killed.glob("runs/*/*/scores.json")}
    assert finished
    assert main(words(study, killed)) == 0
    for name in ("table.md", "table.csv", "table_1.tex", "table_2.json"):
        assert (killed / name).read_text() == (whole / name).read_text()
    assert all(path.stat().st_mtime_ns == then for path, then in finished.items()), "finished trainings are kept"

    rows = list(csv.DictReader((whole / "table.csv").read_text().splitlines()))
    assert len(rows) == 2 * 1 + 2 * 4, "two seeds of the plain model at depth 0, two of the block at four depths"
    one = next(row for row in rows if (row["row"], row["seed"], row["depth"]) == ("Block, 2 steps", "1", "3"))
    model = read_model(whole / "runs" / "block-2-steps" / "seed1" / "run" / "checkpoints" / "last")
    result = evaluate(Predictor(model, window=None, short_side=None), Shapes(split="val"), mean_shift_layers=3, limit=5)
    for metric in ("aAcc", "mAcc", "mIoU"):
        assert float(one[metric]) == pytest.approx(getattr(result, metric), abs=1e-3)
    assert "| Block, 2 steps vs. Plain |" in said
    document = json.loads((whole / "study.json").read_text())
    assert document["differences"]["Block, 2 steps"]["val"]["seeds"]["mean"] is not None


def test_ctrl_c_stops_the_trainings_too_and_says_how_to_go_on(study: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "meanshifter", *words(study, tmp_path / "out"), "--steps", "100000"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("runs/*/*/run/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said.strip().splitlines()[-1] == "meanshifter: stopped; resume with the same command"
    assert "Traceback" not in said


@pytest.mark.skipif(not hasattr(os, "fork"), reason="trainings are forked by a server, which Windows has not")
def test_trainings_end_with_a_study_that_is_killed_alone(study: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "meanshifter", *words(study, out), "--steps", "100000"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list(out.glob("runs/*/*/run/metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.2)
        process.kill()
    (log,) = list(out.glob("runs/*/*/run/metrics.jsonl"))[:1]
    deadline = time.monotonic() + 30
    while not is_free(log.parent / ".lock") and time.monotonic() < deadline:
        time.sleep(0.2)
    assert is_free(log.parent / ".lock")


def is_free(path: Path) -> bool:
    """Whether nobody holds the lock of a run."""
    with path.open("a") as file:
        try:
            lock_file(file, by_process=True)
        except OSError:
            return False
    return True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: {a: {}}", "study.yaml: no recipe"),
        ("recipe: shapes", "study: rows: {}"),
        ("recipe: shapes\nrows: {a: {}}\nseed: [1]", "unknown field 'seed'; did you mean 'seeds'"),
        ("recipe: shapes\nrows: {a: {}}\nseeds: [1, 1]", r"seeds: \(1, 1\)"),
        ("recipe: shapes\nrows: {a: {model.mean_shift.layer: 1}}", "row 'a': .*did you mean 'model.mean_shift.layers'"),
        ("recipe: shapes\nrows: {A 1: {}, a-1: {}}", "study: row names"),
        ("recipe: shapes\nrows: {a: {}, b: {steps: 2000}}\nfields: {steps: 2000}", "study: rows 'a' and 'b'"),
        ("recipe: shapes\nrows: {a: {}}\nrow_seeds: {b: [1]}", "row_seeds: .*'b'"),
        ("recipe: shapes\nrows: {a: {}}\ndepth_table: {row: [a]}", "depth_table: .*'row'"),
        ("recipe: shapes\nrows: {a: {}}\nbaseline: b", "baseline: 'b'"),
        ("recipe: shapes\nrows: {a: {}}\npairs: [[a, b]]", "pairs: .*'b'"),
        ("- 1", "study.yaml: holds list"),
    ],
)
def test_a_wrong_plan_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_plan(str(path)).cells(tmp_path / "out", [])


def test_a_folder_of_another_study_is_refused(study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "notes.txt").write_text("mine")
    assert main(["study", str(study), "--out", str(other)]) == 2
    assert f"{other}: already exists" in capfd.readouterr().err
    (other / "notes.txt").unlink()
    (other / "study.yaml").write_text("trainings: {'Plain, seed 0': {steps: 1}}")
    assert main(["study", str(study), "--out", str(other)]) == 2
    assert f"{other}: 'Plain, seed 0'" in capfd.readouterr().err


def test_a_grid_makes_a_row_of_each_point(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("recipe: shapes\ngrid: {model.mean_shift.layers: [1, 2], model.mean_shift.channels: [8, 16]}")
    plan = load_plan(str(path))
    assert list(plan.all_rows)[:2] == ["layers 1, channels 8", "layers 1, channels 16"]
    cells = plan.cells(tmp_path, [])
    assert [
        (c.config.model.mean_shift.layers, c.config.model.mean_shift.channels)
        for c in cells
        if c.config.model.mean_shift
    ] == [
        (1, 8),
        (1, 16),
        (2, 8),
        (2, 16),
    ]


@pytest.mark.parametrize("name", study_names())
def test_the_studies_of_the_package_parse(name: str, tmp_path: Path) -> None:
    plan = load_plan(name)
    cells = plan.cells(tmp_path, [])
    assert len(cells) == sum(len(plan.seeds_of(row)) for row in plan.all_rows)


def test_slugs_are_folder_names() -> None:
    assert slug("MeanShifter, 1 layer (η=½)") == "meanshifter-1-layer"
    assert slug("..") == "row"


def test_a_field_that_is_newer_than_the_folder_counts_as_its_default(study: Path, tmp_path: Path) -> None:
    cells = load_plan(str(study)).cells(tmp_path / "out", [])
    claim(tmp_path / "out", cells)
    path = tmp_path / "out" / "study.yaml"
    noted = yaml.safe_load(path.read_text())
    facts = noted["trainings"]["Block, 2 steps, seed 0"]
    del facts["accumulate"], facts["model"]["mean_shift"]["residual_readout"], facts["data"]["extra_share"]
    path.write_text(yaml.safe_dump(noted))
    claim(tmp_path / "out", cells)
    del facts["steps"]  # whose default is another one
    path.write_text(yaml.safe_dump(noted))
    with pytest.raises(InputError, match="out: 'Block, 2 steps, seed 0'"):
        claim(tmp_path / "out", cells)


def test_a_study_goes_on_where_data_and_weights_lie_elsewhere(study: Path, tmp_path: Path) -> None:
    def at(root: str, weights: str) -> None:
        fields = ["--data.name", "folder", "--data.root", root, "--model.encoder_weights", str(tmp_path / weights)]
        claim(tmp_path / "out", load_plan(str(study)).cells(tmp_path / "out", fields))

    for name, content in {"first": b"1", "moved": b"1", "other": b"2"}.items():
        (tmp_path / name).write_bytes(content)
    at("here", "first")
    assert str(tmp_path) not in (tmp_path / "out" / "study.yaml").read_text()
    at("there", "moved")
    with pytest.raises(InputError, match="out: 'Plain, seed 0'"):
        at("there", "other")


def test_steps_are_whole_numbers_on_the_axes_of_plots() -> None:
    axes = Figure().subplots()
    axes.plot([1, 2], [0.1, 0.2])
    _count_steps(axes)
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_fields_of_text_are_taken_as_they_are(study: Path, tmp_path: Path) -> None:
    text = study.read_text("utf-8").replace("Plain: {}", 'Plain: {data.val_pattern: "*_links × 1", steps: 3}')
    study.write_text(text, "utf-8")
    cells = load_plan(str(study)).cells(tmp_path / "out", [])
    assert cells[0].config.data.val_pattern == "*_links × 1"  # YAML would quote and escape it
    assert cells[0].config.steps == 3


class Blocks(torch.nn.Module):
    """An encoder of one's own: means of 8×8 pixels."""

    patch_size, embed_dim = 8, 3

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 8).flatten(2).mT * self.scale


def test_a_row_may_have_an_encoder_of_ones_own(study: Path, tmp_path: Path) -> None:
    study.write_text(study.read_text("utf-8").replace("Plain: {}", 'Plain: {model.encoder: "module:Blocks"}'), "utf-8")
    cell = replace(load_plan(str(study)).cells(tmp_path / "out", [])[0], encoder=Blocks)
    run_cells([cell], depths=(), splits=["val"], jobs=1)
    facts = scores_of(cell)
    K = Shapes().label_space.num_classes
    assert facts["parameters"] == 3 + 3 * K + K
    assert facts["multiply_adds"] == 12 * 12 * 3 * K  # of the linear head on 96×96 pixels
    again = read_model(cell.folder / "run", encoder=Blocks())
    assert facts["mIoU"]["val"][0] == evaluate(reader(cell, again), open_split(cell.config.data, "val"), limit=5).mIoU
    with pytest.raises(InputError, match="Plain: encoder"):
        train_cell(replace(cell, teacher=cell.config), ["val"])


@pytest.mark.parametrize(
    ("limit", "jobs", "expected"), [("1", 1, 1), ("8", 2, 3), ("", 4, 1), ("many", 1, 6), ("0", 3, 2)]
)
def test_a_training_has_its_share_of_the_cores_or_what_the_environment_allows(
    limit: str, jobs: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", limit)

    assert threads_of(jobs) == expected
