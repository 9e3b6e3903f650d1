from __future__ import annotations

import numpy as np
import pytest

import meanshifter as ms
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.data.datasets import Subset


def test_matching_names_and_the_rest_are_the_whole() -> None:
    whole = Shapes(split="val")
    pattern = "*" + whole.names[7][-1]
    held, rest = (Subset(whole, pattern, matching=matching) for matching in (True, False))
    assert sorted([*held.names, *rest.names]) == sorted(whole.names)
    assert all(name.endswith(pattern[1]) for name in held.names)
    place = whole.names.index(held.names[0])
    np.testing.assert_array_equal(held[0].image, whole[place].image)
    np.testing.assert_array_equal(held.read_labels(0), whole.read_labels(place))
    assert held.split == f"val like {pattern}"


@pytest.mark.parametrize(("pattern", "some"), [("nothing*", "none"), ("*", "all")])
@pytest.mark.parametrize("matching", [True, False])
def test_a_pattern_must_tell_names_apart(pattern: str, some: str, matching: bool) -> None:
    with pytest.raises(ms.InputError, match=f"{some} of its .* names, such as .* match '{pattern[0]}"):
        Subset(Shapes(split="val"), pattern.replace("*", "*"), matching=matching)
