"""Names and shapes of tensors in MMSegmentation, in the Segmenter of its authors and in timm, from ours and back.

Each naming is one table that is read in one direction only: a tensor of ours has one place in a foreign file. Reading
looks every tensor of a model up there; writing puts them there; so that the two cannot disagree.

Sources: the modules `VisionTransformer`, `FCNHead` and `SegmenterMaskTransformerHead` of MMSegmentation 1.2.2, and
`segm/model` of github.com/rstrudel/segmenter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Change = Callable[[Tensor], Tensor]


class Naming(NamedTuple):
    """Where another tool keeps the tensors of a Segmenter."""

    places: tuple[tuple[str, str], ...]
    """Beginning of our name → of theirs; the first that fits counts."""
    parts: tuple[tuple[str, str], ...] = ()
    """Within a transformer layer: part of our name → of theirs."""
    shapes: Mapping[str, tuple[Change, Change]] = {}
    """Regular expression over our names → to their shape, and back."""
    unused: tuple[str, ...] = ()
    """Beginnings of their names that segmentation has no use for."""
    carried: tuple[str, ...] = ()
    """Those of them that are kept beside the model, so that a file is written back as it was."""

    def place(self, name: str) -> str | None:
        """Their name of our tensor `name`; None if they have no such tensor."""
        for ours, theirs in self.places:
            if name.startswith(ours):
                rest = name[len(ours) :]
                if re.match(r"\d+\.", rest):
                    number, _, part = rest.partition(".")
                    rest = f"{number}.{_replaced(part, self.parts)}"
                return theirs + rest
        return None

    def to_theirs(self, name: str, value: Tensor) -> Tensor:
        """Our tensor in their shape."""
        return self._change(name, 0)(value)

    def to_ours(self, name: str, value: Tensor) -> Tensor:
        """Their tensor of our `name` in our shape."""
        return self._change(name, 1)(value)

    def _change(self, name: str, direction: int) -> Change:
        for pattern, changes in self.shapes.items():
            if re.fullmatch(pattern, name):
                return changes[direction]
        return _same


class Unfit(NamedTuple):
    """What of a file and a model did not meet, by their names."""

    missing: list[str]
    left_over: list[str]
    shapes: list[str]


def to_foreign(state: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """A model's tensors under their names, contiguous, in their shapes; what they have no place for is left out."""
    return {
        place: naming.to_theirs(name, value).contiguous()
        for name, value in state.items()
        if (place := naming.place(name)) is not None
    }


def from_foreign(
    theirs: Mapping[str, Tensor], wanted: Mapping[str, Tensor], naming: Naming
) -> tuple[dict[str, Tensor], Unfit]:
    """Tensors for the names and shapes in `wanted`, and what did not fit."""
    found, missing, shapes, used = {}, [], [], set()
    for name, like in wanted.items():
        place = naming.place(name)
        if place is None or place not in theirs:
            missing.append(name if place is None else place)
            continue
        used.add(place)
        value = naming.to_ours(name, theirs[place])
        if value.shape == like.shape:
            found[name] = value.contiguous()
        else:
            shapes.append(f"{place} {tuple(theirs[place].shape)} for {tuple(like.shape)}")
    left_over = sorted(key for key in theirs.keys() - used if not key.startswith(naming.unused))
    return found, Unfit(missing, left_over, shapes)


def _replaced(part: str, parts: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in parts:
        if part.startswith(ours):
            return theirs + part[len(ours) :]
    return part


def _same(value: Tensor) -> Tensor:
    return value


def _pointwise(value: Tensor) -> Tensor:
    return value[:, :, None, None]


def _linear(value: Tensor) -> Tensor:
    return value.flatten(1)


MMSEGMENTATION = Naming(
    places=(
        ("encoder.vit.blocks.", "backbone.layers."),
        ("encoder.vit.patch_embed.proj.", "backbone.patch_embed.projection."),
        ("encoder.vit.norm.", "backbone.ln1."),
        ("encoder.vit.", "backbone."),
        ("mean_shift.project.", "decode_head.q."),
        ("decoder.head.", "decode_head.conv_seg."),
        ("decoder.project.", "decode_head.dec_proj."),
        ("decoder.class_embeddings", "decode_head.cls_emb"),
        ("decoder.blocks.", "decode_head.layers."),
        ("decoder.norm.", "decode_head.decoder_norm."),
        ("decoder.patch_projection.", "decode_head.patch_proj."),
        ("decoder.class_projection.", "decode_head.classes_proj."),
        ("decoder.mask_norm.", "decode_head.mask_norm."),
    ),
    parts=(
        ("norm1.", "ln1."),
        ("norm2.", "ln2."),
        ("attn.qkv.", "attn.attn.in_proj_"),
        ("attn.proj.", "attn.attn.out_proj."),
        ("mlp.fc1.", "ffn.layers.0.0."),
        ("mlp.fc2.", "ffn.layers.1."),
    ),
    shapes={r"decoder\.head\.weight": (_pointwise, _linear)},
    unused=("auxiliary_head.", "data_preprocessor."),
    carried=("auxiliary_head.", "data_preprocessor."),
)

SEGMENTER = Naming(
    places=(
        ("encoder.vit.", "encoder."),
        ("mean_shift.project.", "decoder.q."),
        ("decoder.head.", "decoder.head."),
        ("decoder.project.", "decoder.proj_dec."),
        ("decoder.class_embeddings", "decoder.cls_emb"),
        ("decoder.blocks.", "decoder.blocks."),
        ("decoder.norm.", "decoder.decoder_norm."),
        ("decoder.patch_projection.weight", "decoder.proj_patch"),
        ("decoder.class_projection.weight", "decoder.proj_classes"),
        ("decoder.mask_norm.", "decoder.mask_norm."),
    ),
    shapes={r"decoder\.(patch|class)_projection\.weight": (torch.t, torch.t)},
    unused=("encoder.head.", "encoder.head_dist."),
    carried=("encoder.head.", "encoder.head_dist."),
)

TIMM = Naming(places=(("encoder.vit.", ""),), unused=("head.", "head_dist.", "fc_norm."))
