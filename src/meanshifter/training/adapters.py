"""Training fewer weights: a frozen encoder, low-rank adapters in it (LoRA), and gradient checkpointing.

Source of LoRA: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022; layers by peft.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from meanshifter.errors import InputError, did_you_mean
from meanshifter.model.segmenter import Segmenter
from meanshifter.training.config import TrainConfig
from meanshifter.training.sections import LoraConfig
from meanshifter.utils.environment import require_installed, require_versions


def check_package(config: TrainConfig) -> None:
    """Raise an InputError with install instructions if `lora` is given without peft."""
    if config.lora is not None:
        require_installed("lora", "lora", "peft")
        require_versions("lora", "lora", "peft")


def choose_trained(model: Segmenter, config: TrainConfig) -> None:
    """Freeze the encoder or add adapters to it, as configured.

    Raises:
        InputError: the encoder lacks a layer of `lora.targets`.
    """
    fewer = [name for name, used in (("optimizer.freeze", config.optimizer.freeze), ("lora", config.lora)) if used]
    unread = config.model.init_from is None and config.model.encoder_weights is None
    if fewer and unread and not model.config.has_own_module:
        warnings.warn(
            f"{fewer[0]}: the encoder's weights are random and stay so; give pretrained ones with "
            "model.encoder_weights or model.init_from",
            stacklevel=2,
        )
    if config.optimizer.freeze == "encoder":
        model.encoder.freeze()
    if config.lora is not None:
        add_adapters(model, config.lora, config.seed)


def enable_checkpointing(model: Segmenter) -> None:
    """Recompute the encoder's layers in the backward pass instead of keeping their activations.

    Raises:
        InputError: the encoder cannot.
    """
    enable = getattr(model.encoder.vit, "set_grad_checkpointing", None)
    if enable is None:
        raise InputError(
            f"gradient_checkpointing: true, but the encoder {type(model.encoder.vit).__name__} has no "
            "set_grad_checkpointing as timm's models have; set it to false"
        )
    enable(True)


def frozen_names(model: nn.Module) -> set[str]:
    """Names of the parameters that are not trained."""
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def sharing_frozen(model: Segmenter) -> Segmenter:
    """A copy of a model, without gradients, that shares the parameters that are not trained."""
    shared: dict[int, Any] = {id(p): p for p in model.parameters() if not p.requires_grad}
    return copy.deepcopy(model, shared).requires_grad_(False)


class SampledDropout(nn.Module):
    """Dropout whose mask is a function of a seed per crop, so that it depends on no split of a step's crops.

    `seeds` must be set before each pass. A pass that is repeated, as in gradient checkpointing, repeats the mask.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.seeds: list[int] = []

    @torch.compiler.disable  # type: ignore[untyped-decorator] # random generators are not traced
    def forward(self, x: Tensor) -> Tensor:
        """Set entries of `x` (B, …) to zero with probability `rate`, and scale the others up."""
        if not self.training:
            return x
        generator = torch.Generator(x.device)
        keep = torch.empty_like(x, requires_grad=False)
        for crop, seed in zip(keep, self.seeds, strict=True):
            crop.bernoulli_(1 - self.rate, generator=generator.manual_seed(seed))
        return x * keep.div_(1 - self.rate)


def add_adapters(model: Segmenter, config: LoraConfig, seed: int) -> None:
    """Add adapters to the encoder, whose own weights are frozen; they start as an update of 0.

    Raises:
        InputError: a target is no linear layer of the encoder, or one whose weights the encoder reads directly.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    names = _target_layers(model.encoder, config)
    settings = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type] # peft divides it, and states int
        lora_dropout=config.dropout,
        target_modules=names,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the adapters depend on no draw before them
        inject_adapter_in_model(settings, model.encoder)
    layers = dict(adapted_layers(model))
    for layer in layers.values():
        for name, module in layer.lora_dropout.items():
            if isinstance(module, nn.Dropout):
                layer.lora_dropout[name] = SampledDropout(module.p)
    _check_reached(model, layers)


def _target_layers(encoder: nn.Module, config: LoraConfig) -> list[str]:
    """Names of the encoder's linear layers that end in one of the targets."""
    linear = [name for name, module in encoder.named_modules() if isinstance(module, nn.Linear)]
    known = sorted({name.rpartition(".")[2] for name in linear})
    for target in config.targets:
        if target not in known:
            hint = did_you_mean(target, known, f"it has {', '.join(known)}")
            raise InputError(f"lora.targets: {target!r} is not a linear layer of the encoder; {hint}")
    return [name for name in linear if name.rpartition(".")[2] in config.targets]


def _check_reached(model: Segmenter, layers: Mapping[str, Any]) -> None:
    """Reject adapters whose layer is never called, since some encoders use its weight in a product of their own."""
    called: set[str] = set()
    hooks = [layer.register_forward_hook(lambda *_, name=name: called.add(name)) for name, layer in layers.items()]
    side = model.patch_size * 2
    with torch.no_grad():
        model.evaluation_view().encode(torch.zeros(1, 3, side, side, device=model.device))
    for hook in hooks:
        hook.remove()
    if unreached := sorted({name.rpartition(".")[2] for name in layers.keys() - called}):
        raise InputError(
            f"lora.targets: {unreached[0]!r} has no effect in this encoder, which reads the weight of that layer "
            "directly; leave it out"
        )


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of each layer that has an adapter."""
    for name, module in model.named_modules():
        if isinstance(getattr(module, "lora_A", None), nn.ModuleDict):  # of peft, which need not be installed
            yield name, module


def without_adapters(model: Segmenter) -> Segmenter:
    """A copy with the adapters merged into plain weights, W + alpha/rank·B·A; `model` itself if it has none."""
    if not any(adapted_layers(model)):
        return model
    plain = copy.deepcopy(model)
    for name, layer in list(adapted_layers(plain)):
        layer.merge()
        plain.set_submodule(name, layer.get_base_layer())
    return plain
