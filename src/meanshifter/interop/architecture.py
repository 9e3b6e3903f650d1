"""What a model must be to hold the tensors of a foreign checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from meanshifter.errors import InputError

SIZES = {(192, 12, 3): "tiny", (384, 12, 6): "small", (768, 12, 12): "base", (1024, 24, 16): "large"}
"""(width, depth, heads) → the name that timm gives such a ViT."""

UNTOLD_STEPS = "1 mean shift step (`mean_shift_layers` says otherwise)"
"""What is assumed of a MeanShifter whose configuration states no number."""


@dataclass(frozen=True)
class Names:
    """Where a tool keeps the tensors whose shapes tell the architecture."""

    cls_token: str
    patches: str
    positions: str
    layer: str
    """Beginning of a layer's tensors, before its number."""
    hidden: str
    """The first weight of a layer's MLP, after its number."""
    classes: str
    """The class embeddings of a mask transformer."""
    classifier: str
    """The weight of a point-wise linear decoder."""
    shift: str
    """The weight of a mean shift block's linear layer."""


@dataclass(frozen=True)
class Encoder:
    """A plain ViT as far as shapes tell it."""

    width: int
    depth: int
    patch: int
    positions: int
    """Number of position embeddings, prefix tokens included."""
    mlp_ratio: float
    patch_bias: bool


@dataclass(frozen=True)
class Decoder:
    """What follows the encoder, as far as shapes tell it."""

    mask: bool
    """A mask transformer; else point-wise linear."""
    classes: int
    channels: int | None
    """d_ms of the mean shift block in front; None: there is none."""


@dataclass
class Notes:
    """What whoever reads a checkpoint should know of it."""

    assumed: list[str] = field(default_factory=list)
    """As the file does not say."""
    otherwise: list[str] = field(default_factory=list)
    """What the file says and is not followed."""

    def __str__(self) -> str:
        """In one line; empty where there is nothing to know."""
        parts = (("assumed, as the file does not say", self.assumed), ("unlike what the file says", self.otherwise))
        return "; ".join(f"{what}: {'; '.join(notes)}" for what, notes in parts if notes)


def encoder_of(state: Mapping[str, Tensor], names: Names, path: object) -> Encoder:
    """The encoder of a checkpoint.

    Raises:
        InputError: a tensor that tells the architecture is missing or of an impossible shape.
    """
    try:
        width = state[names.cls_token].shape[-1]
        patch = state[f"{names.patches}weight"].shape[-1]
        positions = state[names.positions].shape[1]
        hidden = state[f"{names.layer}0.{names.hidden}"].shape[0]
    except KeyError as error:
        raise InputError(f"{path}: no {error} in the file, so it holds no plain ViT; give a Segmenter") from error
    except IndexError as error:
        raise InputError(
            f"{path}: {names.cls_token}, {names.positions} or a weight is a single number; give a Segmenter"
        ) from error
    if min(width, patch, positions, hidden) < 1:
        raise InputError(f"{path}: {names.cls_token}, {names.positions} or a weight is empty; copy the file again")
    depth = count_layers(state, names.layer)
    return Encoder(width, depth, patch, positions, hidden / width, f"{names.patches}bias" in state)


def decoder_of(state: Mapping[str, Tensor], names: Names, path: object) -> Decoder:
    """The decoder of a checkpoint.

    Raises:
        InputError: neither of the two that Segmenter has.
    """
    channels = state[names.shift].shape[0] if names.shift in state else None
    if names.classes in state:
        return Decoder(True, state[names.classes].shape[1], channels)
    if names.classifier in state:
        return Decoder(False, state[names.classifier].shape[0], channels)
    raise InputError(
        f"{path}: its decoder has neither {names.classifier} nor {names.classes}; give a Segmenter or a MeanShifter"
    )


def count_layers(keys: Iterable[str], beginning: str) -> int:
    """How many numbered modules follow `beginning`."""
    numbers = {match[1] for key in keys if (match := re.match(re.escape(beginning) + r"(\d+)\.", key))}
    return len(numbers)


def backbone(encoder: Encoder, heads: int, *, distilled: bool = False) -> tuple[str, dict[str, Any]]:
    """timm's name of such a ViT, and the arguments in which it differs from that name.

    Raises:
        InputError: heads that do not share the width out evenly.
    """
    if heads < 1 or encoder.width % heads:
        raise InputError(f"{heads} attention heads do not divide the width {encoder.width}; correct the configuration")
    family = ("deit_", "_distilled") if distilled else ("vit_", "")
    size = SIZES.get((encoder.width, encoder.depth, heads))
    resolution = 384 if not distilled or size == "base" else 224
    named = size is not None and not (distilled and size == "large")  # there is no large DeiT
    if named and encoder.patch == 16 and encoder.mlp_ratio == 4:
        return f"{family[0]}{size}{family[1]}_patch16_{resolution}", {}
    arguments = {
        "embed_dim": encoder.width,
        "depth": encoder.depth,
        "num_heads": heads,
        "patch_size": encoder.patch,
        "mlp_ratio": encoder.mlp_ratio,
    }
    return f"{family[0]}tiny{family[1]}_patch16_{224 if distilled else 384}", arguments


def image_size(encoder: Encoder, prefix: int, stated: Any, path: object) -> tuple[int, int]:
    """(H, W) of the position embeddings: as stated, or a square.

    Raises:
        InputError: a number of positions that is no square, or not that of the stated size.
    """
    patches, P = encoder.positions - prefix, encoder.patch
    side = round(patches**0.5)
    size = [side * P] * 2 if stated is None else [stated] * 2 if isinstance(stated, int) else list(stated)
    if len(size) == 1:
        size = size * 2
    if len(size) != 2 or (size[0] // P) * (size[1] // P) != patches:
        raise InputError(
            f"{path}: {patches} position embeddings for an image of {size} pixels in patches of {P}; "
            "state the image size that the model was made for"
        )
    return int(size[0]), int(size[1])
