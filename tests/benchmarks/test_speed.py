from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from measure import main
from speed import cases, definition, report
from speed.timing import Measured, compare, peak_memory

import meanshifter as ms


def test_ways_are_timed_in_turn_and_compared_with_the_first() -> None:
    order: list[str] = []
    measured = compare({name: partial(order.append, name) for name in "ab"}, rounds=4, memory=False)
    assert [row.name for row in measured] == ["a", "b"]
    assert "".join(order) == "ab" + "ab" + "ba" + "ab" + "ba"
    assert all(row.low <= row.seconds <= row.high for row in measured)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the peak of a process")
def test_the_peak_is_what_was_held_at_once() -> None:
    def hold() -> None:
        for _ in range(3):
            np.ones(6_000_000).sum()

    peak = peak_memory(hold)
    assert peak is not None
    assert 40e6 < peak < 75e6


def test_the_table_gives_ratios_to_its_first_row() -> None:
    text = report.table(
        "T", [Measured("usual", 0.2, 0.1, 0.3, 8_000_000), Measured("ours", 0.05, 0.04, 0.06, 1_000_000)]
    )
    assert "| usual | 200.0 | 100.0–300.0 | 1.00 | 8.0 | 1.0 |" in text
    assert "| ours | 50.0 | 40.0–60.0 | 4.00 | 1.0 | 8.0 |" in text


def test_the_definition_of_prediction_gives_the_label_map_of_the_predictor() -> None:
    torch.manual_seed(0)
    model = ms.create_model("segmenter-ti16", num_classes=5, image_size=64, encoder_args={"depth": 1}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    mean, std = np.asarray(model.config.mean, np.float32), np.asarray(model.config.std, np.float32)
    with cases.photo(70, 110) as path:
        usual = definition.slide(model, path, mean, std, window=64, stride=48, K=5)
        ours = ms.Predictor(model, window=64, window_stride=48, short_side=None)(path).labels
    assert len(np.unique(usual)) > 1
    assert (usual == ours).mean() > 0.999


def test_the_definition_of_a_training_sample_is_one(shared: Path) -> None:
    root = shared / "data" / "ade20k_sample"
    files = [next((root / kind / "validation").glob("*1.*")) for kind in ("images", "annotations")]
    rng = np.random.default_rng(0)
    image, labels = definition.training_sample(files[0], files[1], rng, crop=512, base=(2048, 512), scale=(0.5, 2.0))
    assert image.shape == (3, 512, 512)
    assert labels.shape == (512, 512)
    assert set(labels.unique().tolist()) <= {*range(150), 255}


def test_the_command_prints_and_writes_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logits = torch.randn(1, 5, 4, 4)
    monkeypatch.setattr(
        cases, "CASES", {"label-map": ("Small label map", lambda device: cases.label_map(logits, device))}
    )
    main(["--only", "label-map", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert "### Small label map" in shown
    assert "| meanshifter |" in (tmp_path / "benchmarks.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--only", "speed"], "--only: 'speed'; use label-map,"),
        (["--only", "samples"], "--ade20k: missing"),
        (["--device", "gpu0"], "--device: 'gpu0' is no device"),
        (["--device", "meta"], "--device: meta"),
        (["--device", "cuda:99"], "--device: cuda:99; torch finds"),
        (["--threads", "0"], "--threads: 0; it must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(words)
    assert message in capsys.readouterr().err


def test_a_plot_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need matplotlib")
    points = {"ours": [(256, Measured("ours", 0.1, 0.1, 0.1, None)), (512, Measured("ours", 0.4, 0.4, 0.4, None))]}
    report.write_plot(points, tmp_path / "area.svg")
    assert "<svg" in (tmp_path / "area.svg").read_text("utf-8")
    assert "| ours | 100 | – | 400 | – |" in report.area_table(points)


def test_a_training_step_is_measured_as_it_is_usually_written_and_as_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []

    def once(ways: dict[str, Callable[[], object]], **_: object) -> list[Measured]:
        seen.append({name: work() for name, work in ways.items()})
        return []

    small = partial(ms.create_model, image_size=512, encoder_args={"depth": 1})
    monkeypatch.setattr(ms, "create_model", small)
    monkeypatch.setattr(cases, "compare", once)
    monkeypatch.setattr(cases, "K", 3)
    cases.step()
    assert {"definition, 2 crops, fp32", "meanshifter, 2 crops, fp32"} <= set(seen[0])


def test_on_cuda_work_is_waited_for_and_its_memory_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    now, peak = [0], [0]

    def work() -> None:
        calls.append("work")
        now[0] += 10
        peak[0] = max(peak[0], now[0] + 500)
        now[0] -= 10

    cuda = torch.cuda
    monkeypatch.setattr(cuda, "synchronize", lambda _: calls.append("wait"))
    monkeypatch.setattr(cuda, "memory_allocated", lambda _: now[0] + 7)
    monkeypatch.setattr(cuda, "max_memory_allocated", lambda _: peak[0] + 7)
    monkeypatch.setattr(cuda, "reset_peak_memory_stats", lambda _: calls.append("reset"))
    (row,) = compare({"a": work}, rounds=2, device=torch.device("cuda"))
    assert calls == ["work", *["wait", "work", "wait"] * 2, "wait", "reset", "work", "wait"]
    assert row.peak_bytes == 510
