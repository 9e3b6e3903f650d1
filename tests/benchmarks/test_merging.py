"""The rules that benchmarks/merging.py compares."""

from __future__ import annotations

import merging
import pytest
import torch


@pytest.mark.parametrize("name", merging.RULES)
def test_a_window_of_equal_tokens_comes_first(name: str) -> None:
    torch.manual_seed(0)
    windows = torch.randn(2, 9, 4, 16)
    windows[:, 5] = windows[:, 5, :1]
    scores = merging.RULES[name](windows, windows.mean(2))

    assert scores.shape == (2, 9)
    assert (scores.argmax(1) == 5).all()


def test_two_near_pairs_reach_two_modes_and_four_near_tokens_one() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 32)
    pairs = torch.stack([a, a, b, b])
    near = torch.stack([a, a, a, a]) + 0.3 * torch.randn(4, 32)
    far = torch.randn(3, 4, 32)
    windows = torch.stack([pairs, near, *far])[None]
    scores = merging.mean_shift(windows, windows.mean(2))[0]

    assert scores[1] > scores[0]
    assert scores.argmax() == 1
