"""Trainings that go on from a model that is there already."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.data import Shapes
from meanshifter.model.config import MeanShiftConfig
from meanshifter.training.config import TrainConfig
from meanshifter.training.loop import train
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.setup import build_model
from tests.checkpoints.foreign import Toy, mmsegmentation_state
from tests.checkpoints.test_checkpoints import save_mmsegmentation

K = Shapes().label_space.num_classes


def recipe(tmp_path: Path, start: Path, **fields: Any) -> TrainConfig:
    given = {
        "model.init_from": start,
        "data.workers": 0,
        "steps": 1,
        "batch_size": 2,
        "optimizer.lr": 1e-4,
        "optimizer.min_lr": 0,
        "augment.crop": [48, 48],
        "augment.resize_base": "null",
        "evaluation.window": 48,
        "evaluation.window_stride": 40,
        "evaluation.short_side": "null",
        "evaluation.limit": 1,
        **fields,
    }
    (tmp_path / "recipe.yaml").write_text("data: {name: shapes}\n")
    return parse_recipe(
        tmp_path / "recipe.yaml", [*(f"--{name}={value}" for name, value in given.items()), f"--out={tmp_path / 'run'}"]
    )


def test_masks_are_looked_at_before_weights_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meanshifter.training.setup.create_model", lambda *_, **__: pytest.fail("weights first"))
    for folder in ("images", "masks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for name in ("a.png", "b.png"):
            pixels = np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / folder / name)
    (tmp_path / "data" / "classes.txt").write_text("sky\nroad")
    with pytest.raises(ms.InputError, match=r"masks.*\.png"):
        ms.train(tmp_path / "data", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("head", ["linear", "mask", "shift"])
def test_a_checkpoint_of_another_tool_goes_on(head: str, tmp_path: Path) -> None:
    toy = Toy()._replace(K=K)
    facts = {"dataset_meta": {"classes": list(Shapes().label_space.names)}}
    path = save_mmsegmentation(tmp_path / "theirs.pth", mmsegmentation_state(toy, head), toy, **facts)
    source = ms.load_model(path, mean_shift_layers=1) if head == "shift" else ms.load_model(path)
    assert isinstance(source, ms.Segmenter)
    config = recipe(tmp_path, path)
    with pytest.warns(UserWarning, match="1 mean shift step") if head == "shift" else nullcontext():
        model = build_model(config, Shapes().label_space)
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert (model.config.positions, model.config.norm_eps) == (source.config.positions, source.config.norm_eps)
    assert (model.config.window, model.config.window_stride, model.config.short_side) == (48, 40, None)
    if head == "linear":
        train(config, quiet=True)
        trained = ms.load_model(tmp_path / "run")
        assert isinstance(trained, ms.Segmenter)
        change = (trained.state_dict()["decoder.head.weight"] - source.state_dict()["decoder.head.weight"]).abs().max()
        assert 0 < change < 1e-2


@pytest.mark.parametrize(
    "preset", ["segmenter-ti16", "segmenter-mask-ti16", "meanshifter-ti16", "meanshifter-pixel-ti16"]
)
def test_what_depends_on_the_number_of_classes_starts_anew(preset: str, tmp_path: Path) -> None:
    source = ms.create_model(preset, num_classes=3, image_size=48, encoder_args={"depth": 1})
    source.save(tmp_path / "source")
    with pytest.warns(UserWarning, match=f"has 3 classes, and the data have {K}; .* re-initialized"):
        model = build_model(recipe(tmp_path, tmp_path / "source"), Shapes().label_space)
    same = {name for name, value in source.state_dict().items() if torch.equal(value, model.state_dict()[name])}
    assert all(name.startswith("decoder.") for name in source.state_dict().keys() - same)
    assert model(torch.zeros(1, 3, 48, 48)).shape[1] == K


def test_a_bandwidth_that_was_learned_is_kept(tmp_path: Path) -> None:
    shift = {"layers": 1, "init_neighbors": 4.0}
    source = ms.create_model(
        "meanshifter-ti16", classes=Shapes().label_space, image_size=48, encoder_args={"depth": 1}, mean_shift=shift
    )
    source.save(tmp_path / "source")
    train(recipe(tmp_path, tmp_path / "source", **{"optimizer.lr": 1e-12}), quiet=True)
    trained = ms.load_model(tmp_path / "run")
    assert isinstance(trained, ms.Segmenter)
    assert trained.mean_shift is not None
    assert source.mean_shift is not None
    torch.testing.assert_close(trained.mean_shift.project.weight, source.mean_shift.project.weight, atol=1e-6, rtol=0)


def test_a_new_model_follows_the_seed(tiny: TrainConfig) -> None:
    first, again, other = (
        build_model(replace(tiny, seed=seed), Shapes().label_space).state_dict()["decoder.head.weight"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_stochastic_depth_is_the_recipes(tmp_path: Path) -> None:
    source = ms.create_model("segmenter-ti16", classes=Shapes().label_space, image_size=48, encoder_args={"depth": 2})
    source.save(tmp_path / "source")
    model = build_model(recipe(tmp_path, tmp_path / "source", **{"model.drop_path": 0.4}), Shapes().label_space)
    assert source.config.drop_path != 0.4
    assert model.config.drop_path == 0.4
    rates = [getattr(block.drop_path1, "drop_prob", 0) for block in model.encoder.vit.blocks.children()]
    assert rates == pytest.approx([0, 0.4])


def test_contradictions_and_renamed_classes_are_told(tmp_path: Path) -> None:
    names = ["sky", *Shapes().label_space.names[1:]]
    source = ms.create_model("segmenter-ti16", classes=names, image_size=48, encoder_args={"depth": 1})
    source.save(tmp_path / "source")
    with pytest.warns(UserWarning, match="is 'sky' in .*source but 'background' in the data"):
        build_model(recipe(tmp_path, tmp_path / "source"), Shapes().label_space)
    with pytest.raises(ms.InputError, match=r"model\.mean_shift: .*model\.init_from"):
        recipe(tmp_path, tmp_path / "source", **{"model.mean_shift": "{layers: 1}"})
    config = recipe(tmp_path, tmp_path / "source")
    config.model.mean_shift = MeanShiftConfig(layers=1)
    with pytest.raises(ms.InputError, match=r"model\.mean_shift: .*model\.init_from"):
        build_model(config, Shapes().label_space)
