"""The block against the equations, written out in float64 NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import meanshifter as ms
from meanshifter.model.config import MeanShiftConfig
from meanshifter.model.mean_shift import MeanShift

Array = npt.NDArray[np.float64]


def reference_weights(z: Array, E: Array, bias: Array) -> Array:
    """S = softmax(R Rᵀ / sqrt(d_ms)) row by row, R = z E_r."""
    R = z @ E.T + bias
    scores = R @ R.swapaxes(-1, -2) / np.sqrt(E.shape[0])
    exponentials = np.exp(scores - scores.max(-1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(-1, keepdims=True))


def reference(z: Array, E: Array, bias: Array, layers: int) -> list[Array]:
    """z ← S z, `layers` times; all states."""
    states = [z]
    for _ in range(layers):
        states.append(reference_weights(states[-1], E, bias) @ states[-1])
    return states


def block(width: int, channels: int, seed: int, dtype: torch.dtype) -> MeanShift:
    torch.manual_seed(seed)
    module = MeanShift(width, MeanShiftConfig(1, channels)).to(dtype)
    torch.nn.init.normal_(module.project.weight, std=0.7 * width**-0.5 * channels**-0.25)
    torch.nn.init.normal_(module.project.bias, std=0.1)
    return module


@settings(max_examples=40)
@given(
    layers=st.integers(0, 4),
    width=st.sampled_from([3, 8, 24, 192]),
    channels=st.sampled_from([1, 5, 16, 64, 192, 256]),
    tokens=st.sampled_from([1, 7, 50]),
    seed=st.integers(0, 99),
)
def test_the_block_follows_the_equations(layers: int, width: int, channels: int, tokens: int, seed: int) -> None:
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        module = block(width, channels, seed, dtype)
        z = torch.randn(2, tokens, width, dtype=dtype)
        E, bias = (p.detach().double().numpy() for p in (module.project.weight, module.project.bias))
        states = reference(z.double().numpy(), E, bias, layers)
        with torch.no_grad():
            np.testing.assert_allclose(module(z, layers).double().numpy(), states[-1], atol=tolerance, rtol=0)
            trajectory = module.trajectory(z, layers).double().numpy()
            weights = module.weights(z).double().numpy()
        assert trajectory.shape == (layers + 1, 2, tokens, width)
        np.testing.assert_allclose(trajectory, np.stack(states), atol=tolerance, rtol=0)
        np.testing.assert_allclose(weights, reference_weights(states[0], E, bias), atol=tolerance, rtol=0)


@pytest.mark.parametrize(("width", "channels"), [(6, 6), (6, 4), (4, 9)])
@pytest.mark.parametrize("layers", [1, 3])
def test_the_gradient_is_right(width: int, channels: int, layers: int) -> None:
    module = block(width, channels, 0, torch.float64)
    z = torch.randn(1, 5, width, dtype=torch.float64, requires_grad=True)

    def run(tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        named = {"project.weight": weight, "project.bias": bias}
        out: torch.Tensor = torch.func.functional_call(module, named, (tokens, layers))
        return out

    assert torch.autograd.gradcheck(run, (z, module.project.weight, module.project.bias))


def test_weights_are_row_stochastic_and_not_symmetric() -> None:
    weights = block(16, 8, 0, torch.float64).weights(torch.randn(1, 20, 16, dtype=torch.float64)).detach()
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 20, dtype=torch.float64))
    assert (weights - weights.mT).abs().max() > 1e-3


def test_some_rows_of_the_weights_are_those_of_all() -> None:
    module, z = block(16, 8, 0, torch.float64), torch.randn(2, 20, 16, dtype=torch.float64)
    torch.testing.assert_close(module.weights(z, rows=slice(5, 8)), module.weights(z)[:, 5:8])


@pytest.mark.parametrize("channels", [7, 16, 100])
def test_training_stores_no_matrix_over_pairs_of_tokens(channels: int, largest: Any) -> None:
    module = block(16, channels, 0, torch.float32)
    z = torch.randn(1, 4000, 16, requires_grad=True)
    with largest:
        module(z, 2).sum().backward()
    assert largest.elements <= 2 * 4000 * max(channels + 8, 24)


def test_no_steps_leave_the_tokens_as_they_are() -> None:
    z = torch.randn(1, 5, 8)
    assert torch.equal(MeanShift(8, MeanShiftConfig(0))(z), z)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": -1}, "mean_shift.layers: -1 is not .* 0 to 1000"),
        ({"channels": 0}, "mean_shift.channels: 0 is not"),
        (
            {"init_neighbors": 1.0, "spatial_sigma": 0.0},
            "init_neighbors: 1.0 is not .*; mean_shift.spatial_sigma: 0.0",
        ),
        ({"step_size": 1.5}, "mean_shift.step_size: 1.5 is not"),
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ms.InputError, match=message):
        ms.create_model("meanshifter-ti16", num_classes=3, mean_shift=settings)
