from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from meanshifter.analysis import demo as study
from meanshifter.analysis.demo import run_demo, score_table
from meanshifter.cli.main import main
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.errors import InputError
from meanshifter.evaluation.evaluate import evaluate
from meanshifter.inference.predictor import Predictor
from meanshifter.model.saving import read_model
from meanshifter.training.config import TrainConfig
from meanshifter.training.display import Stopped
from meanshifter.training.loop import Trained, train

TINY = """
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
steps: 3
evaluation: {interval: 0, window: null, short_side: null, limit: 6}
accelerator: cpu
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(autouse=True)
def _few_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study, "COLOR_SAMPLES", 5)
    monkeypatch.setattr(study, "PICTURES", 2)


def test_all_models_are_trained_scored_and_shown(tiny: Path, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "demo"
    demo = run_demo(out, recipe=tiny, steps=2, quiet=True, say=said.append)
    assert sorted(path.name for path in out.iterdir()) == ["demo.html", "meanshifter", "meanshifter-pixel", "segmenter"]
    assert len(said) == 3
    assert "2 steps" in said[0]
    plain, shifted, fine = (read_model(out / name) for name in ("segmenter", "meanshifter", "meanshifter-pixel"))
    assert plain.mean_shift is None
    assert shifted.mean_shift is not None
    assert shifted.mean_shift.layers == 1
    assert fine.pixel_shift is not None
    assert fine.pixel_shift.layers == 1
    text = demo.page.read_text("utf-8")
    for entry, model in zip(demo.entries, (plain, shifted, fine), strict=True):
        again = evaluate(Predictor(model, window=None, short_side=None), Shapes(split="val"), limit=6)
        assert entry.result.mIoU == pytest.approx(again.mIoU)
        assert entry.parameters == sum(parameter.numel() for parameter in model.parameters())
        assert f"<td>{again.mIoU:.1f}</td>" in text
        assert f"{entry.parameters:,}" in text
        assert str(again.protocol) in text
    assert text.count("<figure>") == 2 * 5


def test_a_taken_folder_is_refused_and_only_a_demo_is_replaced(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"already exists.*--out DIR.*--overwrite"):
        run_demo(out, recipe=tiny)
    (out / "segmenter").mkdir()
    (out / "segmenter" / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="segmenter: "):
        run_demo(out, recipe=tiny, overwrite=True)
    (out / "segmenter" / "thesis.tex").rename(out / "thesis.tex")
    (out / "segmenter" / "config.yaml").write_text("data: {name: folder}")
    with pytest.raises(InputError, match="segmenter: "):
        run_demo(out, recipe=tiny, overwrite=True)
    (out / "segmenter" / "config.yaml").write_text("data: {name: shapes}")
    run_demo(out, recipe=tiny, steps=1, overwrite=True, quiet=True, say=lambda line: None)
    assert (out / "demo.html").is_file()
    assert (out / "notes.txt").read_text() == (out / "thesis.tex").read_text() == "mine"


def test_wrong_steps_leave_with_status_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--out", str(tmp_path / "demo"), "--steps", "0"]) == 2
    assert "steps: 0" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_file_in_the_place_of_the_folder_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "demo").write_text("")
    with pytest.raises(InputError, match="demo: is a file"):
        run_demo(tmp_path / "demo", recipe=tiny)


def test_a_demo_that_was_stopped_goes_on_with_the_same_command(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_demo(tmp_path / "whole", recipe=tiny, quiet=True, say=lambda line: None)
    out = tmp_path / "demo"

    def stopped_in_the_second(config: TrainConfig, **options: Any) -> Trained:
        if config.model.mean_shift is not None:
            train(config, **options)
            raise Stopped("stopped after step 1 of 3; resume with the same command and --resume", signal.SIGINT)
        return train(config, **options)

    monkeypatch.setattr(study, "train", stopped_in_the_second)
    with pytest.raises(Stopped, match=r"step 1 of 3; .* the same command$"):
        run_demo(out, recipe=tiny, quiet=True, say=lambda line: None)
    monkeypatch.setattr(study, "train", train)
    with pytest.raises(InputError, match=r"steps: 2, .*--steps 3"):
        run_demo(out, recipe=tiny, steps=2)
    kept = (out / "segmenter" / "checkpoints" / "last" / "model.safetensors").read_bytes()
    said: list[str] = []
    demo = run_demo(out, recipe=tiny, quiet=True, say=said.append)
    assert [("resumed" in line) for line in said] == [True, True, False]
    assert (out / "segmenter" / "checkpoints" / "last" / "model.safetensors").read_bytes() == kept
    assert [entry.result.mIoU for entry in demo.entries] == [entry.result.mIoU for entry in whole.entries]
    assert [row[-1] for row in score_table(demo)[1]][:-1] == ["–"] * 3, "only a part of their time is known"
    with pytest.raises(InputError, match="already exists"):
        run_demo(out, recipe=tiny)


@pytest.mark.parametrize(("overwrite", "again"), [(False, "the same command"), (True, "the same command without")])
def test_a_stop_between_the_trainings_says_how_to_go_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool, again: str
) -> None:
    def stop(*_: object, **__: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "patch_color_miou", stop)
    with pytest.raises(KeyboardInterrupt, match=f"interrupted; .*{again}"):
        run_demo(tmp_path / "demo", recipe=tiny, steps=1, overwrite=overwrite, quiet=True, say=lambda line: None)


def test_a_lock_that_a_kill_left_behind_is_no_demo(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "demo" / "segmenter").mkdir(parents=True)
    (tmp_path / "demo" / "segmenter" / ".lock").write_text("process 1\n")
    run_demo(tmp_path / "demo", recipe=tiny, steps=1, overwrite=True, quiet=True, say=lambda line: None)
    assert (tmp_path / "demo" / "demo.html").is_file()
