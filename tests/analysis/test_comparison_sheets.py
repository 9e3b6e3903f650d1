"""Which images stand on which sheet of a comparison, and one model compared with itself."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

import meanshifter as ms
from meanshifter.analysis import figures
from meanshifter.analysis.compare import describe_sheets, plan_sheets, run_comparison
from meanshifter.analysis.image_scores import Choice, Comparison, ImageScore, Scored
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import evaluate
from meanshifter.inference.predictor import Predictor

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}


def predictor(preset: str, seed: int) -> Predictor:
    torch.manual_seed(seed)
    model = ms.create_model(preset, classes=Shapes().label_space, image_size=32, encoder_args=SMALL)
    for parameter in model.decoder.parameters():
        torch.nn.init.normal_(parameter)
    return Predictor(model, window=None, short_side=None)


def comparison(wrong: dict[str, list[int]], *, num_images: int, named: tuple[int, ...] = ()) -> Comparison:
    """Of models with so many wrong pixels among the 10,000 of each image; -1: no pixel is labeled."""
    models = []
    for name, counts in wrong.items():
        reader = SimpleNamespace(mean_shift_layers=0, model=SimpleNamespace(has_steps=False))
        images = tuple(ImageScore(10_000 if n >= 0 else 0, max(n, 0), 50.0) for n in counts)
        models.append(Scored(name, cast(Any, reader), cast(Any, None), images))
    choices = tuple(Choice(index, "image", rank) for rank, index in enumerate(named, 1))
    return Comparison(cast(Any, None), tuple(models), choices, num_images=num_images, depths=(0, 1))


def test_an_image_stands_where_the_last_model_is_better_or_worse_by_the_margin_and_else_nowhere() -> None:
    compared = comparison({"a": [100] * 7, "b": [0] * 7, "c": [91, 90, 50, 109, 110, 300, -1]}, num_images=5)
    better, worse = plan_sheets(compared)
    assert (better.kind, better.indices) == ("better", (2, 1))
    assert (worse.kind, worse.indices) == ("worse", (5, 4))
    assert better.titles == ["Image", "Ground truth", "a", "b", "c"]
    assert better.files == ["sheet_better.png", "sheet_better.pdf"]
    assert plan_sheets(comparison({"a": [100, 100, 0], "c": [50, 0, 9]}, num_images=1))[0].indices == (1,)


def test_named_images_stand_on_the_sheet_where_they_belong_in_their_order() -> None:
    compared = comparison({"a": [100] * 5, "c": [50, 0, 100, 200, 300]}, num_images=1, named=(0, 1, 2, 3))
    better, worse = plan_sheets(compared)
    assert (better.indices, worse.indices) == ((0, 1), (3,))


def test_where_no_image_is_worse_there_is_no_sheet_and_a_sentence_says_so() -> None:
    better, worse = plan_sheets(comparison({"a": [100, 100], "c": [50, 105]}, num_images=3))
    assert (better.indices, worse.indices, worse.files) == ((0,), (), [])
    assert "no sheet_worse" in worse.describe()
    assert "0.1 %" in worse.describe()
    assert worse.to_dict(["x", "y"]) == {"kind": "worse", "model": None, "files": [], "images": []}


def document(out: Path) -> Any:
    return json.loads((out / "compare.json").read_text("utf-8"))


def test_the_sheets_of_two_models_are_written_and_listed_and_replaced(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    models = {"plain": predictor("segmenter-ti16", 0), "shifted": predictor("meanshifter-ti16", 1)}
    data = Shapes(length=6)
    compared = run_comparison(models, data, tmp_path, num_images=2, depths=(0, 1, 1, 3))
    written = document(tmp_path)
    gains = {image["name"]: image["difference"] / image["labeled"] for image in written["images"]}
    sheets = {entry["kind"]: entry for entry in written["sheets"]}
    ranked = sorted(gains, key=lambda name: -gains[name])
    assert sheets["better"]["images"] == [name for name in ranked if gains[name] >= 0.001][:2]
    assert sheets["worse"]["images"] == [name for name in ranked[::-1] if gains[name] <= -0.001][:2]
    assert (sheets["layers"]["model"], len(sheets["layers"]["images"])) == ("shifted", 2)
    files = [name for entry in written["sheets"] for name in entry["files"]]
    assert "sheet_layers.pdf" in files
    assert all((tmp_path / name).stat().st_size > 1000 for name in files)
    page = (tmp_path / "compare.html").read_text("utf-8")
    assert all(name in page for name in files)
    assert [sentence.partition(":")[0] for sentence in describe_sheets(compared)][-1] == ", ".join(files[-2:])
    run_comparison({"a": models["plain"], "b": models["plain"]}, data, tmp_path, overwrite=True)
    assert list(tmp_path.glob("sheet_*")) == []
    assert [entry["files"] for entry in document(tmp_path)["sheets"]] == [[], []]


def test_one_model_is_compared_with_itself_after_each_number_of_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    reader, data = predictor("meanshifter-ti16", 1), Shapes(length=4)
    expected = evaluate(reader, data, mean_shift_layers=[0, 2])
    seen: list[int] = []
    segmentations = reader.segmentations

    def counting(image: Any, steps: list[int | None], **options: Any) -> Any:
        seen.append(len(steps))
        return segmentations(image, steps, **options)

    monkeypatch.setattr(reader, "segmentations", counting)
    compared = run_comparison({"MeanShifter": reader}, data, tmp_path, num_images=1, depths=(0, 2))
    assert seen[:4] == [2] * 4  # one pass over the data for all numbers of steps
    written = document(tmp_path)
    assert [entry.pop("name") for entry in written["models"]] == ["L'_ms = 0", "L'_ms = 2"]
    assert written["models"] == json.loads(json.dumps([result.to_dict() for result in expected.values()]))
    (layers,) = written["sheets"]
    assert (layers["kind"], layers["model"]) == ("layers", "MeanShifter")
    assert layers["images"] == [entry["name"] for entry in written["chosen"] if entry["group"] == "best"]
    assert (tmp_path / "sheet_layers.png").is_file()
    assert not np.isnan(compared.differences).any()
    assert reader.mean_shift_layers == 1


def test_one_model_needs_a_block_and_two_numbers_of_steps(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="models: 1 "):
        run_comparison({"a": predictor("segmenter-ti16", 0)}, Shapes(), tmp_path / "out")
    with pytest.raises(InputError, match="mean_shift_layers: 1, 1 "):
        run_comparison({"a": predictor("meanshifter-ti16", 0)}, Shapes(), tmp_path / "out", depths=(1, 1))
    assert not (tmp_path / "out").exists()


def test_without_matplotlib_all_but_the_sheets_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "find_spec", lambda _: None)
    reader = predictor("meanshifter-ti16", 1)
    compared = run_comparison({"a": reader}, Shapes(length=2), tmp_path, num_images=1, depths=(0, 1))
    assert list(tmp_path.glob("sheet*")) == []
    assert document(tmp_path)["sheets"] == []
    (sentence,) = describe_sheets(compared)
    assert "meanshifter[plots]" in sentence
    assert "meanshifter[plots]" in (tmp_path / "compare.html").read_text("utf-8")
