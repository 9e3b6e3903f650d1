"""The report of a run: its numbers are those of the run and of `evaluate`, and it says what is missing."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import meanshifter as ms
from meanshifter.analysis import report_page, report_scores
from meanshifter.analysis.charts import Bin, reliability_diagram
from meanshifter.analysis.html import Page
from meanshifter.analysis.report_page import Report, commands
from meanshifter.analysis.report_scores import centered_crop, confusion_order, miou_costs, rank_confusions, score_run
from meanshifter.analysis.run_record import RunRecord
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.data.datasets import Dataset, Sample, Subset
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.evaluation.metrics import mean_iou
from meanshifter.model.saving import model_folder, save_temperature
from meanshifter.training.parsing import parse_recipe

RECIPE = """
data: {name: shapes, val_pattern: "*[2-9]*", workers: 0}
model:
  preset: meanshifter-ti16
  encoder: vit_tiny_patch16_224
  encoder_args: {patch_size: 16, embed_dim: 24, depth: 1, num_heads: 2}
  mean_shift: {channels: 8}
augment: {crop: [64, 64], resize_base: null}
optimizer: {name: adamw, lr: 1.0e-3, head_lr: 2.0e-2}
steps: 6
batch_size: 2
log_every: 2
evaluation: {interval: 3, window: null, short_side: null, limit: 5}
"""
VOID = {"meta", "img", "br"}


class Parsed(HTMLParser):
    """The text of a page's tables, tiles and paragraphs; fails on tags that are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.tiles: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        elif tag in ("dt", "dd"):
            self.tiles.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"th", "td"} & set(self.open):
            self.tables[-1][-1][-1] += data
        elif {"dt", "dd"} & set(self.open):
            self.tiles[-1] += data
        elif "style" not in self.open:
            self.text += data

    @property
    def facts(self) -> dict[str, str]:
        return dict(zip(self.tiles[::2], self.tiles[1::2], strict=True))

    def table(self, *header: str) -> dict[str, dict[str, str]]:
        """The first table with these columns: row → column → text."""
        found = next(table for table in self.tables if set(header) <= set(table[0]))
        return {row[0]: dict(zip(found[0], row, strict=True)) for row in found[1:]}


def page_of(path: Path) -> Parsed:
    text = path.read_text("utf-8")
    assert not re.search(r"https?:|@import|url\(|<script|<link", text)
    parsed = Parsed(text)
    targets = {attributes.get("id") for _, attributes in parsed.tags}
    for tag, attributes in parsed.tags:
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/")
        for name, value in attributes.items():
            if name in ("href", "src", "srcset", "poster", "data") and tag != "img":
                assert str(value).startswith("#")
                assert str(value)[1:] in targets
    return parsed


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with two evaluations."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "tiny.yaml").write_text(RECIPE)
    trained = ms.train(recipe=folder / "tiny.yaml", out=folder / "run", quiet=True)
    assert not (trained.path / "report.html").exists(), "training knows nothing of pages"
    return trained.path


@pytest.fixture(scope="module")
def finished(run: Path) -> Parsed:
    return page_of(ms.report(run))


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_scores_are_those_of_evaluate_and_of_the_run(run: Path, finished: Parsed) -> None:
    config = parse_recipe(run / "config.yaml")
    predictor = ms.Predictor(run, **config.evaluation.reading)
    result = ms.evaluate(predictor, Shapes(split="val"), limit=5, detailed=True)
    assert finished.facts["mIoU"] == f"{result.mIoU:.2f}"
    assert finished.facts["aAcc"] == f"{result.aAcc:.2f}"
    best = max((line for line in lines(run) if "mIoU" in line), key=lambda line: line["mIoU"])
    assert best["mIoU"] == pytest.approx(result.mIoU)
    for key, title in (("boundary_3", "mIoU ≤ 3 px"), ("boundary_9", "mIoU ≤ 9 px")):
        assert finished.facts[title] == f"{best[key]:.2f}"
    details = result.details
    assert details is not None
    assert details.reliability is not None
    assert finished.facts["boundary IoU"] == f"{np.nanmean(details.boundary_IoU):.2f}"
    assert finished.facts["calibration error"] == f"{details.reliability.ECE:.2f}"
    regions = finished.table("regions", "mIoU", "labeled regions")
    for name, found in details.by_area.items():
        assert regions[f"area in pixels {name}"]["labeled regions"] == f"{found.regions:,}"
    for name, found in details.by_thickness.items():
        assert regions[f"thickness in pixels {name}"]["labeled pixels"] == f"{found.pixels:,}"
    classes = finished.table("class", "IoU", "Acc")
    assert list(classes) == list(Shapes(split="val").label_space.names)
    for name, score in result.per_class.items():
        assert classes[name]["IoU"] == ("–" if math.isnan(score.IoU) else f"{score.IoU:.2f}")
        history = [line["IoU"][name] for line in lines(run) if "IoU" in line]
        shown = ["–" if value is None else f"{value:.2f}" for value in history]
        assert [classes[name]["first"], classes[name]["last"]] == [shown[0], shown[-1]]
    assert str(result.protocol) in finished.text
    costs = rank_confusions(result.confusion, 10)
    rows = finished.table("label → prediction", "pixels")
    assert [row["pixels"] for row in rows.values()] == [f"{cost.pixels:,}" for cost in costs]
    assert [row["points of mIoU"] for row in rows.values()] == [f"{cost.points:.2f}" for cost in costs]


def test_the_curves_are_those_of_the_metrics(run: Path) -> None:
    text = (run / "report.html").read_text("utf-8")
    for line in lines(run):
        if "loss" in line:
            assert f"<title>loss, step {line['step']}: {line['loss']:.4g}</title>" in text
            assert f"<title>learning rate, step {line['step']}: {line['lr']:.4g}</title>" in text
            assert line["peak_memory_gb"] > 0.05
        else:
            assert f"<title>mIoU, step {line['step']}: {line['mIoU']:.4g}</title>" in text


def test_it_has_every_part(run: Path, finished: Parsed) -> None:
    names = ["Training", "Classes", "Confusions", "Best, median and worst images", "Training samples"]
    for name in (*names, "Calibration", "Speed and memory", "Protocol and commands"):
        assert name in finished.text
    assert "Not shown" not in finished.text
    assert "All 6 steps are done" in finished.text
    assert f"meanshifter evaluate {run} shapes --split val --limit 5" in finished.text
    assert sum(tag == "svg" and attributes["class"] == "chart" for tag, attributes in finished.tags) == 9
    captions = re.findall(r"(?:best|median|worst) \d: \w+", finished.text)
    assert len(set(captions)) == 5, "every image of five once"
    assert re.search(r"This page took .* for one pass over the images", finished.text)


def test_the_validation_images_are_read_once_and_little_is_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = []
    segmentations = ms.Predictor.segmentations

    def counted(self: ms.Predictor, image: Any, layers: Any, **options: Any) -> Any:
        predicted.append(image.shape)
        return segmentations(self, image, layers, **options)

    monkeypatch.setattr(ms.Predictor, "segmentations", counted)
    record = RunRecord.read(run)
    scores = score_run(record, record.open_scored(), limit=5, device=None, progress=False)
    assert len(predicted) == 5
    for small, shape in zip(scores.maps, predicted, strict=True):
        assert len(small.content) < shape[0] * shape[1] / 4


def test_a_run_without_a_checkpoint_says_what_is_missing(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(run / "config.yaml", bare)
    page = page_of(ms.report(bare))
    assert "no checkpoint yet" in page.text
    assert "metrics.jsonl has no lines yet" in page.text
    assert "0 of 6 steps are logged" in page.text
    assert page.text.count("sample ") > 3, "the training samples are there"
    (bare / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text()[:-40])  # a line that is being written
    page = page_of(ms.report(bare, out=tmp_path / "other" / "page.html"))
    evaluated = next(line for line in lines(run) if "mIoU" in line)
    assert page.facts["mIoU (last)"] == f"{evaluated['mIoU']:.2f}"
    assert {row["IoU"] for row in page.table("class", "IoU").values()} >= {f"{evaluated['IoU']['background']:.2f}"}
    with pytest.raises(InputError, match=f"{tmp_path}: not a run"):
        ms.report(tmp_path)


def test_a_run_whose_data_are_gone_says_so_and_takes_another_place(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    text = (moved / "config.yaml").read_text()
    (moved / "config.yaml").write_text(text.replace("name: shapes\n  root: null", "name: camvid\n  root: gone"))
    page = page_of(ms.report(moved))
    assert re.search(r"Not shown: scores of a checkpoint\. .*gone", page.text)
    assert re.search(r"Training samples.*Not shown: .*gone", page.text, re.S)
    with pytest.raises(InputError, match="elsewhere"):
        ms.report(moved, root=tmp_path / "elsewhere")
    page = page_of(ms.report(moved, Shapes(split="val"), limit=2))
    assert page.facts["scored images"] == "2"
    with pytest.raises(InputError, match="root"):
        ms.report(moved, Shapes(split="val"), root=tmp_path)


def test_a_single_image_and_another_split(run: Path, tmp_path: Path) -> None:
    page = page_of(ms.report(run, limit=1, out=tmp_path / "one.html"))
    assert "best 1" in page.text
    assert "median 1" not in page.text
    page = page_of(ms.report(run, split="train", limit=2, out=tmp_path / "train.html"))
    assert "shapes train, first 2 of" in page.text


class Many(Dataset):
    """Images of 160 classes in squares, some of them ignored, one without any label."""

    name, split = "many", "val"
    label_space = LabelSpace(tuple(f"class number {k}" for k in range(160)))

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        labels = rng.integers(0, 160, (13, 18), dtype=np.uint8).repeat(30, 0).repeat(30, 1)
        labels[:60] = 255
        if index == 3:
            labels[:] = 255
        return Sample(rng.integers(0, 256, (*labels.shape, 3), dtype=np.uint8), labels, f"image {index}")

    @property
    def names(self) -> list[str]:
        return [f"image {index}" for index in range(4)]


def test_many_classes_stay_readable_and_the_page_small(run: Path, tmp_path: Path) -> None:
    record, dataset = RunRecord.read(run), Many()
    rng = np.random.default_rng(0)
    maps = [np.where(rng.random(s.labels.shape) < 0.3, 7, s.labels % 160).astype(np.uint8) for s in dataset]
    protocol = score_run(record, Shapes(split="val"), limit=1, device=None, progress=False).result.protocol
    pairs = ((sample, (prediction, None)) for sample, prediction in zip(dataset, maps, strict=True))
    scores = report_scores._sum_up(pairs, dataset, protocol, "these maps", 0.0, predicted=False)
    page = report_page.report_page(Report(record, scores, "", ""))
    page.save(tmp_path / "many.html")
    parsed = page_of(tmp_path / "many.html")
    assert (tmp_path / "many.html").stat().st_size < 10_000_000
    sizes = [len(table) - 1 for table in parsed.tables]
    assert sizes[:3] == [10, 10, 160]
    summary = parsed.text.index("All 160 classes")
    assert summary > 0
    assert "the 40 classes with most wrong pixels of 160" in parsed.text
    assert "class number 7" in next(iter(parsed.table("label → prediction")))
    assert "best 1: image" in parsed.text
    assert "image 3" not in parsed.text, "without labels it is neither good nor bad"


def test_a_cross_validation_scores_its_label_maps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    fields: dict[str, Any] = {"steps": 2, "log_every": 1, "out": tmp_path / "cv", "quiet": True}
    done = ms.cross_validate({"folds": 2, "val_split": None}, recipe=tmp_path / "tiny.yaml", **fields)
    monkeypatch.setattr(ms.Predictor, "segmentations", None)  # no model runs
    page = page_of(ms.report(done.path))
    assert page.facts["mIoU"] == f"{done.pooled.mIoU:.2f}"
    assert page.facts["scored images"] == f"{done.pooled.protocol.images}"
    assert "2 runs, one per fold" in page.text
    assert str(done.pooled.protocol) in page.text
    text = (done.path / "report.html").read_text("utf-8")
    assert "<title>fold 0, step 1: " in text
    assert "<title>fold 1, step 2: " in text
    assert "fold0/config.yaml --data.fold null" in page.text
    with pytest.raises(InputError, match="split: val"):
        ms.report(done.path, split="val")
    (done.path / "folds.json").unlink()
    assert "no folds.json yet" in page_of(ms.report(done.path)).text


def test_commands_name_what_changes_scores(run: Path) -> None:
    record = RunRecord.read(run)
    data = replace(record.config.data, name="folder", root="my data", val_share=0.2)
    config = replace(record.config, precision="bf16", data=data)
    said = commands(Report(replace(record, config=config), None, "", ""))
    assert f"meanshifter evaluate {run} 'my data' --data.val_share 0.2 --split val --precision bf16 --limit 5" in said


def test_a_calibrated_model_states_its_temperature(run: Path, finished: Parsed, tmp_path: Path) -> None:
    assert f"meanshifter calibrate {run}" in finished.text
    shutil.copytree(run, tmp_path / "run")
    save_temperature(model_folder(tmp_path / "run"), 1.5)
    page = page_of(ms.report(tmp_path / "run"))
    assert "temperature is 1.500" in page.text
    assert "meanshifter calibrate" not in page.text
    assert page.facts["calibration error"] != finished.facts["calibration error"]
    assert page.facts["mIoU"] == finished.facts["mIoU"]


def test_reliability_bins_are_drawn_where_they_are() -> None:
    page = Page("x")
    bins = [Bin(0.5, 0.25, 100), Bin(0.7, 0.7, 0), Bin(0.9, 0.8, 300)]
    page.charts({"x": reliability_diagram({"before": bins, "after": [Bin(0.9, 0.9, 400)]})})
    text = page.html()
    assert "before, 0.5: 0.25" in text
    assert "before: 75.0% of the pixels" in text
    assert "0.7: " not in text
    assert "after, 0.9: 0.9" in text


@given(arrays.arrays(np.int64, (4, 4), elements=st.integers(0, 50)))
def test_the_cost_of_a_confusion_is_the_gain_without_it(confusion: npt.NDArray[np.int64]) -> None:
    costs = miou_costs(confusion)
    before = float(mean_iou(confusion))
    for i in range(4):
        for j in range(4):
            right = confusion.copy()
            if i != j:
                right[i, i] += right[i, j]
                right[i, j] = 0
            after = float(mean_iou(right))
            assert costs[i, j] == pytest.approx(0 if math.isnan(before) else after - before, abs=1e-9)


def test_confused_classes_are_neighbors() -> None:
    confusion = np.diag([100] * 6)
    for i, j in ((0, 4), (4, 2), (1, 5), (5, 3)):
        confusion[i, j] = confusion[j, i] = 40
    order = confusion_order(confusion)
    place = {k: order.index(k) for k in range(6)}
    assert sorted(order) == list(range(6))
    assert all(abs(place[i] - place[j]) == 1 for i, j in ((0, 4), (4, 2), (1, 5), (5, 3)))


def test_a_crop_holds_the_pixels_that_it_is_about() -> None:
    wanted = np.zeros((40, 60), np.bool_)
    wanted[35:, 50:] = True
    wanted[0, 0] = True
    rows, columns = centered_crop(wanted)
    assert wanted[rows, columns].shape == (20, 30)
    assert wanted[rows, columns].sum() == 50


def test_subsets_are_the_images_that_are_scored(run: Path, tmp_path: Path) -> None:
    chosen = Subset(Shapes(split="val"), "*7", matching=True)
    page = page_of(ms.report(run, chosen, limit=3, out=tmp_path / "subset.html"))
    assert all(name.endswith("7") for name in re.findall(r"(?:best|median|worst) \d: (\w+)", page.text))
