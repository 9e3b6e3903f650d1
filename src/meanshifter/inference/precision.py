"""In which precision a model runs, and whether its attention is fused: what pays on which device."""

from __future__ import annotations

from typing import Literal

import torch

from meanshifter.errors import InputError
from meanshifter.utils.environment import has_bfloat16

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PLAIN_ATTENTION_BYTES = 2 * 10**9
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """Resolve "auto" to bf16 if `device` has units for it, else fp32.

    CPUs without them, and GPUs before Ampere, emulate bfloat16 at half the speed of float32.
    """
    if precision != "auto":
        return precision
    return "bf16" if has_bfloat16(device) else "fp32"


def reading_precision(precision: Precision, device: torch.device, own: str | None) -> str:
    """Return the precision for inference: `own` if the model has one built in, else that of `resolve_precision`.

    Raises:
        InputError: `precision` differs from the one built in; "fp32" is allowed, as it is the default everywhere.
    """
    if own is None:
        return resolve_precision(precision, device)
    if precision not in ("auto", "fp32", own):
        raise InputError(f"precision: {precision}, but the model has {own} built in; leave it out, or use one in fp32")
    return own


def fused_attention_pays(
    device: torch.device, precision: str, *, images: int, heads: int, tokens: int, layers: int = 1
) -> bool:
    """Return whether fused attention is faster, with the N × N weights of `layers` kept for a backward pass.

    It is slower on CPUs with bfloat16 units (docs/benchmarks.md), as long as the weights take little memory.
    """
    size = 6 * images * heads * tokens**2 * layers
    return device.type != "cpu" or precision != "bf16" or size > PLAIN_ATTENTION_BYTES
