"""Rows of a study that train several models: folds as an ensemble, and a teacher with its student."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from meanshifter.analysis import tables
from meanshifter.analysis.study import run_study
from meanshifter.analysis.study_plan import load_plan
from meanshifter.analysis.study_training import checkpoint, label_unused
from meanshifter.checkpoints.load import load_model
from meanshifter.data import Folder
from meanshifter.data.folds import Drawn
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import evaluate
from meanshifter.inference.predictor import Predictor
from meanshifter.model.saving import read_model
from tests.analysis.test_study import RECIPE

STUDY = """
recipe: {recipe}
rows:
  Plain: {{}}
  Folds: {{data.folds: 2, steps: 4}}
  Stops early: {{evaluation.interval: 2, evaluation.patience: 1}}
  Few masks: {{data.train_share: 0.25, steps: 4}}
  Self-training: {{data.train_share: 0.25, steps: 4}}
self_training: {{Self-training: {{data.extra_min_confidence: 0.05}}}}
seeds: [0]
splits: [val]
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study in a folder, with its data."""
    base = tmp_path_factory.mktemp("study")
    rng = np.random.default_rng(0)
    for split, count in {"train": 8, "val": 3}.items():
        for number in range(count):
            labels = np.kron(rng.integers(0, 3, (6, 6)), np.ones((16, 16))).astype(np.uint8)
            colors = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]], np.uint8)[labels]
            for kind, pixels in {"images": colors, "masks": labels}.items():
                path = base / "data" / kind / split / f"{split}{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    (base / "data" / "classes.txt").write_text("red\ngreen\nblue\n")
    recipe = RECIPE.replace("{name: shapes, workers: 0}", f"{{name: folder, root: {base / 'data'}, workers: 0}}")
    (base / "tiny.yaml").write_text(recipe.replace(", limit: 5", ""))
    (base / "study.yaml").write_text(STUDY.format(recipe=base / "tiny.yaml"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "write_plots", lambda *_: None)  # which take seconds
        run_study(str(base / "study.yaml"), base / "out", jobs=2, say=lambda _: None)
    return base


def scores(made: Path, row: str) -> dict[str, object]:
    facts: dict[str, object] = json.loads((made / "out" / "runs" / row / "seed0" / "scores.json").read_text())
    return facts


@pytest.mark.parametrize(
    ("row", "model"),
    [
        ("plain", "checkpoints/last"),
        ("folds", "."),
        ("stops-early", "checkpoints/best"),
        ("self-training", "checkpoints/last"),
    ],
)
def test_a_row_has_the_scores_of_its_model(made: Path, row: str, model: str) -> None:
    found = load_model(made / "out" / "runs" / row / "seed0" / "run" / model)
    expected = evaluate(Predictor(found, window=None, short_side=None), Folder(made / "data", "val"))
    assert scores(made, row)["mIoU"]["val"] == [pytest.approx(expected.mIoU)]  # type: ignore[index]
    assert row in (made / "out" / "cost.md").read_text().lower().replace(" ", "-")
    assert scores(made, row)["cpu_seconds"] > 0  # type: ignore[operator]


def test_folds_count_the_parameters_of_all_models(made: Path) -> None:
    assert scores(made, "folds")["parameters"] == 2 * scores(made, "plain")["parameters"]  # type: ignore[operator]
    assert "| Folds | 2 | 4 |" in (made / "out" / "cost.md").read_text()


def test_weights_that_validation_chooses_are_called_best(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "study.yaml").write_text(STUDY.format(recipe=tmp_path / "tiny.yaml"))
    rows = {name: {"data.folds": 2, "evaluation.interval": every} for name, every in (("Once", 0), ("Often", 2))}
    plan = replace(load_plan(str(tmp_path / "study.yaml")), rows=rows, self_training={})
    found = {cell.row: checkpoint(cell.config) for cell in plan.cells(tmp_path, [])}
    assert found == {"Once": "last", "Often": "best"}, "of folds, with the only evaluation after the last step or not"


def test_a_teacher_labels_the_images_without_a_share_and_only_these(made: Path) -> None:
    folder = made / "out" / "runs" / "self-training" / "seed0"
    train_set = Folder(made / "data", "train")
    shown, hidden = (Drawn(train_set, 0.25, 0, drawn=drawn).names for drawn in (True, False))
    assert (len(shown), len(hidden)) == (2, 6)
    assert sorted(path.stem for path in (folder / "pseudo").glob("*.png")) == sorted(hidden)
    teacher = read_model(folder / "teacher" / "checkpoints" / "last")
    alike = read_model(made / "out" / "runs" / "few-masks" / "seed0" / "run" / "checkpoints" / "last")
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(tensor, alike.state_dict()[name])
    labels = Predictor(teacher, window=None, short_side=None)(made / "data" / "images" / "train" / f"{hidden[0]}.png")
    assert np.array_equal(np.array(Image.open(folder / "pseudo" / f"{hidden[0]}.png")), labels.labels)


def test_a_study_of_folds_and_teachers_goes_on_where_it_stopped(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "write_plots", lambda *_: None)
    said: list[str] = []
    for row in ("folds", "self-training"):
        (made / "out" / "runs" / row / "seed0" / "scores.json").unlink()
    before = (made / "out" / "table.md").read_text()
    run_study(str(made / "study.yaml"), made / "out", say=said.append)
    assert (made / "out" / "table.md").read_text() == before
    assert said[0].startswith("3 of 5")


def test_self_training_without_a_share_is_refused(made: Path) -> None:
    text = (made / "study.yaml").read_text()
    wrong = made / "wrong.yaml"
    wrong.write_text(text.replace("Self-training: {data.train_share: 0.25, steps: 4}", "Self-training: {steps: 4}"))
    with pytest.raises(InputError, match=r"'Self-training': data.train_share: null"):
        load_plan(str(wrong)).cells(made, [])


def test_label_maps_of_a_teacher_are_not_of_scored_images(made: Path, tmp_path: Path) -> None:
    """A training image that stands in a scored split too, as some datasets have it, gets no pseudo labels."""
    plan = load_plan(str(made / "study.yaml"))
    cell = next(cell for cell in plan.cells(made / "out", []) if cell.teacher is not None)
    assert cell.teacher is not None
    hidden = Drawn(Folder(made / "data", "train"), 0.25, 0, drawn=False).names
    twin = made / "data" / "images" / "train" / f"{hidden[0]}.png"
    for kind in ("images", "masks"):
        for path in (made / "data" / kind / "val").iterdir():
            target = tmp_path / kind / "val" / path.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((twin if kind == "images" else path).read_bytes())
    label_unused(cell.teacher, tmp_path / "pseudo", [Folder(tmp_path, "val", classes=["red", "green", "blue"])])
    assert sorted(path.stem for path in (tmp_path / "pseudo").glob("*.png")) == sorted(hidden[1:])
