"""A step whose crops do not fit into memory at once."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from meanshifter.errors import RunError
from meanshifter.training import loop as step_module
from meanshifter.training.config import TrainConfig
from meanshifter.training.loop import train
from tests.training.test_loop import metrics


def test_parts_too_large_for_memory_are_halved_to_the_same_weights(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = dataclasses.replace(tiny, batch_size=4, steps=3)
    tiny.loss.reduction = "mean_valid"
    whole = train(dataclasses.replace(tiny, out=str(tmp_path / "whole")), quiet=True).path
    crop_loss, most = step_module.crop_loss, 1

    def scarce(logits: torch.Tensor, *rest: Any) -> torch.Tensor:
        if len(logits) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return crop_loss(logits, *rest)

    monkeypatch.setattr(step_module, "crop_loss", scarce)
    with pytest.warns(UserWarning, match="out of memory with") as notices:
        halved = train(tiny, quiet=True).path
    assert [str(notice.message).split(":")[0] for notice in notices] == [
        "out of memory with 4 crops per pass",
        "out of memory with 2 crops per pass",
    ]
    ours, theirs = (load_file(run / "checkpoints" / "last" / "training.safetensors") for run in (halved, whole))
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)
    assert [line["loss"] for line in metrics(halved) if "loss" in line] == pytest.approx(
        [line["loss"] for line in metrics(whole) if "loss" in line], rel=1e-5
    )

    most = 0
    with pytest.raises(RunError, match=r"out of memory with a single crop of \(64, 64\)"):
        train(dataclasses.replace(tiny, batch_size=1, out=str(tmp_path / "none")), quiet=True)


def test_what_was_learned_before_memory_ran_out_does_not_count_twice(
    tiny: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two passes fails, when the gradient of the first is there already."""
    tiny = dataclasses.replace(tiny, batch_size=2, accumulate=2, steps=1)
    tiny.optimizer = dataclasses.replace(tiny.optimizer, name="sgd", lr=0.1, head_lr=0.1)
    whole = train(dataclasses.replace(tiny, out=str(tmp_path / "whole")), quiet=True).path
    crop_loss, calls = step_module.crop_loss, 0

    def scarce(*args: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return crop_loss(*args)

    monkeypatch.setattr(step_module, "crop_loss", scarce)
    with pytest.warns(UserWarning, match="out of memory with 2 crops per pass"):
        halved = train(tiny, quiet=True).path
    ours, theirs = (load_file(run / "checkpoints" / "last" / "training.safetensors") for run in (halved, whole))
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-6)
