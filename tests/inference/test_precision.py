from __future__ import annotations

from unittest import mock

import pytest
import torch

from meanshifter.inference.precision import resolve_precision
from meanshifter.utils.environment import has_bfloat16

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True, "avx2": True}, "bf16"),
        ({"avx2": True}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_is_bfloat16_if_the_processor_has_units_for_it(known: dict[str, bool], expected: str) -> None:
    with mock.patch.object(torch.cpu, "get_capabilities", return_value=known, create=True):
        assert resolve_precision("auto", CPU) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpus_support_bfloat16_since_ampere(capability: tuple[int, int], expected: bool) -> None:
    with mock.patch.object(torch.cuda, "get_device_capability", return_value=capability):
        assert has_bfloat16(torch.device("cuda:0")) is expected


def test_an_explicit_precision_is_kept() -> None:
    assert resolve_precision("fp32", CPU) == "fp32"
    assert resolve_precision("fp16", CPU) == "fp16"
