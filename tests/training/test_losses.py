"""Losses of a recipe: how they are split over passes, class weights, and settings that contradict each other."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from meanshifter.data.catalog import open_dataset
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.data.datasets import Subset
from meanshifter.errors import InputError
from meanshifter.model.config import MeanShiftConfig, PixelShiftConfig
from meanshifter.training import loop as loop_module
from meanshifter.training.config import TrainConfig
from meanshifter.training.data import class_weights
from meanshifter.training.loop import train
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.sections import LossConfig
from meanshifter.training.setup import build_model, open_data, supervised_steps
from meanshifter.training.stream import SampleStream
from meanshifter.utils.files import parse_yaml
from tests.training.test_loop import metrics

MIXED = LossConfig(
    cross_entropy=0.5, dice=2.0, lovasz=1.5, focal=1.0, ohem_share=0.4, boundary_weight=3.0, boundary_radius=2
)


def one_step(tiny: TrainConfig, path: Path, loss: LossConfig, batch_size: int, accumulate: int) -> TrainConfig:
    config = dataclasses.replace(tiny, loss=loss, out=str(path), batch_size=batch_size, accumulate=accumulate)
    config = dataclasses.replace(config, steps=1, log_every=1, ema=None)
    config.model.drop_path = 0.0
    config.optimizer = dataclasses.replace(config.optimizer, name="sgd", lr=0.1, head_lr=0.1)
    config.evaluation = dataclasses.replace(config.evaluation, limit=1)
    return config


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / "model.safetensors")


def test_the_step_averages_the_loss_of_its_passes(tiny: TrainConfig, tmp_path: Path) -> None:
    """Sums over pixels are divided by the total of the step; Dice is averaged over the passes, by their crops."""
    config = one_step(tiny, tmp_path / "run", dataclasses.replace(MIXED, reduction="mean_all"), 2, 2)
    data = Subset(open_dataset("shapes", None, "train"), "*[2-9]*", matching=False)
    model = build_model(config, data.label_space)
    stream = SampleStream(data, config.augment, config.seed, mean=model.config.mean, std=model.config.std)
    losses = []
    for number in range(2):
        images, labels, _ = zip(*(stream.sample(2 * number + k) for k in range(2)), strict=True)
        losses.append(model.loss(torch.stack(images), torch.stack(labels), **config.loss.terms).item())
    run = train(config, quiet=True).path
    assert metrics(run)[0]["loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_losses_that_are_sums_over_pixels_do_not_depend_on_the_split(tiny: TrainConfig, tmp_path: Path) -> None:
    loss = LossConfig(focal=1.0, boundary_weight=3.0, reduction="mean_valid", class_weight_power=0.5)
    whole, parts = (
        weights_of(train(one_step(tiny, tmp_path / str(size), loss, size, 4 // size), quiet=True).path)
        for size in (4, 1)
    )
    for key in whole:
        torch.testing.assert_close(parts[key], whole[key], rtol=1e-4, atol=1e-6)


def test_running_out_of_memory_says_that_the_loss_depends_on_the_split(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crop_loss = loop_module.crop_loss

    def scarce(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(logits) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return crop_loss(logits, *rest)

    monkeypatch.setattr(loop_module, "crop_loss", scarce)
    with pytest.warns(UserWarning, match=r"1 crops per pass and loss\.dice, loss\.lovasz and loss\.ohem_share over"):
        halved = train(one_step(tiny, tmp_path / "halved", MIXED, 2, 1), quiet=True).path
    monkeypatch.undo()
    single = train(one_step(tiny, tmp_path / "single", MIXED, 1, 2), quiet=True).path
    for key, tensor in weights_of(single).items():
        torch.testing.assert_close(weights_of(halved)[key], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("user")
def test_a_resumed_run_keeps_the_crops_of_a_pass_if_its_loss_depends_on_them(tiny: TrainConfig, tmp_path: Path) -> None:
    for loss, refused in ((MIXED, True), (LossConfig(focal=1.0), False)):
        path = tmp_path / str(refused)
        train(one_step(tiny, path, loss, 2, 1), quiet=True)
        again = one_step(tiny, path, loss, 1, 2)
        if refused:
            with pytest.raises(InputError, match=r"batch_size is 1, but was 2 .* loss\.dice"):
                train(again, resume=True, quiet=True)
        else:
            train(again, resume=True, quiet=True)


def test_a_run_from_before_the_fields_existed_resumes(tiny: TrainConfig, tmp_path: Path) -> None:
    path = train(one_step(tiny, tmp_path / "run", LossConfig(), 2, 1), quiet=True).path
    stored = parse_yaml((path / "config.yaml").read_text(), "config.yaml")
    lines = (path / "config.yaml").read_text().splitlines()
    new = {field.name for field in dataclasses.fields(LossConfig)} - {"reduction", "class_weight_power"}
    assert new <= stored["loss"].keys()
    kept = [line for line in lines if line.split(":")[0].strip() not in new]
    assert len(kept) == len(lines) - len(new)
    (path / "config.yaml").write_text("\n".join(kept))
    train(one_step(tiny, path, LossConfig(), 2, 1), resume=True, quiet=True)


def test_class_weights_by_logarithm_are_those_of_enet() -> None:
    shapes = Shapes(split="train", length=4)
    labels = np.stack([shapes[i].labels for i in range(4)])
    share = np.bincount(labels[labels != 255], minlength=7) / (labels != 255).sum()
    expected = 1 / np.log(1.02 + np.maximum(share, share[share > 0].min()))
    weights = class_weights(shapes, LossConfig(class_weights="log"))
    assert weights is not None
    assert (weights.numpy() * share).sum() == pytest.approx(1, rel=1e-5)
    assert weights.numpy() / weights.numpy()[0] == pytest.approx(expected / expected[0], rel=1e-5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"disc": 3.0, "cross": 0.0}, [1, 3, 1, 1, 1, 1, 0]), ([1.0, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 6, 7])],
)
def test_given_class_weights_are_used_as_they_are(given: Any, expected: list[float]) -> None:
    weights = class_weights(Shapes(split="train", length=1), LossConfig(class_weights=given))
    assert weights is not None
    assert weights.tolist() == expected


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"disk": 3.0}, "unknown class 'disk'; did you mean 'disc'"),
        ([1.0, 2.0], "2 numbers, but the data have 7 classes"),
        ([0.0] * 7, "all are 0"),
    ],
)
def test_class_weights_that_do_not_fit_the_data_are_refused(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"loss.class_weights: {message}"):
        class_weights(Shapes(split="train", length=1), LossConfig(class_weights=given))


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["--loss.cross_entropy", "0"], r"loss: cross_entropy, focal, dice, lovasz are 0"),
        (["--loss.dice", "-1"], r"loss\.dice: -1.0 must be finite"),
        (["--loss.ohem_share", "0"], r"loss\.ohem_share: 0.0 must be above 0"),
        (["--loss.focal_gamma", "3"], r"loss\.focal_gamma: 3.0 has no effect; set loss\.focal above 0"),
        (["--loss.boundary_radius", "5"], r"loss\.boundary_radius: 5 has no effect; set loss\.boundary_weight"),
        (
            ["--loss.cross_entropy", "0", "--loss.dice", "1", "--loss.ohem_share", "0.5"],
            r"loss\.ohem_share: 0.5 has no effect; set loss\.cross_entropy above 0",
        ),
        (
            ["--loss.cross_entropy", "0", "--loss.dice", "1", "--loss.class_weights", "log"],
            r"loss\.class_weights: log has no effect; set loss\.cross_entropy or loss\.focal",
        ),
        (
            ["--loss.class_weights", "log", "--loss.class_weight_power", "0.5"],
            r"loss\.class_weights: 'log' conflicts with loss\.class_weight_power 0.5",
        ),
        (["--loss.class_weights", "[1, -1]"], r"loss\.class_weights: \[1.0, -1.0\] has a number that is negative"),
        (["--loss.class_weights", "{}"], r"loss\.class_weights: \{\} is empty"),
        (["--loss.class_weights", "ln"], r"loss\.class_weights: 'ln' is not one of log or a list or a mapping or null"),
    ],
)
def test_losses_that_contradict_each_other_are_refused(fields: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_recipe("shapes", fields)


def test_class_weights_are_read_by_name_from_recipe_and_command_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data: {name: shapes}\nloss: {class_weights: {disc: 3}}\n")
    assert parse_recipe(recipe).loss.class_weights == {"disc": 3.0}
    assert parse_recipe("shapes", ["--loss.class_weights.disc", "2"]).loss.class_weights == {"disc": 2.0}


@pytest.mark.filterwarnings("ignore:optimizer.freeze. the encoder's weights are random")
@pytest.mark.parametrize("cached", [False, True])
def test_deep_supervision_averages_the_losses_after_each_step(
    cached: bool, tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with the head of a frozen encoder, on cached tokens."""
    fields: dict[str, Any] = {"mean_shift": MeanShiftConfig(layers=1, channels=8), "drop_path": 0.0}
    model = replace(tiny.model, **fields)
    config = replace(tiny, steps=1, log_every=1, model=model, loss=LossConfig(deep_supervision=2))
    if cached:
        config = replace(
            config,
            optimizer=replace(config.optimizer, freeze="encoder"),
            data=replace(config.data, token_cache="memory"),
            augment=replace(config.augment, crop=(96, 96), scale=(1, 1), flip=0.0, photometric_distortion=False),
            evaluation=replace(config.evaluation, short_side=96, long_side=96),
        )
    crop_loss, found = loop_module.crop_loss, []

    def watched(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        found.append(crop_loss(logits, *rest))
        return found[-1]

    monkeypatch.setattr(loop_module, "crop_loss", watched)
    run = train(config, quiet=True).path
    logged = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    losses = [float(loss.detach()) for loss in found]
    assert len({round(loss, 6) for loss in losses}) == 2
    assert logged == pytest.approx(sum(losses) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ({}, None),
        ({"mean_shift": MeanShiftConfig(layers=3, channels=8)}, None),
        ({"pixel_shift": PixelShiftConfig(layers=1, channels=8)}, (1, 2)),
        ({"pixel_shift": PixelShiftConfig(layers=2, channels=8)}, (1, 2, 3, 4)),
        ({"pixel_shift": PixelShiftConfig(layers=0, channels=8)}, None),
    ],
)
def test_deep_supervision_is_chosen_by_the_model(
    block: dict[str, Any], expected: tuple[int, ...] | None, tiny: TrainConfig
) -> None:
    config = replace(tiny, model=replace(tiny.model, **block), loss=LossConfig(deep_supervision="auto"))
    config.check()
    model = build_model(config, open_data(config)[0].label_space)
    assert supervised_steps(config, model) == expected


def test_deep_supervision_trains_in_reduced_precision(tiny: TrainConfig) -> None:
    model = replace(tiny.model, pixel_shift=PixelShiftConfig(layers=1, channels=8))
    config = replace(tiny, steps=1, model=model, precision="bf16", loss=LossConfig(deep_supervision="auto"))
    assert train(config, quiet=True).result.protocol.precision == "bf16"


def test_auto_deep_supervision_trains_the_same_as_its_number(tiny: TrainConfig, tmp_path: Path) -> None:
    model = replace(tiny.model, pixel_shift=PixelShiftConfig(layers=1, channels=8))
    scores = []
    for choice in ("auto", 2, None):
        config = replace(tiny, steps=2, log_every=1, model=model, loss=LossConfig(deep_supervision=choice))
        run = train(replace(config, out=str(tmp_path / str(choice))), quiet=True).path
        scores.append([json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()])
    assert scores[0] == scores[1] != scores[2]


def test_deep_supervision_without_steps_is_refused(tiny: TrainConfig) -> None:
    with pytest.raises(InputError, match=r"loss\.deep_supervision: 2 steps, but the model has no mean shift block"):
        train(replace(tiny, loss=LossConfig(deep_supervision=2)), quiet=True)
