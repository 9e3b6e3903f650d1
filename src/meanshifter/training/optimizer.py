"""Optimizer, learning rate schedule, weight averaging and stochastic depth.

Source of stochastic depth: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016; scaled as in timm's
`DropPath`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from inspect import Parameter, signature
from typing import Any, Final

import torch
from timm.layers.drop import DropPath as TimmDropPath
from timm.optim import (  # type: ignore[attr-defined]
    create_optimizer_v2,
    get_optimizer_class,
    get_optimizer_info,
    list_optimizers,
    param_groups_layer_decay,
    param_groups_weight_decay,
)
from torch import Tensor, nn
from torch.optim import Optimizer

from meanshifter.errors import InputError, did_you_mean, summarize_error
from meanshifter.model.segmenter import Segmenter
from meanshifter.model.vit import DropPath
from meanshifter.training.adapters import SampledDropout
from meanshifter.training.sections import OptimizerConfig

TIMM_NAMES: Final = {"sgd": "momentum"}  # timm's "sgd" is Nesterov's
RESERVED: Final = {"lr": "optimizer.lr", "weight_decay": "optimizer.weight_decay", "params": "optimizer.freeze"}
"""Arguments of every optimizer, and the fields that set them."""
GROUP: Final = {"params", "base_lr", "lr_scale"}
"""Entries of a parameter group that are ours or torch's."""
UNDECAYED = ("bias", "pos_embed", "cls_token", "reg_token", "dist_token", "class_embeddings")
"""Suffixes of parameter names that are never decayed; the bias of pixel_shift is not a vector."""


Groups = list[dict[str, Any]]


def create_optimizer(model: Segmenter, config: OptimizerConfig) -> Optimizer:
    """Create timm's optimizer for the parameters that are trained, in groups, each with its `base_lr`.

    The groups are {encoder, head} × {decayed, not decayed}; with `layer_decay`, those of each encoder layer have a
    `lr_scale`, by which `set_learning_rate` multiplies their rate.

    Raises:
        InputError: `layer_decay` with an encoder whose layers timm cannot tell apart.
    """
    head = nn.ModuleDict({name: part for name, part in model.named_children() if name != "encoder"})
    scaled = config.layer_decay is not None
    groups = _layer_groups(model.encoder.vit, config) if scaled else _groups(model.encoder, config)
    for group in groups:
        group |= {"lr": config.lr, "base_lr": config.lr}
    head_lr = config.lr if config.head_lr is None else config.head_lr
    for group in _groups(head, config):
        groups.append({**group, "lr": head_lr, "base_lr": head_lr})
    name, options = _timm_arguments(config)
    return create_optimizer_v2(groups, name, lr=config.lr, weight_decay=0.0, **options)


def _groups(module: nn.Module, config: OptimizerConfig) -> Groups:
    """The decayed parameters of a module, and the others."""
    found = param_groups_weight_decay(module, 1.0, no_weight_decay_list=_undecayed(module))
    # a decay of 1 above, since 0 would make one group: checkpoints number the parameters by their place in the groups
    return [{**group, "weight_decay": config.weight_decay * group["weight_decay"]} for group in reversed(found)]


def _layer_groups(vit: nn.Module, config: OptimizerConfig) -> Groups:
    """The groups of each layer: from 1 layer_decay at the last block to layer_decay^(L + 1) at the patch embedding.

    timm counts the layers from the last one of the module, which in its classifiers is the head; here that is apart.
    """
    assert config.layer_decay is not None  # by the caller
    if not hasattr(vit, "group_matcher"):
        raise InputError(
            f"optimizer.layer_decay: {config.layer_decay}, but the encoder {type(vit).__name__} has no group_matcher, "
            "which names the layers of timm's models; set it to null"
        )
    found = param_groups_layer_decay(
        vit, config.weight_decay, no_weight_decay_list=_undecayed(vit), layer_decay=config.layer_decay
    )
    return [{**group, "lr_scale": config.layer_decay * group["lr_scale"]} for group in found]


def _undecayed(module: nn.Module) -> set[str]:
    """Names of the matrices of a module that are never decayed: embeddings, and those that timm names."""
    own = {name for name, _ in module.named_parameters() if name.endswith(UNDECAYED)}
    for prefix, part in module.named_modules():
        if hasattr(part, "no_weight_decay"):
            own |= {f"{prefix}.{name}".lstrip(".") for name in part.no_weight_decay()}
    return own


def _timm_arguments(config: OptimizerConfig) -> tuple[str, dict[str, Any]]:
    """The name of the optimizer in timm's factory, and its arguments."""
    own: dict[str, Any] = {}
    if config.name == "sgd":
        own = {"momentum": config.momentum}
    elif config.name == "adamw":
        own = {"betas": config.betas}
    name = TIMM_NAMES.get(config.name, config.name)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in config.args.items()}
    return name, {**own, **given}


def _parameters(name: str) -> set[str]:
    """The arguments of an optimizer of timm's factory."""
    kinds = signature(get_optimizer_class(name, bind_defaults=False)).parameters
    return {key for key, parameter in kinds.items() if parameter.kind is not Parameter.VAR_KEYWORD}


def check_optimizer(config: OptimizerConfig) -> None:
    """Check name and arguments of the optimizer by creating it for a single weight.

    Raises:
        InputError: there is no such optimizer or argument (the message names the nearest one), or it rejects a value;
            or it needs a package that is not installed, second derivatives, or random draws of its own.
    """
    known = [str(name) for name in list_optimizers()]  # timm states pairs, too
    if config.name not in known:
        hint = did_you_mean(config.name, known, "timm.optim.list_optimizers() lists the names")
        raise InputError(f"optimizer.name: {config.name!r} is not an optimizer of timm; {hint}")
    name = TIMM_NAMES.get(config.name, config.name)
    if get_optimizer_info(name).second_order:
        raise InputError(f"optimizer.name: {config.name!r} needs second derivatives, which are not computed; use adamw")
    try:
        accepted = _parameters(name) - RESERVED.keys()
    except (ImportError, AssertionError) as error:
        raise InputError(f"optimizer.name: {config.name!r} is not available: {summarize_error(error)}") from error
    own = {"sgd": {"momentum"}, "adamw": {"betas"}}.get(config.name, set())
    for key, value in config.args.items():
        if key in RESERVED or key in own:
            field = RESERVED.get(key, f"optimizer.{key}")
            raise InputError(f"optimizer.args.{key}: {value!r} conflicts with {field}; set that instead")
        if key not in accepted:
            hint = did_you_mean(key, accepted, f"its arguments are {', '.join(sorted(accepted - own))}")
            raise InputError(f"optimizer.args.{key}: not an argument of {config.name}; {hint}")
    try:
        _, options = _timm_arguments(config)
        made = create_optimizer_v2([nn.Parameter(torch.zeros(2, 2))], name, lr=config.lr, weight_decay=0.0, **options)
    except (TypeError, ValueError, LookupError, AssertionError, RuntimeError, NotImplementedError) as error:
        given = ", ".join(f"{key} {value!r}" for key, value in config.args.items())
        raise InputError(f"optimizer.args: {config.name} rejects {given}: {summarize_error(error)}") from error
    if made.state_dict().keys() - {"state", "param_groups"}:
        raise InputError(
            f"optimizer.name: {config.name!r} draws from a random generator of its own, so that runs would not resume "
            "exactly; use muon or adamw"
        )


def group_values(optimizer: Optimizer) -> Iterator[tuple[int, str, Any]]:
    """Number of the group, name and value of what an optimizer keeps in its groups as it steps, such as lamb's step."""
    for number, group in enumerate(optimizer.param_groups):
        for name in sorted(group.keys() - optimizer.defaults.keys() - GROUP):
            yield number, name, group[name]


def forget_steps(optimizer: Optimizer) -> None:
    """Reset an optimizer to the state before its first step."""
    optimizer.state.clear()  # not load_state_dict, which would leave Fabric's wrapper with the old groups
    for number, name, _ in list(group_values(optimizer)):
        del optimizer.param_groups[number][name]


def set_learning_rate(optimizer: Optimizer, config: OptimizerConfig, step: int, steps: int) -> float:
    """Set each group's learning rate at `step` (from 0) of `steps`; returns that of the first group, unscaled."""
    rates = [learning_rate(config, group["base_lr"], step, steps) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * group.get("lr_scale", 1.0)
    return rates[0]


def learning_rate(config: OptimizerConfig, base: float, step: int, steps: int) -> float:
    """Linear warm-up, then poly (DeepLab, arXiv 1606.00915, section 4.1) or cosine decay to `min_lr`."""
    if config.schedule == "poly":
        factor: float = (1 - step / steps) ** config.power
    else:
        factor = 0.5 * (1 + math.cos(math.pi * step / steps))
    rate = config.min_lr + (base - config.min_lr) * factor
    return rate * min(1.0, (step + 1) / (config.warmup + 1))


class WeightAverage:
    """Exponential moving average of a model's weights in a second model: average ← d·average + (1 - d)·weights.

    Weights that are not trained may be shared by both models. The decay d warms up as (1 + n) / (10 + n), so that the
    random initialization is forgotten quickly.
    """

    def __init__(self, average: Segmenter, decay: float) -> None:
        self.average, self.decay = average, decay

    @torch.no_grad()
    def update(self, weights: Iterable[Tensor], step: int, buffers: Iterable[Tensor] = ()) -> None:
        """Update with the weights after optimizer step `step` (from 0); buffers, as of batch norms, are copied."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = [(own, new) for own, new in zip(self.average.parameters(), weights, strict=True) if own is not new]
        torch._foreach_lerp_([own for own, _ in pairs], [new.detach() for _, new in pairs], 1 - decay)
        for own, new in zip(self.average.buffers(), buffers, strict=False):
            own.copy_(new)


SPREAD: Final = 0x9E3779B1
"""2³² over the golden ratio, odd: it keeps the steps of different seeds apart (Knuth, TAOCP vol. 3, section 6.4)."""


class SampledDropPath(nn.Module):
    """Drops a residual branch for the samples where `keep` is 0; `keep` must be set before each pass."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.keep = torch.ones(1)

    def forward(self, branch: Tensor) -> Tensor:
        """`branch` (B·W, …, D), W windows of each sample, with dropped samples set to zero and the others scaled up."""
        if not self.training:
            return branch
        factor = self.keep.to(branch.dtype) / (1 - self.rate)
        if branch.shape[0] != factor.shape[0]:
            factor = factor.repeat_interleave(branch.shape[0] // factor.shape[0])
        return branch * factor.view(-1, *[1] * (branch.ndim - 1))


def step_seed(seed: int, step: int) -> int:
    """Random seed of a step, in 32 bits, since torch's CPU generator ignores all others."""
    return (step + seed * SPREAD) % 2**32


class SampledDropPaths:
    """Stochastic depth, and dropout of adapters, drawn for all crops of a step in advance.

    Replaces timm's modules in the model, unless its encoder is frozen.
    """

    def __init__(self, model: Segmenter) -> None:
        self.paths: list[SampledDropPath] = []
        self.drawn: list[Tensor] = []
        self.dropouts = [module for module in model.modules() if isinstance(module, SampledDropout)]
        self.seeds: list[list[int]] = []
        if model.encoder.frozen:
            return
        for parent in list(model.encoder.vit.modules()):
            for name, path in list(parent.named_children()):
                if isinstance(path, DropPath | TimmDropPath) and path.drop_prob is not None and path.drop_prob > 0:
                    self.paths.append(SampledDropPath(float(path.drop_prob)))
                    setattr(parent, name, self.paths[-1])

    def draw(self, crops: int) -> None:
        """Draw for all crops of a step, from torch's CPU generator."""
        self.drawn = [torch.empty(crops).bernoulli_(1 - path.rate) for path in self.paths]
        self.seeds = [torch.randint(2**32, (crops,)).tolist() for _ in self.dropouts]

    def use(self, crops: slice, device: torch.device) -> None:
        """Use the draws of these crops of the step in the next pass."""
        for path, drawn in zip(self.paths, self.drawn, strict=True):
            path.keep = drawn[crops].to(device, non_blocking=True)
        for dropout, seeds in zip(self.dropouts, self.seeds, strict=True):
            dropout.seeds = seeds[crops]
