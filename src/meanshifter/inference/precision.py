"""The arithmetic of a model's forward pass, and which of it a device does fastest."""

from __future__ import annotations

from typing import Any, Literal

import torch

from meanshifter.errors import InputError

Precision = Literal["auto", "fp32", "bf16", "fp16"]
PLAIN_ATTENTION_BYTES = 2 * 10**9
AUTOCAST = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """`precision` itself; "auto" is bf16 where `device` has units for it, else fp32.

    A CPU without them emulates bfloat16 at half the speed of float32, and so do GPUs before Ampere.
    """
    if precision != "auto":
        return precision
    return "bf16" if has_bfloat16(device) else "fp32"


def reading_precision(precision: Precision, device: torch.device, own: str | None) -> str:
    """What a model is read in: `own`, where an arithmetic is built into it, else what `resolve_precision` says.

    Raises:
        InputError: another precision than the one built in; "fp32", the default everywhere, asks for nothing.
    """
    if own is None:
        return resolve_precision(precision, device)
    if precision not in ("auto", "fp32", own):
        raise InputError(
            f"precision: {precision}; the export has {own} built in: leave it out, or export the model again"
        )
    return own


def fused_attention_pays(
    device: torch.device, precision: str, *, images: int, heads: int, tokens: int, layers: int = 1
) -> bool:
    """Whether fused attention is the faster one; `layers` whose N × N weights are kept for a backward pass.

    On CPUs with bfloat16 units it is not (docs/benchmarks.md), as long as the weights take memory that one has.
    """
    held = 6 * images * heads * tokens**2 * layers
    return device.type != "cpu" or precision != "bf16" or held > PLAIN_ATTENTION_BYTES


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies matrices of bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False
