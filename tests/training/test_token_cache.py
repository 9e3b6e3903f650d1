"""Tokens that are computed once: what they allow, that nothing else changes, and that runs resume."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import meanshifter as ms
from meanshifter.data import Shapes
from meanshifter.data.datasets import Subset
from meanshifter.errors import RunError
from meanshifter.model.encoder import Encoder
from meanshifter.training import loop, token_cache
from meanshifter.training.config import TrainConfig
from meanshifter.training.loop import train
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.setup import resolve
from meanshifter.training.stream import SampleStream
from meanshifter.training.token_cache import is_mirrored
from tests.training.test_adapters import interrupt_after, toy

WORDS = {
    "optimizer.freeze": "encoder",
    "augment.scale": "[1.0, 1.0]",
    "augment.photometric_distortion": "false",
    "augment.crop": "[96, 112]",  # the images have 96×96
    "evaluation.interval": "0",
    "evaluation.limit": "1",
    "steps": "5",
    "save_every": "3",
}
IMAGES = 16
Configure = Callable[..., TrainConfig]


@pytest.fixture
def configured(tiny_text: str, tmp_path: Path) -> Configure:
    toy(depth=1).save(tmp_path / "source")
    (tmp_path / "recipe.yaml").write_text(tiny_text)

    def make(kind: str, out: str = "run", **words: str) -> TrainConfig:
        named = {"data.token_cache": kind, "model.init_from": str(tmp_path / "source"), **WORDS}
        named |= {name.replace("__", "."): value for name, value in words.items()}
        given = [f"--{name}={value}" for name, value in named.items()]
        return parse_recipe(tmp_path / "recipe.yaml", [*given, "--out", str(tmp_path / out)])

    return make


def weights(run: Path, file: str = "training") -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "last" / f"{file}.safetensors")


def test_cached_tokens_train_the_same_model(configured: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    anew = weights(train(configured("null", "anew"), quiet=True).path)
    calls = 0
    forward = Encoder.forward

    def counted(self: Encoder, images: torch.Tensor) -> Any:
        nonlocal calls
        calls += len(images)
        return forward(self, images)

    monkeypatch.setattr(Encoder, "forward", counted)
    memory = weights(train(configured("memory", "memory"), quiet=True).path)
    assert calls == 2 * IMAGES + 1, "each image and its mirror image once, and one that is scored"
    disk = weights(train(configured("disk", "disk"), quiet=True).path)
    assert memory.keys() == disk.keys() == anew.keys()
    for key, value in anew.items():
        torch.testing.assert_close(memory[key], value, rtol=1e-3, atol=1e-5)  # batches round differently
        assert torch.equal(disk[key], memory[key]), key


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_a_run_on_cached_tokens_resumes_to_the_same_bytes(
    kind: str, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = weights(train(configured(kind, "whole"), quiet=True).path)
    config = configured(kind)
    interrupt_after(4, config, monkeypatch)
    folder = Path(str(config.out)) / "token_cache"
    assert len(list(folder.rglob("*.safetensors"))) == (2 * IMAGES if kind == "disk" else 0)
    for file in list(folder.rglob("*_mirrored.safetensors"))[:3]:
        file.unlink()  # as if the run had been killed while it computed them
    resumed = weights(train(config, resume=True, quiet=True).path)
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_the_same_images_are_mirrored_as_without_a_cache(share: float) -> None:
    config = replace(TrainConfig().augment, crop=(100, 96), resize_base=(96, 96), scale=(1.0, 1.0))
    config = replace(config, photometric_distortion=False, max_class_share=share)
    data = Subset(Shapes(), "*[2-9]*", matching=False)
    stream = SampleStream(data, config, 3, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    found = []
    for position in range(40):
        plain = SampleStream(data, replace(config, flip=0.0), 3, mean=stream.mean, std=stream.std).sample(position)
        found.append(is_mirrored(stream, position))
        image = np.asarray(stream.sample(position)[0])
        assert np.array_equal(image, np.asarray(plain[0])) != found[-1]
    assert 8 < sum(found) < 32


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            {"optimizer__freeze": "null"},
            "optimizer.freeze: null .*token_cache memory; set it to encoder",
        ),
        ({"augment__scale": "[0.5, 1.0]"}, r"augment.scale: \(0.5, 1.0\) .*set it to \[1, 1\]"),
        ({"augment__photometric_distortion": "true"}, "augment.photometric_distortion: True"),
        ({"augment__rotation": "10"}, r"augment.rotation: 10\.0 .*set it to 0\.0"),
        ({"augment__rare_crops": "0.5"}, "augment.rare_crops: 0.5"),
        ({"augment__cutmix": "0.5"}, "augment.cutmix: 0.5"),
        ({"augment__aspect": "[0.8, 1.2]"}, r"augment.aspect: \(0.8, 1.2\) .*set it to \(1.0, 1.0\)"),
        ({"augment__transforms": "[{name: RandomSolarize, threshold: 128}]"}, "augment.transforms: .*RandomSolarize"),
        ({"data__gpu_cache": "true"}, "data.gpu_cache: True"),
        ({"data__cache": "5"}, "data.cache: 5"),
        ({"devices": "2"}, "devices: 2"),
    ],
)
def test_what_changes_tokens_is_refused_by_field(words: dict[str, str], named: str, configured: Configure) -> None:
    with pytest.raises(ms.InputError, match=named):
        configured("memory", **words)


def test_several_processes_of_torchrun_are_refused(configured: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured("disk")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ms.InputError, match=r"devices: 2 conflicts with data\.token_cache disk; set it to 1"):
        resolve(config)


def test_tokens_of_a_loss_that_is_not_finite_are_kept(
    configured: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "crop_loss", lambda logits, *_: logits.sum() * float("nan"))
    with pytest.raises(RunError, match="step 1: the loss is nan"):
        train(configured("memory"), quiet=True)
    kept = load_file(tmp_path / "run" / "nonfinite" / "step_1.safetensors")
    assert kept["tokens"].shape[1:] == (6 * 7, 24)
    assert kept["labels"].shape[1:] == (96, 112)


def test_crops_of_parts_are_refused(configured: Configure) -> None:
    config = configured("memory", augment__crop="[64, 96]")
    with pytest.raises(ms.InputError, match=r"augment\.crop: 64×96 .*resized to 96×96.*augment\.resize_base 64 64"):
        train(config, quiet=True)
    assert not Path(str(config.out)).exists()


def test_a_block_that_reads_images_is_refused(configured: Configure, tmp_path: Path) -> None:
    toy("meanshifter-pixel-ti16").save(tmp_path / "source")
    with pytest.raises(ms.InputError, match=r"data\.token_cache: memory, .*pixel_shift"):
        train(configured("memory"), quiet=True)


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_too_little_room_is_told_before_anything_is_written(
    kind: str, configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = 2 * IMAGES * (6 * 7 * 24 * 4 + 96 * 112)
    monkeypatch.setattr(token_cache, "_memory", lambda: needed - 1)
    usage = shutil.disk_usage("/")._replace(free=needed - 1)
    monkeypatch.setattr("meanshifter.training.token_cache.shutil.disk_usage", lambda _: usage)
    config = configured(kind)
    with pytest.raises(ms.InputError, match=rf"token_cache: {kind} needs 0\.0 GB for the tokens of {IMAGES} images"):
        train(config, quiet=True)
    assert not Path(str(config.out)).exists()
