"""Label maps and confidence that the explorer shows are those of the predictor."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import meanshifter as ms
from meanshifter.app import label_maps
from meanshifter.app.label_maps import LabelMaps, every, shown_size
from tests.conftest import ModelFactory

IMAGE = np.random.default_rng(0).integers(0, 255, (75, 110, 3), dtype=np.uint8)
SETTINGS = [
    {"window": 32, "window_stride": 24, "short_side": 64, "long_side": 200},
    {"window": None, "short_side": None, "flip": True},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=["windows", "flipped"])
@pytest.mark.parametrize("most", [2048, 40], ids=["whole", "thinned"])
def test_they_are_those_of_the_predictor(
    settings: dict[str, object], most: int, tiny_model: ModelFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_maps, "MAX_SIDE", most)
    predictor = ms.Predictor(tiny_model(layers=2), confidence=["probability"], **settings)  # type: ignore[arg-type]
    maps = LabelMaps(predictor, IMAGE, [0, 1])
    assert maps.steps == [0, 1, 2]  # with the trained number
    expected = predictor(IMAGE, mean_shift_layers=maps.steps)
    rows, cols = (every(length, maps.stride) for length in maps.size)
    for step in maps.steps:
        assert maps.labels(step).shape == shown_size(*maps.size)
        assert (maps.labels(step) == expected[step].labels[rows, cols]).all()
        wanted = 255 * expected[step].confidence["probability"][rows, cols]
        assert abs(maps.confidence(step) - wanted).max() <= 0.51
    assert maps.stride == (1 if most == 2048 else 3)
    with pytest.raises(KeyError):
        maps.labels(5)


@pytest.mark.parametrize("kept", [30_000, 0], ids=["one number of steps", "no logits"])
def test_with_too_many_logits_only_the_trained_steps_are_kept(
    kept: int, tiny_model: ModelFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = ms.Predictor(tiny_model(layers=2), window=32, window_stride=24, confidence=["probability"])
    expected = predictor(IMAGE)
    whole = LabelMaps(predictor, IMAGE, [0])
    monkeypatch.setattr(label_maps, "MAX_KEPT", kept)
    maps = LabelMaps(predictor, IMAGE, [0, 1, 2, 3, 4, 5, 6])
    assert (whole.limited, maps.limited, maps.steps) == (False, True, [2])
    assert (maps.labels(2) == expected.labels).all()
    assert (maps.confidence(2) == whole.confidence(2)).all()


def test_progress_ends_at_one_and_may_end_the_computation(tiny_model: ModelFactory) -> None:
    predictor, shares = ms.Predictor(tiny_model(), window=32, window_stride=32, short_side=None), list[float]()
    tall = np.zeros((600, 32, 3), np.uint8)
    LabelMaps(predictor, tall, [], shares.append)
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (3, 1)

    def stop(share: float) -> None:
        raise KeyboardInterrupt

    stopping: Callable[[float], None] = stop
    with pytest.raises(KeyboardInterrupt):
        LabelMaps(predictor, tall, [], stopping)
