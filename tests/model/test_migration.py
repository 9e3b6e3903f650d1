"""Files of the last version with format 1: a run stopped after step 2 of 4, and two models with their logits."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

import meanshifter as ms
from meanshifter.model.migration import migrate_description, migrate_recipe
from meanshifter.training.loop import train
from meanshifter.training.parsing import parse_recipe

FORMER = Path(__file__).parent / "former"


@pytest.mark.parametrize("name", ["jointshifter-mask-ti16", "pixelshifter-ti16"])
def test_former_models_give_the_same_logits(name: str, tmp_path: Path) -> None:
    model = ms.load_model(FORMER / name)
    assert model.config.window_stride == 24
    assert model.label_space.names == ("a", "b", "c")
    with torch.no_grad():
        logits = model(torch.linspace(-1, 1, 3 * 40 * 48).view(1, 3, 40, 48))
    torch.testing.assert_close(logits, load_file(FORMER / "logits.safetensors")[name], rtol=1e-4, atol=1e-5)
    assert isinstance(model, ms.Segmenter)
    model.save(tmp_path)
    again = ms.load_model(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*data.json. missing")
def test_former_runs_resume_to_the_weights_of_an_uninterrupted_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(FORMER / "run", run)
    assert ms.load_model(run).config.mean_shift.residual_readout  # type: ignore[union-attr]
    config = parse_recipe(run / "config.yaml", ["--out", str(run)])
    assert (config.evaluation.interval, config.loss.reduction, config.augment.resize_base) == (2, "mean_valid", None)
    train(config, resume=True, quiet=True)
    expected = load_file(FORMER / "finished.safetensors")
    found = load_file(run / "checkpoints" / "last" / "model.safetensors")
    assert len(found) == len(expected)
    for name, value in found.items():
        former = name.replace("residual_readout", "beside")
        torch.testing.assert_close(value, expected[former], rtol=1e-4, atol=1e-5)
    assert yaml.safe_load((run / "config.yaml").read_text())["format_version"] == 2


def test_recipes_and_exports_of_format_1_get_current_names() -> None:
    values = {"data": {"hold_out": "a*", "on_device": True}, "model": {"start": "m", "preset": "pixelshifter-mask-s16"}}
    assert migrate_recipe(values, "r.yaml") == {
        "format_version": 2,
        "data": {"val_pattern": "a*", "gpu_cache": True},
        "model": {"init_from": "m", "preset": "meanshifter-pixel-mask-s16"},
    }
    runtime = {"format": "onnx", "stride": 16, "reading": {"stride": 480, "protocol": "segmenter"}}
    described = migrate_description({"labels": {}, "model": {"backbone": "vit"}, "runtime": runtime}, "config.json")
    assert described == {
        "format_version": 2,
        "label_space": {},
        "model": {"encoder": "vit"},
        "runtime": {
            "format": "onnx",
            "output_stride": 16,
            "reading": {"window_stride": 480, "compat": "segmenter"},
        },
    }


def test_a_block_with_a_removed_option_is_refused() -> None:
    with pytest.raises(ms.InputError, match=r"r\.yaml: mean_shift\.restore is true"):
        migrate_recipe({"model": {"mean_shift": {"restore": True}}}, "r.yaml")
