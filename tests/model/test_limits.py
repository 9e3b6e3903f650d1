"""Invalid numbers are refused by field, value and rule, before anything is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import meanshifter as ms
from meanshifter.training.config import TrainConfig

HUGE = 99999999999999999999
SMALL = {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 8}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("patch_size", 0),
        ("patch_size", [8, 4]),
        ("patch_size", HUGE),
        ("embed_dim", 0),
        ("embed_dim", 1.5),
        ("num_heads", 0),
        ("depth", HUGE),
        ("in_chans", 1),
        ("mlp_ratio", 0),
        ("mlp_ratio", "a"),
    ],
)
def test_invalid_encoder_arguments_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ms.InputError, match=rf"encoder_args.*{field}"):
        ms.create_model("segmenter-ti16", num_classes=2, image_size=32, encoder_args={**SMALL, field: value})


@pytest.mark.parametrize("size", [4, (4, 64), (64, 7)])
def test_images_below_the_patch_are_refused(size: Any) -> None:
    with pytest.raises(ms.InputError, match=r"image_size: \(.*8 pixels"):
        ms.create_model("segmenter-ti16", num_classes=2, image_size=size, encoder_args=SMALL)


@pytest.mark.parametrize(
    ("preset", "arguments", "field"),
    [
        ("segmenter-ti16", {"image_size": HUGE}, "image_size"),
        ("segmenter-mask-ti16", {"decoder_layers": HUGE}, "decoder_layers"),
        ("segmenter-mask-ti16", {"decoder_layers": -1}, "decoder_layers"),
        ("meanshifter-ti16", {"mean_shift": {"layers": HUGE}}, "mean_shift.layers"),
        ("meanshifter-ti16", {"mean_shift": {"channels": HUGE}}, "mean_shift.channels"),
        ("meanshifter-pixel-ti16", {"pixel_shift": {"factor": HUGE}}, "pixel_shift.factor"),
        ("meanshifter-pixel-ti16", {"pixel_shift": {"channels": 0}}, "pixel_shift.channels"),
    ],
)
def test_invalid_fields_of_the_model_are_refused(preset: str, arguments: dict[str, Any], field: str) -> None:
    value = next(iter(arguments.values()))
    value = next(iter(value.values())) if isinstance(value, dict) else value
    with pytest.raises(ms.InputError, match=rf"{field}: .*{value}.*is not"):
        ms.create_model(preset, num_classes=2, **{"image_size": 32, "encoder_args": SMALL, **arguments})


def test_too_many_steps_at_inference_are_refused() -> None:
    model = ms.create_model("meanshifter-ti16", num_classes=2, image_size=32, encoder_args=SMALL)
    with pytest.raises(ms.InputError, match=f"mean_shift_layers: {HUGE}; .* from 0 to 1000"):
        ms.Predictor(model, mean_shift_layers=HUGE)
    with pytest.raises(ms.InputError, match=f"long_side: {HUGE} pixels"):
        ms.Predictor(model, long_side=HUGE)


@pytest.mark.parametrize(
    "field",
    ["steps", "batch_size", "accumulate", "log_every", "save_every", "seed", "optimizer.warmup", "evaluation.window",
     "evaluation.interval", "evaluation.short_side", "evaluation.limit", "data.workers", "data.cache"],
)  # fmt: skip
def test_numbers_of_a_recipe_are_bounded(field: str) -> None:
    config = TrainConfig()
    *path, name = field.split(".")
    setattr(getattr(config, path[0]) if path else config, name, HUGE)
    with pytest.raises(ms.InputError, match=rf"{field}: {HUGE} must be"):
        config.check()


def test_a_learning_rate_is_finite() -> None:
    config = TrainConfig()
    config.optimizer.lr = float("inf")
    with pytest.raises(ms.InputError, match=r"optimizer\.lr: inf must be a finite number"):
        config.check()


def test_a_crop_below_the_patch_is_refused_by_the_command(tmp_path: Path) -> None:
    from meanshifter.cli.main import main

    arguments = ["train", "shapes", "--steps", "1", "--augment.crop", "[4,4]", "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
