"""Groups, schedule and running average against float64 references written out here."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from timm.optim import list_optimizers  # type: ignore[attr-defined]
from torch import nn

import meanshifter as ms
from meanshifter.training.optimizer import (
    WeightAverage,
    check_optimizer,
    create_optimizer,
    forget_steps,
    learning_rate,
    set_learning_rate,
)
from meanshifter.training.sections import OptimizerConfig
from meanshifter.training.state import Progress, TrainState

LR, HEAD_LR, DECAY, STEPS = 0.02, 0.05, 0.3, 7


def toy(preset: str) -> ms.Segmenter:
    torch.manual_seed(0)
    args = {"depth": 1, "embed_dim": 24, "num_heads": 2}
    return ms.create_model(preset, num_classes=3, image_size=48, encoder_args=args).double().train()


def matrices(model: nn.Module) -> set[str]:
    """The names of what is decayed: weights of linear layers and convolutions."""
    layers = (nn.Linear, nn.Conv2d)
    return {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, layers)}


def rate(step: int, base: float, config: OptimizerConfig) -> float:
    """Linear from base/(warmup + 1) in the first step to base after `warmup`, times the decay to min_lr."""
    done = step / STEPS
    left = (1 - done) ** config.power if config.schedule == "poly" else (1 + math.cos(math.pi * done)) / 2
    warm = 1.0 if step >= config.warmup else (step + 1) / (config.warmup + 1)
    return warm * (config.min_lr + (base - config.min_lr) * left)


def sgd(config: OptimizerConfig, lr: float, decay: float) -> Callable[..., np.ndarray]:
    def update(p: np.ndarray, g: np.ndarray, state: dict[str, np.ndarray], number: int) -> np.ndarray:
        g = g + decay * p
        state["v"] = g if number == 1 else config.momentum * state["v"] + g
        return p - rate(number - 1, lr, config) * state["v"]

    return update


def adamw(config: OptimizerConfig, lr: float, decay: float) -> Callable[..., np.ndarray]:
    def update(p: np.ndarray, g: np.ndarray, state: dict[str, np.ndarray], number: int) -> np.ndarray:
        one, two = config.betas
        state["m"] = one * state.get("m", 0.0) + (1 - one) * g
        state["v"] = two * state.get("v", 0.0) + (1 - two) * g * g
        mean, square = state["m"] / (1 - one**number), state["v"] / (1 - two**number)
        now = rate(number - 1, lr, config)
        return p * (1 - now * decay) - now * mean / (np.sqrt(square) + 1e-8)

    return update


@pytest.mark.parametrize("preset", ["meanshifter-ti16", "segmenter-mask-ti16", "meanshifter-pixel-ti16"])
@pytest.mark.parametrize("head_lr", [None, HEAD_LR])
@pytest.mark.parametrize(("name", "formula", "schedule"), [("sgd", sgd, "poly"), ("adamw", adamw, "cosine")])
def test_every_parameter_follows_its_formula(
    preset: str, head_lr: float | None, name: str, formula: Callable[..., Callable[..., np.ndarray]], schedule: str
) -> None:
    config = OptimizerConfig(
        name=name,
        lr=LR,
        head_lr=head_lr,
        momentum=0.8,
        betas=(0.7, 0.9),
        weight_decay=DECAY,
        schedule=schedule,  # type: ignore[arg-type]
        power=0.6,
        min_lr=0.001,
        warmup=2,
    )
    model = toy(preset)
    decayed = matrices(model)
    parameters = dict(model.named_parameters())
    own = {
        key: formula(
            config, LR if key.startswith("encoder.") or head_lr is None else head_lr, DECAY if key in decayed else 0.0
        )
        for key in parameters
    }
    expected: dict[str, np.ndarray] = {key: value.detach().numpy().copy() for key, value in parameters.items()}
    states: dict[str, dict[str, np.ndarray]] = {key: {} for key in parameters}
    optimizer, rng = create_optimizer(model, config), np.random.default_rng(0)
    for number in range(1, STEPS + 1):
        first = set_learning_rate(optimizer, config, number - 1, STEPS)
        assert first == pytest.approx(rate(number - 1, LR, config), rel=1e-12), "what is logged is the encoder's"
        for key, parameter in parameters.items():
            gradient = rng.standard_normal(parameter.shape)
            parameter.grad = torch.from_numpy(gradient)
            expected[key] = own[key](expected[key], gradient, states[key], number)
        optimizer.step()
    for key, parameter in parameters.items():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[key], rtol=1e-10, atol=1e-12, err_msg=key)


def test_norms_biases_and_embeddings_are_the_only_ones_without_decay() -> None:
    model = toy("meanshifter-pixel-ti16")
    optimizer = create_optimizer(model, OptimizerConfig(weight_decay=DECAY))
    free = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in free}
    assert names == dict(model.named_parameters()).keys() - matrices(model)
    for name in ("encoder.vit.blocks.0.norm1.weight", "encoder.vit.pos_embed", "encoder.vit.cls_token"):
        assert name in names
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("power", [1, 2])
def test_the_poly_schedule_is_exact_at_every_step(warmup: int, power: int) -> None:
    config = OptimizerConfig(lr=0.5, min_lr=0.125, power=power, warmup=warmup)
    for step in range(16):
        left = (1 - Fraction(step, 16)) ** power
        expected = Fraction(1, 8) + (Fraction(1, 2) - Fraction(1, 8)) * left
        expected *= min(Fraction(1), Fraction(step + 1, warmup + 1))
        assert learning_rate(config, 0.5, step, 16) == pytest.approx(float(expected), rel=1e-14)


@pytest.mark.parametrize("schedule", ["poly", "cosine"])
def test_the_schedule_warms_up_and_falls_to_the_smallest_rate(schedule: str) -> None:
    config = OptimizerConfig(lr=1.0, min_lr=0.1, warmup=4, schedule=schedule)  # type: ignore[arg-type]
    rates = [learning_rate(config, 1.0, step, 100) for step in range(101)]
    assert rates[:4] == sorted(rates[:4])
    assert rates[0] < 0.25
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert rates[-1] == pytest.approx(0.1)


def test_the_poly_schedule_is_mmsegmentations() -> None:
    rates = [learning_rate(OptimizerConfig(), 1e-3, step, 160_000) for step in (0, 80_000, 160_000)]
    assert rates == pytest.approx([1e-3, (1e-3 - 1e-4) * 0.5**0.9 + 1e-4, 1e-4])


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_the_running_average_is_its_sum_written_out(decay: float) -> None:
    """After n updates, weights number i have the share (1 - d_i) · d_(i+1) · … · d_n, and the start d_0 · … · d_n."""
    average, model = toy("segmenter-ti16"), toy("segmenter-ti16")
    name, number = "decoder.head.weight", 30
    start = average.get_parameter(name).detach().numpy().copy()
    tracker, rng, seen = WeightAverage(average, decay), np.random.default_rng(0), []
    for step in range(number):
        seen.append(rng.standard_normal(start.shape))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.from_numpy(seen[-1]).flatten()[0].expand_as(parameter))
            model.get_parameter(name).copy_(torch.from_numpy(seen[-1]))
        tracker.update(model.parameters(), step)
    decays = [min(decay, (1 + n) / (10 + n)) for n in range(number)]
    expected = start * math.prod(decays)
    for n, weights in enumerate(seen):
        expected = expected + (1 - decays[n]) * math.prod(decays[n + 1 :]) * weights
    np.testing.assert_allclose(average.get_parameter(name).detach().numpy(), expected, rtol=1e-10, atol=1e-12)
    if decay == 0:
        for own, theirs in zip(average.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(own, theirs, rtol=1e-12, atol=1e-12)


UNAVAILABLE = ("bnb", "fused", "kron", "adahessian")
"""Prefixes of optimizers that need CUDA packages, draws of their own, or second derivatives."""


@pytest.mark.parametrize("name", [name for name in map(str, list_optimizers()) if not name.startswith(UNAVAILABLE)])
def test_every_optimizer_of_timm_resumes_to_the_same_weights(name: str) -> None:
    config = OptimizerConfig(name=name, lr=1e-2, weight_decay=0.05, layer_decay=0.5)
    check_optimizer(config)

    def begin() -> TrainState:
        torch.manual_seed(0)
        args = {"depth": 1, "embed_dim": 8, "num_heads": 2}
        model = ms.create_model("segmenter-ti16", num_classes=3, image_size=32, encoder_args=args).train()
        return TrainState(model, create_optimizer(model, config), None, Progress())

    def take(state: TrainState, steps: range) -> list[torch.Tensor]:
        for step in steps:
            torch.manual_seed(step)
            for parameter in state.model.parameters():
                parameter.grad = torch.randn_like(parameter)
            state.optimizer.step()
        return [parameter.detach().clone() for parameter in state.model.parameters()]

    whole, resumed = begin(), begin()
    start = [parameter.detach().clone() for parameter in whole.model.parameters()]
    halfway = take(whole, range(2))
    stored = {key: value.detach().clone().contiguous() for key, value in whole.tensors().items()}
    resumed.load(load(save(stored)))
    assert all(map(torch.equal, take(whole, range(2, 4)), take(resumed, range(2, 4))))
    assert any(not torch.equal(old, new) for old, new in zip(start, halfway, strict=True))

    with torch.no_grad():
        for parameter, value in zip(resumed.model.parameters(), start, strict=True):
            parameter.copy_(value)
    forget_steps(resumed.optimizer)
    assert all(map(torch.equal, take(resumed, range(2)), halfway)), "undone steps leave no trace"


@pytest.mark.parametrize(
    ("name", "args", "named"),
    [
        ("adamm", {}, r"optimizer\.name: 'adamm' .*did you mean 'adam\w*'"),
        ("lookahead_adamw", {}, r"optimizer\.name: 'lookahead_adamw'"),
        ("adahessian", {}, r"optimizer\.name: 'adahessian' needs second derivatives"),
        ("kron", {}, r"optimizer\.name: 'kron' draws from a random generator"),
        ("adamw", {"lr": 1}, r"optimizer\.args\.lr: 1 conflicts with optimizer\.lr"),
        ("adamw", {"betas": (0.9, 0.99)}, r"optimizer\.args\.betas: .*optimizer\.betas"),
        ("lion", {"beta": (0.9, 0.99)}, r"optimizer\.args\.beta: not an argument of lion; did you mean 'betas'"),
        ("lion", {"betas": [0.9, 1.5]}, r"optimizer\.args: lion rejects betas \[0.9, 1.5\]: "),
        ("lion", {"betas": [0.9]}, r"optimizer\.args: lion rejects betas \[0.9\]: "),
        ("sgd", {"nesterof": True}, r"optimizer\.args\.nesterof: .*did you mean 'nesterov'"),
    ],
)
@pytest.mark.filterwarnings("ignore:It is highly recommended to have 'opt_einsum'")
def test_a_wrong_optimizer_or_argument_is_named(name: str, args: dict[str, Any], named: str) -> None:
    with pytest.raises(ms.InputError, match=named):
        check_optimizer(OptimizerConfig(name=name, args=args))


def test_arguments_reach_the_optimizer() -> None:
    model = toy("segmenter-ti16")
    sgd = create_optimizer(model, OptimizerConfig(args={"nesterov": True}))
    assert (type(sgd), sgd.defaults["nesterov"], sgd.defaults["momentum"]) == (torch.optim.SGD, True, 0.9)
    lion = create_optimizer(model, OptimizerConfig(name="lion", args={"betas": [0.8, 0.95]}))
    assert lion.defaults["betas"] == (0.8, 0.95)
    own = create_optimizer(model, OptimizerConfig(name="lion"))
    assert own.defaults["betas"] == (0.9, 0.99), "timm's, not those of AdamW"


def test_layer_decay_scales_the_whole_schedule() -> None:
    """A layer whose rate is below min_lr is not pulled up to it."""
    config = OptimizerConfig(lr=1e-3, min_lr=1e-4, layer_decay=0.1)
    optimizer = create_optimizer(toy("segmenter-ti16"), config)
    for step in range(STEPS):
        expected = rate(step, 1e-3, config)
        assert set_learning_rate(optimizer, config, step, STEPS) == pytest.approx(expected)
        for group in optimizer.param_groups:
            assert group["lr"] == pytest.approx(expected * group.get("lr_scale", 1.0))
    assert {round(group.get("lr_scale", 1.0), 9) for group in optimizer.param_groups} == {0.01, 0.1, 1.0}


def test_an_encoder_without_layers_that_timm_knows_is_refused() -> None:
    model = toy("segmenter-ti16")
    model.encoder.vit = nn.Linear(2, 2)
    with pytest.raises(ms.InputError, match=r"optimizer\.layer_decay: 0.5, .*Linear.*group_matcher"):
        create_optimizer(model, OptimizerConfig(layer_decay=0.5))
