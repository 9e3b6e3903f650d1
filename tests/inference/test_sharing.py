"""One model, shared by several threads and predictors, even while it trains."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import meanshifter as ms

Make = Callable[..., ms.Segmenter]


def flags(model: nn.Module) -> dict[str, Any]:
    return {name: (part.training, getattr(part, "fused_attn", None)) for name, part in model.named_modules()}


def image(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)


def training(model: ms.Segmenter) -> ms.Segmenter:
    """A model in training mode, except for one part, with stochastic depth and dropout that would change label maps."""
    part: Any
    for part in model.train().modules():
        if hasattr(part, "drop_prob"):
            part.drop_prob = 0.9
        if isinstance(part, nn.Dropout):
            part.p = 0.9
    model.decoder.eval()
    return model


def test_eight_threads_share_a_model_that_stays_in_training_mode(tiny_model: Make) -> None:
    model = tiny_model()
    expected = ms.Predictor(model, window=24, window_stride=16, short_side=None)(image()).labels
    before = flags(training(model))
    predictor = ms.Predictor(model, window=24, window_stride=16, short_side=None, batch_size=1)
    seen = set()
    model.encoder.register_forward_pre_hook(lambda *_: seen.add(model.training))
    with ThreadPoolExecutor(8) as pool:
        maps = list(pool.map(lambda _: predictor(image()).labels, range(16)))
    assert all(np.array_equal(found, expected) for found in maps)
    assert seen == {True}
    assert flags(model) == before


def test_predictors_of_one_model_choose_attention_separately(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    before, seen = flags(model), set()
    attention: Any = model.encoder.vit.blocks[0].attn
    attention.register_forward_hook(lambda part, *_: seen.add((torch.is_autocast_enabled("cpu"), part.fused_attn)))
    predictors = [ms.Predictor(model, short_side=None, precision=kind) for kind in ("fp32", "bf16")]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: predictors[i % 2](image(i)), range(16)))
    assert seen == {(False, True), (True, False)}
    assert flags(model) == before


def test_a_failed_prediction_leaves_the_model_unchanged(tiny_model: Make) -> None:
    model = training(tiny_model())
    before = flags(model)
    predictor = ms.Predictor(model, short_side=None)

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    model.encoder.register_forward_hook(fail)
    with pytest.raises(ZeroDivisionError):
        predictor(image())
    assert flags(model) == before


@pytest.mark.parametrize("change", ["trained", "loaded", "cast", "replaced", "assigned"])
def test_a_predictor_uses_the_current_weights_of_its_model(change: str, tiny_model: Make) -> None:
    model, other = training(tiny_model()), tiny_model()
    predictor = ms.Predictor(model, short_side=None)
    predictor(image())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if change == "trained":
        with torch.no_grad():
            for own, new in zip(model.parameters(), other.parameters(), strict=True):
                own.copy_(new)
    elif change in ("loaded", "assigned"):
        model.load_state_dict(other.state_dict(), assign=change == "assigned")
    elif change == "cast":
        model.load_state_dict(other.state_dict())
        model.double().float()
    else:
        model.encoder, model.decoder, model.mean_shift = other.encoder, other.decoder, other.mean_shift
    assert np.array_equal(predictor(image()).labels, ms.Predictor(other, short_side=None)(image()).labels)


def test_a_view_shares_tensors_but_no_settings(tiny_model: Make) -> None:
    model = training(tiny_model("segmenter-mask-ti16"))
    before = flags(model)
    view = model.evaluation_view()
    assert type(view) is ms.Segmenter
    assert not any(part.training for part in view.modules())
    assert {key: id(value) for key, value in view.named_parameters()} == {
        key: id(value) for key, value in model.named_parameters()
    }
    view.set_attention(fused=False)
    assert flags(model) == before


def test_compiled_parts_run_in_evaluation_mode(tiny_model: Make) -> None:
    model = tiny_model()
    expected = ms.Predictor(model, short_side=None)(image()).labels
    training(model)
    model.encoder = torch.compile(model.encoder, backend="eager")  # type: ignore[assignment]
    model.encoder.compile(backend="eager")
    assert np.array_equal(ms.Predictor(model, short_side=None)(image()).labels, expected)
