from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meanshifter.errors import InputError
from meanshifter.evaluation.diagnostics import ROWS, _near, by_size, count_modes, modes_of, spread


def joined(tokens: torch.Tensor, radius: float) -> list[set[int]]:
    """The definition: sets are merged as long as two tokens of different sets lie within the radius."""
    sets = [{n} for n in range(len(tokens))]
    for a in range(len(tokens)):
        for b in range(a):
            if (tokens[a] - tokens[b]).norm() <= radius:
                one, other = (next(group for group in sets if n in group) for n in (a, b))
                if one is not other:
                    sets.remove(other)
                    one |= other
    return sets


def groups(labels: Iterable[int]) -> list[set[int]]:
    found: dict[int, set[int]] = {}
    for n, label in enumerate(labels):
        found.setdefault(label, set()).add(n)
    return [found[label] for label in sorted(found)]


@settings(max_examples=50)
@given(N=st.integers(1, 30), seed=st.integers(0, 1000), radius=st.floats(0, 3))
def test_modes_are_the_connected_components_by_descending_size(N: int, seed: int, radius: float) -> None:
    tokens = torch.randn(N, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = groups(modes_of(tokens, radius).tolist())
    expected = sorted(joined(tokens, radius), key=lambda group: (-len(group), min(group)))
    assert found == expected
    assert count_modes(tokens, radius) == len(expected)


@settings(max_examples=30)
@given(seed=st.integers(0, 1000), radius=st.floats(0, 2), more=st.floats(0, 2))
def test_a_larger_radius_only_merges_modes(seed: int, radius: float, more: float) -> None:
    tokens = torch.randn(40, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    fine, coarse = groups(modes_of(tokens, radius).tolist()), groups(modes_of(tokens, radius + more).tolist())
    assert all(any(small <= large for large in coarse) for small in fine)


def test_a_chain_longer_than_a_block_of_rows_is_one_mode_down_to_the_exact_radius() -> None:
    chain = torch.arange(3.0 * ROWS, dtype=torch.float64)[:, None]
    shuffled = chain[torch.randperm(len(chain), generator=torch.Generator().manual_seed(0))]
    assert count_modes(shuffled, 1.0) == 1
    assert count_modes(shuffled, 1 - 1e-12) == len(chain)


def test_close_tokens_far_from_the_origin_are_distinguished() -> None:
    tokens = torch.tensor([[1e6, 0], [1e6, 1e-4], [1e6, 1.0]], dtype=torch.float64)
    assert modes_of(tokens, 1e-3).tolist() == [0, 0, 1]
    assert count_modes(tokens, 1e-5) == 3


def test_groups_are_numbered_by_size_then_by_place() -> None:
    assert by_size(torch.tensor([7, 2, 2, 9, 0, 9])).tolist() == [2, 0, 0, 1, 3, 1]


def test_the_spread_is_the_root_mean_square_distance_from_the_mean() -> None:
    tokens = torch.tensor([[0.0, 0.0], [6.0, 8.0]])
    assert spread(tokens) == 5
    assert spread(tokens[:1]) == 0


@pytest.mark.parametrize("radius", [-1.0, float("nan"), float("inf")])
def test_a_wrong_radius_is_refused(radius: float) -> None:
    with pytest.raises(InputError, match=f"radius: {radius}"):
        modes_of(torch.zeros(2, 2), radius)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("offset", "scale"), [(0, 1), (1000, 1), (1, 1e-9), (3, 0)])
def test_links_are_those_of_the_differences(dtype: torch.dtype, offset: float, scale: float) -> None:
    """Although most are found by products, also if tokens almost coincide, far from zero, or on the radius."""
    generator = torch.Generator().manual_seed(0)
    tokens = (offset + scale * torch.randn(ROWS + 44, 8, generator=generator, dtype=torch.float64)).to(dtype)
    tokens[-30:] = tokens[:30] + 0.01 * scale
    distances = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist")
    for radius in (0.0, 0.1 * spread(tokens), distances[3, 7].item(), 2 * spread(tokens)):
        assert (torch.from_numpy(_near(tokens, radius)) == (distances <= radius)).all()
