"""Whether a ViT is the one that other tools build, so that its tensors under their names mean the same.

Most of what timm's ViTs may have beside it (scaled layers, registers, another activation, norms in other places) has
tensors that those tools would pass over, or none at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from timm.layers import GELU
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn

from meanshifter.errors import InputError

_LAYER = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def check_plain(vit: VisionTransformer, tool: str, *, without: Iterable[str] = (), besides: Iterable[str] = ()) -> None:
    """Refuse a ViT that is not that of Dosovitskiy et al. (ICLR 2021) with a class token.

    Args:
        vit: the encoder.
        tool: for whom it is to be written.
        without: tensors that it may lack.
        besides: tensors that it may have more.

    Raises:
        InputError: the first thing in which it differs.
    """
    own, expected = set(vit.state_dict()), {"cls_token", "pos_embed", *_weights(len(vit.blocks))}
    odd = [*sorted(own - expected - {*besides}), *(f"no {name}" for name in sorted(expected - own - {*without}))]
    odd += _arithmetic(vit)
    if odd:
        raise InputError(
            f"model: its encoder has {odd[0]}, but {tool} builds plain ViTs only; write a model folder or an export"
        )


def _weights(depth: int) -> Iterator[str]:
    layers = (f"blocks.{i}.{part}" for i in range(depth) for part in _LAYER)
    for part in ("patch_embed.proj", "norm", *layers):
        yield from (f"{part}.weight", f"{part}.bias")


def _arithmetic(vit: VisionTransformer) -> Iterator[str]:
    """What no tensor tells."""
    if vit.no_embed_class:
        yield "a class token without a position"
    for block in vit.blocks:
        if type(block) is not Block:
            yield f"layers of the kind {type(block).__name__}"
            continue
        act = block.mlp.act
        if not (isinstance(act, nn.GELU | GELU) and getattr(act, "approximate", "none") == "none"):
            yield f"the activation {type(act).__name__}"
