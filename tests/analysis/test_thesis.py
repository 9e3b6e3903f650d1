"""The study of the thesis on a generated ADE20K: its plan, its two tables in four formats, and reading out again."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meanshifter.analysis import study as study_module
from meanshifter.analysis import tables
from meanshifter.analysis.findings import TABLE_1, TABLE_2
from meanshifter.analysis.score_tables import escape
from meanshifter.analysis.study import run_study
from meanshifter.analysis.study_plan import Cell, load_plan, set_up
from meanshifter.analysis.study_scores import is_finished, scores_of
from meanshifter.analysis.tables import write_tables
from meanshifter.cli.main import main
from meanshifter.data import ADE20K
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import evaluate
from meanshifter.inference.predictor import Predictor
from meanshifter.model.saving import read_model
from meanshifter.training.parsing import parse_recipe

RECIPE = """
format_version: 1
data: {name: ade20k, workers: 0}
model:
  preset: segmenter-ti16
  encoder: vit_tiny_patch16_224
  encoder_args: {patch_size: 16, embed_dim: 16, depth: 1, num_heads: 2}
  drop_path: 0.0
augment: {crop: [32, 32], resize_base: null, scale: [1, 1], max_class_share: 1, photometric_distortion: false}
batch_size: 2
steps: 2
evaluation: {interval: 0, window: null, short_side: null}
accelerator: cpu
"""
IMAGES = 5
SEGMENTER, BLOCK = "Segmenter-Ti/16", "MeanShifter-Ti/16, L_ms 1, d_ms 64"


TWO = f"""
rows: {{{SEGMENTER}: {{}}, "{BLOCK}": {{model.mean_shift: {{layers: 1, channels: 64}}}}}}
depths: [1, 2, 3, 4]
"""


def in_this_process(cells: Sequence[Cell], *, depths: Any, splits: Any, jobs: int, say: Any) -> None:
    for cell in cells:
        if not is_finished(cell, depths, splits):
            study_module._train_and_score(cell, depths, splits)


@pytest.fixture
def unforked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings in the test's process, which spares each the import of torch."""
    monkeypatch.setattr(study_module, "run_cells", in_this_process)


@pytest.fixture(scope="module", autouse=True)
def _unplotted() -> Iterator[None]:
    """Plots, which take seconds, are looked at elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "write_plots", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, rng = tmp_path_factory.mktemp("thesis"), np.random.default_rng(0)
    for split in ("training", "validation"):
        for kind in ("images", "annotations"):
            (root / "ade20k" / kind / split).mkdir(parents=True)
        for number in range(IMAGES):
            pixels, labels = rng.integers(0, 256, (32, 32, 3)), rng.integers(0, 151, (32, 32))
            name = f"ADE_{split[:5]}_{number:08}"
            Image.fromarray(pixels.astype(np.uint8)).save(root / "ade20k/images" / split / f"{name}.jpg")
            Image.fromarray(labels.astype(np.uint8)).save(root / "ade20k/annotations" / split / f"{name}.png")
    (root / "tiny.yaml").write_text(RECIPE)
    (root / "two.yaml").write_text(TWO)
    return root


def start(place: Path, out: str, study: str = "thesis", **choices: Any) -> Path:
    fields = ["--data.root", str(place / "ade20k")]
    return run_study(study, place / out, fields=fields, recipe=str(place / "tiny.yaml"), **choices)


@pytest.fixture(scope="module")
def whole(place: Path) -> Path:
    """All rows with seed 0, and Segmenter with seed 1 too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_module, "run_cells", in_this_process)
        patch.setattr(study_module, "write_tables", lambda *_: None)
        start(place, "whole", seeds=[0])
        patch.setattr(study_module, "write_tables", write_tables)
        return start(place, "whole", seeds=[0, 1], rows=["Segm*"])


def lines_of(path: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(path.read_text())["lines"]
    return found


def test_rows_and_seeds_are_those_of_the_thesis() -> None:
    plan = load_plan("thesis")
    cells = plan.cells(Path("out"), [])
    names = [
        SEGMENTER if e.layers is None else f"MeanShifter-Ti/16, L_ms {e.layers}, d_ms {e.channels}" for e in TABLE_1
    ]
    assert list(plan.all_rows) == names
    for name, entry in zip(names, TABLE_1, strict=True):
        of_row = [cell for cell in cells if cell.row == name]
        assert [cell.seed for cell in of_row] == list(range(entry.runs))
        shift = of_row[0].config.model.mean_shift
        assert (None if shift is None else (shift.layers, shift.channels)) == (entry.layers and entry[:2])
    assert cells[0].config.steps == 160_000


def test_the_recipe_on_camvid_is_camvid_half_trained_as_the_thesis_trains() -> None:
    fields = "--optimizer.name sgd --optimizer.lr 1e-2 --optimizer.head_lr null --optimizer.min_lr 1e-4 "
    fields += "--optimizer.weight_decay 0 --optimizer.warmup 0 --optimizer.clip_norm null --ema null "
    fields += "--loss.class_weight_power 0 --out x"
    assert parse_recipe("camvid_half_sgd", ["--out", "x"]) == parse_recipe("camvid_half", fields.split())


def test_table_1_has_the_scores_of_the_checkpoints_beside_the_published_ones(whole: Path, place: Path) -> None:
    lines = lines_of(whole / "table_1.json")
    assert [line["model"] for line in lines] == list(load_plan("thesis").all_rows)
    assert [line["published_millions"] for line in lines] == [entry.millions for entry in TABLE_1]
    assert [(line["seeds"], line["lost"]) for line in lines] == [(2, ""), *[(1, "1 missing")] * 15]
    data = ADE20K(place / "ade20k", "val")
    for line in (lines[0], lines[3]):
        folders = (whole / "runs").glob(
            f"{re.sub('[^a-z0-9.]+', '-', line['model'].lower())}/seed*/run/checkpoints/last"
        )
        results = [evaluate(Predictor(read_model(folder), window=None, short_side=None), data) for folder in folders]
        entry = TABLE_1[lines.index(line)]
        for metric in ("aAcc", "mAcc", "mIoU"):
            scores, found = [getattr(result, metric) for result in results], line["scores"][metric]
            assert [found[key] for key in ("median", "low", "high")] == pytest.approx(
                [median(scores), min(scores), max(scores)]
            )
            assert found["published"] == getattr(entry, metric)
            assert found["difference"] == pytest.approx(median(scores) - found["published"])


def test_table_2_has_the_published_lines_in_their_order(whole: Path) -> None:
    lines = lines_of(whole / "table_2.json")
    keys = ("train_layers", "channels", "inference_layers")
    assert [tuple(line[key] for key in keys) for line in lines] == [entry[:3] for entry in TABLE_2]
    for metric in ("aAcc", "mAcc", "mIoU"):
        assert [line["scores"][metric]["published"] for line in lines] == [getattr(entry, metric) for entry in TABLE_2]
    trained = {line["model"]: line["scores"]["mIoU"]["median"] for line in lines_of(whole / "table_1.json")}
    for line in lines:
        if line["inference_layers"] == line["train_layers"]:
            assert line["scores"]["mIoU"]["median"] == trained[line["model"]]
    general = csv.DictReader((whole / "table.csv").read_text().splitlines())
    assert len([row for row in general if row["row"].endswith("d_ms 768")]) == 3 * 4, "Table 2 leaves it out"


@pytest.mark.parametrize(("table", "count"), [(1, 16), (2, 48)])
def test_all_formats_say_the_same(table: int, count: int, whole: Path) -> None:
    lines = lines_of(whole / f"table_{table}.json")
    assert len(lines) == count
    rows = list(csv.DictReader((whole / f"table_{table}.csv").read_text().splitlines()))
    marked = [line for line in (whole / f"table_{table}.md").read_text().splitlines() if "Ti/16" in line[:20]]
    latex = (whole / f"table_{table}.tex").read_text()
    set_lines = [line for line in latex.splitlines() if line.startswith(("Segmenter-", "MeanShifter-"))]
    assert len(rows) == len(marked) == len(set_lines) == count
    for line, row, mark, tex in zip(lines, rows, marked, set_lines, strict=True):
        score = line["scores"]["mAcc"]
        assert row["model"] == line["model"]
        assert float(row["mAcc_median"]) == pytest.approx(score["median"], abs=1e-4)
        for text in (f"{score['median']:.2f}", f"{score['published']:.2f}", f"{score['difference']:+.2f}"):
            assert f" {text} " in mark
            assert f" {text.replace('-', '$-$')} " in tex
        assert tex.startswith(escape(line["model"]))


def test_latex_is_whole(whole: Path) -> None:
    for table in (1, 2):
        text = (whole / f"table_{table}.tex").read_text()
        body = re.search(r"\\begin\{tabular\}\{(l+r+)\}(.*)\\end\{tabular\}", text, re.S)
        assert body is not None
        width = len(body[1])
        rows = [line for line in body[2].splitlines() if line.endswith(r"\\")]
        spans = [sum(map(int, re.findall(r"multicolumn\{(\d+)\}", row))) for row in rows]
        singles = [row.count("&") + 1 - len(re.findall("multicolumn", row)) for row in rows]
        assert {one + span for one, span in zip(singles, spans, strict=True)} == {width}
        assert [word in body[2] for word in ("toprule", "midrule", "bottomrule", "cmidrule")] == [True] * 4
        plain = re.sub(r"%.*|\\[&%$#_{}]", "", text)
        assert plain.count("{") == plain.count("}")
        assert "_" not in re.sub(r"\$[^$]*\$", "", plain)
    assert escape("50 % of a_b & {c} \\ ~") == r"50 \% of a\_b \& \{c\} \textbackslash{} \textasciitilde{}"


@pytest.mark.usefixtures("unforked")
def test_one_table_trains_and_reads_out_only_what_it_needs(place: Path) -> None:
    first = start(place, "one", str(place / "two.yaml"), only_table=1)
    assert not list(first.glob("table_2.*"))
    rows = list(csv.DictReader((first / "table.csv").read_text().splitlines()))
    assert [(row["row"], row["depth"]) for row in rows] == [(SEGMENTER, "0"), (BLOCK, "1")]
    both = set_up("thesis", place / "one", fields=["--data.root", str(place / "ade20k")], only_table=2)
    assert len({cell.row for cell in both.chosen}) == 12


@pytest.mark.usefixtures("unforked")
def test_what_is_missing_is_read_out_again_without_training(place: Path, whole: Path) -> None:
    folder = place / "again"
    shutil.copytree(whole / "runs/segmenter-ti-16/seed0/run", folder / "runs/segmenter-ti-16/seed0/run")
    block = folder / "runs/meanshifter-ti-16-l-ms-1-d-ms-64/seed0"
    shutil.copytree(whole / block.relative_to(folder) / "run", block / "run")
    shutil.copy(whole / "study.yaml", folder)
    for path in folder.glob("runs/*/seed0/run/config.yaml"):  # runs that were moved
        path.write_text(path.read_text().replace(str(whole), str(folder)))
    trained = {path: path.read_bytes() for path in folder.glob("runs/*/*/run/checkpoints/last/*.safetensors")}
    logged = (block / "run/metrics.jsonl").read_text()
    choices: dict[str, Any] = {"study": str(place / "two.yaml"), "seeds": [0]}
    start(place, "again", **choices)
    alike = lines_of(folder / "table_1.json")[1], lines_of(whole / "table_1.json")[1]
    assert alike[0]["scores"] == alike[1]["scores"]
    start(place, "again", **choices, depths=[0, 6], splits=["train"])
    cell = set_up(
        choices["study"], folder, fields=["--data.root", str(place / "ade20k")], recipe=str(place / "tiny.yaml")
    ).cells[1]
    facts = scores_of(cell)
    assert (facts["depths"], facts["images"]) == ([0, 1, 2, 3, 4, 6], {"train": IMAGES, "val": IMAGES})
    (cell.folder / "scores.json").write_text(
        (cell.folder / "scores.json").read_text().replace('version": 2', 'version": 1')
    )
    assert not is_finished(cell)
    start(place, "again", **choices)
    assert scores_of(cell) == facts | {"seconds": scores_of(cell)["seconds"]}
    assert {path: path.read_bytes() for path in trained} == trained
    assert (block / "run/metrics.jsonl").read_text() == logged
    shutil.rmtree(block / "run")
    with pytest.raises(InputError, match=r"d-ms-64/seed0/run: .*delete .*scores\.json"):
        start(place, "again", **choices, splits=["val"], depths=[9])


def test_a_dry_run_prints_the_plan_and_its_cost_and_writes_nothing(
    place: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "thesis", "--recipe", str(place / "tiny.yaml"), "--data.root", str(place / "ade20k")]
    rows = ["--rows", SEGMENTER, "MeanShifter*2, d_ms 192", "--seeds", "0", "1", "2"]
    assert main([*words, *rows, "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    said, errors = capfd.readouterr()
    assert not errors
    assert not (tmp_path / "out").exists()
    assert "2 rows, 6 trainings" in said
    assert re.search(r"Segmenter-Ti/16 +seeds 0 1 2; 2 steps, \S+ s each\n", said)
    assert re.search(r"L_ms 2, d_ms 192 +seeds 0 1 2; 2 steps, \S+ s each; also scored with .*1 2 3 4\n", said)
    assert f"scored: {IMAGES} images of val" in said
    assert re.search(r"time: +\d+ (s|min) in total", said)
    assert re.search(r"disk: +[\d.]+ MB", said)
    memory = re.search(r"memory: ([\d.]+) (MB|GB)", said)
    assert memory is not None
    assert 100 < float(memory[1]) * (1000 if memory[2] == "GB" else 1) < 4000


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], r"two: ade20k: .*--data\.root DIR"),
        (["--dry-run"], r"two: ade20k: .*--data\.root DIR"),
        (["--data.root", "nowhere"], r"nowhere/images/training: no such folder"),
        (["--rows", "Segmentr"], r"rows: 'Segmentr' .*'Segmenter'"),
        (["--seed", "3"], r"--seed: .*--seeds"),
        (["--seeds", "1", "1"], r"seeds: \(1, 1\)"),
        (["--depths", "-1"], r"depths: \(-1,\)"),
        (["--recipe", "ade20k_segmentr_ti16"], "did you mean 'ade20k_segmenter_ti16'"),
        (["--recipe", "shapes", "--model.encoder_weights", "none.pth"], r"none.pth: no such file"),
        (["--recipe", "shapes", "--rows", "Segm*", "--only-table", "2"], "only_table: 2, .*two"),
        (["--recipe", "shapes", "--splits", "held_out"], "splits: held_out, but data.val_pattern is null"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_trained(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    plan = "recipe: ade20k_segmenter_ti16\nrows: {Segmenter: {}, block: {model.mean_shift: {layers: 1}}}"
    (tmp_path / "two.yaml").write_text(plan)
    assert main(["study", str(tmp_path / "two.yaml"), *words]) == 2
    said = capfd.readouterr().err
    assert re.search(message, said)
    assert said.count("\n") == 1
    assert not list(Path().iterdir())
