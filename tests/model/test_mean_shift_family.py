"""The block's other settings against their definitions, written out per pair of tokens in float64 NumPy."""

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
from meanshifter.model.mean_shift import MeanShift, effective_neighbors

Array = npt.NDArray[np.float64]
family = st.builds(
    MeanShiftConfig,
    layers=st.integers(0, 3),
    channels=st.sampled_from([2, 6, 9]),
    kernel=st.sampled_from(["dot", "gaussian"]),
    spatial_sigma=st.sampled_from([None, 0.7, 3.0]),
    blurring=st.booleans(),
    step_size=st.sampled_from([0.0, 0.3, 1.0]),
    residual_readout=st.booleans(),
)


def kernel_weights(block: MeanShift, z: Array, data: Array, grid: tuple[int, int]) -> Array:
    """The weight of every token of `data` (M, D) for every token of `z` (N, D), by the definition of the kernel."""
    E, bias = (p.detach().numpy() for p in block.project.parameters())
    r, s, C, config = z @ E.T + bias, data @ E.T + bias, block.channels, block.config
    places = [divmod(i, grid[1]) for i in range(len(data))]
    exponents = np.empty((len(z), len(data)))
    for i in range(len(z)):
        for j in range(len(data)):
            exponent = r[i] @ s[j] if config.kernel == "dot" else -0.5 * ((r[i] - s[j]) ** 2).sum()
            exponents[i, j] = exponent / np.sqrt(C)
            if config.spatial_sigma is not None:
                (y, x), (v, u) = places[i], places[j]
                exponents[i, j] -= ((y - v) ** 2 + (x - u) ** 2) / (2 * config.spatial_sigma**2)
    weights = np.exp(exponents - exponents.max(1, keepdims=True))
    return np.asarray(weights / weights.sum(1, keepdims=True))


def definition(block: MeanShift, start: Array, grid: tuple[int, int]) -> tuple[list[Array], list[Array]]:
    """The states and decoder inputs of one image (N, D)."""
    config, states = block.config, [start]
    for _ in range(config.layers):
        z = states[-1]
        data = z if config.blurring else start
        z = z + config.step_size * (kernel_weights(block, z, data, grid) @ data - z)
        states.append(z)
    if block.residual_readout is None:
        return states, states
    W = block.residual_readout.weight.detach().numpy()
    spread = np.sqrt(((start - start.mean(0)) ** 2).sum())
    ways = [np.sqrt(((z - start) ** 2).sum()) for z in states]
    shifts = [(z - start) * spread / max(way, 0.01 * spread, 1e-300) for z, way in zip(states, ways, strict=True)]
    return states, [start + s @ W.T for s in shifts]


def block_of(config: MeanShiftConfig, width: int = 6) -> MeanShift:
    torch.manual_seed(0)
    block = MeanShift(width, config).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return block


@given(family, st.sampled_from([(3, 5), (1, 1), (4, 2)]), st.integers(0, 99))
@settings(max_examples=80)
def test_every_setting_follows_its_definition(config: MeanShiftConfig, grid: tuple[int, int], seed: int) -> None:
    block = block_of(config)
    z = torch.randn(2, grid[0] * grid[1], 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        states = block.trajectory(z, grid=grid).numpy()
        read = np.stack([r.numpy() for r in block.readouts(z, range(config.layers + 1), grid).values()])
        weights = block.weights(z, grid).numpy()
    for b in range(2):
        expected = definition(block, z[b].numpy(), grid)
        np.testing.assert_allclose(states[:, b], np.stack(expected[0]), atol=1e-10)
        np.testing.assert_allclose(read[:, b], np.stack(expected[1]), atol=1e-10)
        np.testing.assert_allclose(weights[b], kernel_weights(block, z[b].numpy(), z[b].numpy(), grid), atol=1e-10)


@pytest.mark.parametrize("kernel", ["dot", "gaussian"])
def test_a_model_starts_with_the_requested_neighbors(kernel: Any) -> None:
    config = MeanShiftConfig(kernel=kernel, init_neighbors=12.0, spatial_sigma=None if kernel == "dot" else 4.0)
    torch.manual_seed(0)
    block, z = MeanShift(24, config), torch.randn(3, 100, 24)
    with torch.no_grad():
        assert effective_neighbors(block.weights(z, (10, 10))).mean() > 30
        block.calibrate(z, (10, 10))
        found = effective_neighbors(block.weights(z, (10, 10))).mean().item()
    assert found == pytest.approx(12, rel=0.1)


def test_neighbors_that_no_bandwidth_gives_are_refused() -> None:
    block = MeanShift(8, MeanShiftConfig(init_neighbors=80.0))
    with pytest.raises(ms.InputError, match=r"mean_shift.init_neighbors: 80; .* 1.0 to 50.0"):
        block.calibrate(torch.randn(1, 50, 8))


def test_a_spatial_bandwidth_needs_the_grid() -> None:
    block = MeanShift(8, MeanShiftConfig(spatial_sigma=2.0))
    with pytest.raises(ms.InputError, match=r"grid: None; .* 6 tokens"):
        block(torch.randn(1, 6, 8))


def test_a_residual_readout_starts_as_the_plain_decoder() -> None:
    z = torch.randn(1, 6, 8)
    block = MeanShift(8, MeanShiftConfig(layers=3, residual_readout=True))
    assert torch.equal(block(z), z)


def test_a_residual_readout_of_no_shift_has_finite_gradients() -> None:
    z = torch.randn(1, 6, 8, requires_grad=True)
    block = MeanShift(8, MeanShiftConfig(layers=1, step_size=0.0, residual_readout=True))
    assert block.residual_readout is not None
    torch.nn.init.normal_(block.residual_readout.weight)
    out = block(z)
    assert torch.equal(out, z)
    out.square().sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize("blurring", [True, False])
def test_no_setting_stores_a_matrix_over_pairs_of_tokens(blurring: bool, largest: Any) -> None:
    config = MeanShiftConfig(2, 20, "gaussian", spatial_sigma=3.0, blurring=blurring, residual_readout=True)
    block = MeanShift(16, config)
    z = torch.randn(1, 4000, 16, requires_grad=True)
    with largest:
        block(z, grid=(40, 100)).sum().backward()
    assert largest.elements <= 2 * 4000 * 32


def test_a_preset_keeps_settings_that_are_not_given() -> None:
    tiny = {"embed_dim": 12, "depth": 1, "num_heads": 2}
    with torch.device("meta"):
        model = ms.create_model("meanshifter-joint-ti16", num_classes=2, mean_shift={"layers": 2}, encoder_args=tiny)
    assert model.mean_shift is not None
    config = model.mean_shift.config
    assert (config.layers, config.kernel, config.blurring) == (2, "gaussian", False)
