"""benchmarks/gpu.py in the small, on the CPU."""

from __future__ import annotations

import sys

import gpu
import pytest
import torch

import meanshifter as ms

CPU = torch.device("cpu")
SMALL = {"encoder_args": {"embed_dim": 24, "depth": 1, "num_heads": 2}}


def test_without_cuda_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    gpu.main()
    assert "no CUDA device" in capsys.readouterr().out


def test_kernels_are_compared_and_a_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    table, same = gpu.check_kernels(CPU, classes=5, grid=3, side=20)
    assert same
    assert table.count("\n| ") == 3 + len(gpu.TERMS)
    usual = ms.ops.upsampled_loss

    def wrong(z: torch.Tensor, *given: object, **named: object) -> torch.Tensor:
        return usual(z, *given, **named) * (1.001 if z.dtype == torch.float32 else 1)  # type: ignore[arg-type]

    monkeypatch.setattr(ms.ops, "upsampled_loss", wrong)
    assert not gpu.check_kernels(CPU, classes=5, grid=3, side=20)[1]


def test_a_row_for_each_way_of_training() -> None:
    table = gpu.training_table(
        CPU, ["ti"], rounds=1, batch=2, crop=32, classes=3, precisions=["fp32", "bf16"], compiled=[], **SMALL
    )
    assert [line.split(" | ")[0] for line in table.splitlines()[4:]] == [
        "| Segmenter-Ti/16, fp32",
        "| Segmenter-Ti/16, bf16",
    ]
