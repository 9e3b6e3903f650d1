"""Models whose configuration came out of a file: built only if what they claim is in proportion to their weights."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.model.config import ModelConfig
from meanshifter.model.segmenter import Segmenter

FACTORIES: Final = (torch.empty, torch.zeros, torch.ones, torch.full, torch.randn)
SLACK: Final = 256_000_000
"""Bytes of weights that a model may have beyond four times its file's, as for half precision and partial files."""


class _Weightless(TorchFunctionMode):
    """Within, new tensors have shapes and no memory.

    `torch.device("meta")` would take small tensors too whose values timm reads while it builds.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in FACTORIES:
            return func(*args, **{**(kwargs or {}), "device": "meta"})
        return func(*args, **(kwargs or {}))


def build(config: ModelConfig, labels: LabelSpace, source: object, *, tensors: int, size: int) -> Segmenter:
    """The model of a configuration, with random weights.

    Args:
        config: what a file says of the model.
        labels: its classes.
        source: the file, for messages.
        tensors: how many the weights consist of, which bounds the layers.
        size: their bytes, which bound the memory.

    Raises:
        InputError: no such model can be built, or it is out of proportion to its weights.
    """
    for name, layers in (("depth", config.backbone_args.get("depth", 0)), ("decoder_layers", config.decoder_layers)):
        if not isinstance(layers, int) or layers > max(tensors, 2):
            raise InputError(f"{source}: {name} is {layers!r}, with {tensors} tensors; the two are not of one model")
    try:
        with _Weightless():
            needed = 4 * sum(tensor.numel() for tensor in Segmenter(config, labels).state_dict().values())
        if needed <= 4 * size + SLACK:
            return Segmenter(config, labels)
    except InputError:
        raise
    except Exception as error:  # timm and torch raise nearly anything on arguments that do not fit
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"{source}: describes a model that cannot be built ({type(error).__name__}: {reason}); save it again"
        ) from error
    raise InputError(
        f"{source}: describes a model of {needed:,} bytes, but its weights have {size:,}; the two are not of one model"
    )
