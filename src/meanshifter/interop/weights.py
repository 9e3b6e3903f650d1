"""A short name for a model's weights."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from meanshifter.interop.contract import PatchModel

UNKNOWN = "unknown"
"""In place of a hash, where label maps were scored and not a model."""


def weights_hash(model: PatchModel) -> str:
    """The first 12 hex digits of the SHA-256 over names, types, shapes and bytes of all tensors, by name."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()[:12]
