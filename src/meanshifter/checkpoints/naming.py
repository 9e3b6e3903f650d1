"""Tensor names and shapes of MMSegmentation, the official Segmenter and timm, and the architecture that they imply.

Each naming is one table from our names to theirs. Loading looks up every tensor of the model in it, and saving writes
every tensor under the name it gives, so that the two directions cannot disagree.

Sources: the modules `VisionTransformer`, `FCNHead` and `SegmenterMaskTransformerHead` of MMSegmentation 1.2.2, and
`segm/model` of github.com/rstrudel/segmenter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from meanshifter.errors import InputError
from meanshifter.model.vit import SIZES, Block, VisionTransformer

Change = Callable[[Tensor], Tensor]


class Naming(NamedTuple):
    """Names and shapes that another tool gives the tensors of a Segmenter."""

    places: tuple[tuple[str, str], ...]
    """Prefix of our name → prefix of theirs; the first match counts."""
    parts: tuple[tuple[str, str], ...] = ()
    """Within a transformer layer: prefix of our name → prefix of theirs."""
    shapes: Mapping[str, tuple[Change, Change]] = {}
    """Regular expression over our names → conversion to their shape, and back."""
    unused: tuple[str, ...] = ()
    """Prefixes of their names that segmentation does not use; a `FileState` keeps them for writing the file again."""

    def place(self, name: str) -> str | None:
        """Their name of our tensor `name`; None if they have no such tensor."""
        for ours, theirs in self.places:
            if name.startswith(ours):
                rest = name[len(ours) :]
                if re.match(r"\d+\.", rest):
                    number, _, part = rest.partition(".")
                    fitting = (other + part[len(own) :] for own, other in self.parts if part.startswith(own))
                    rest = f"{number}.{next(fitting, part)}"
                return theirs + rest
        return None

    def reshape(self, name: str, value: Tensor, *, back: bool = False) -> Tensor:
        """Our tensor `name` in their shape; with `back`, theirs in our shape."""
        for pattern, changes in self.shapes.items():
            if re.fullmatch(pattern, name):
                return changes[back](value)
        return value


class KeyMismatch(NamedTuple):
    """Differences between the tensors of a file and those of a model, by their names in the file."""

    missing: list[str]
    unexpected: list[str]
    shapes: list[str]


def to_foreign(state: Mapping[str, Tensor], naming: Naming) -> dict[str, Tensor]:
    """Return a model's tensors, contiguous, in their names and shapes; those without a name there are left out."""
    return {
        place: naming.reshape(name, value).contiguous()
        for name, value in state.items()
        if (place := naming.place(name)) is not None
    }


def from_foreign(
    theirs: Mapping[str, Tensor], wanted: Mapping[str, Tensor], naming: Naming
) -> tuple[dict[str, Tensor], KeyMismatch]:
    """Return tensors for the names and shapes in `wanted`, and what did not match."""
    found, missing, shapes, used = {}, [], [], set()
    for name, like in wanted.items():
        place = naming.place(name)
        if place is None or place not in theirs:
            missing.append(name if place is None else place)
            continue
        used.add(place)
        value = naming.reshape(name, theirs[place], back=True)
        if value.shape == like.shape:
            found[name] = value.contiguous()
        else:
            shapes.append(f"{place} {tuple(theirs[place].shape)} for {tuple(like.shape)}")
    unexpected = sorted(key for key in theirs.keys() - used if not key.startswith(naming.unused))
    return found, KeyMismatch(missing, unexpected, shapes)


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
    shapes={r"decoder\.head\.weight": (lambda linear: linear[:, :, None, None], lambda conv: conv.flatten(1))},
    unused=("auxiliary_head.", "data_preprocessor."),
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
)

TIMM = Naming(places=(("encoder.vit.", ""),), unused=("head.", "head_dist.", "fc_norm."))


_LAYER = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def assert_plain(vit: nn.Module, tool: str, *, without: Iterable[str] = (), extra: Iterable[str] = ()) -> None:
    """Raise unless `vit` is the ViT of Dosovitskiy et al. (ICLR 2021) with a class token.

    The other tools would ignore most extras of timm's ViTs (layer scale, registers), and some extras have no tensors
    at all (another activation, norms in other places).

    Args:
        vit: the encoder.
        tool: the tool it is written for.
        without: tensors that it may lack.
        extra: tensors that it may have in addition.

    Raises:
        InputError: names the first difference.
    """
    from timm.models import vision_transformer

    if not isinstance(vit, VisionTransformer | vision_transformer.VisionTransformer):
        raise InputError(
            f"model: its encoder is a {type(vit).__name__}, but {tool} builds plain ViTs only; save a model folder or "
            "an export"
        )
    layers = (f"blocks.{i}.{part}" for i in range(len(vit.blocks)) for part in _LAYER)
    linear = [f"{part}.{kind}" for part in ("patch_embed.proj", "norm", *layers) for kind in ("weight", "bias")]
    own, expected = set(vit.state_dict()), {"cls_token", "pos_embed", *linear}
    odd = [*sorted(own - expected - {*extra}), *(f"no {name}" for name in sorted(expected - own - {*without}))]
    odd += _odd_arithmetic(vit)
    if odd:
        raise InputError(
            f"model: its encoder has {odd[0]}, but {tool} builds plain ViTs only; save a model folder or an export"
        )


def _odd_arithmetic(vit: Any) -> Iterator[str]:
    """Differences that no tensor shows."""
    from timm.layers import GELU
    from timm.models import vision_transformer

    if vit.no_embed_class:
        yield "a class token without a position"
    for block in vit.blocks:
        if type(block) not in (Block, vision_transformer.Block):
            yield f"layers of type {type(block).__name__}"
            continue
        act = block.mlp.act
        if not (isinstance(act, nn.GELU | GELU) and getattr(act, "approximate", "none") == "none"):
            yield f"the activation {type(act).__name__}"


ASSUMED_STEPS = "1 mean shift step (override with `mean_shift_layers`)"
"""Note on a MeanShifter whose configuration does not state the number of steps."""


@dataclass(frozen=True)
class Names:
    """A tool's names for the tensors whose shapes determine the architecture."""

    cls_token: str
    patches: str
    positions: str
    layer: str
    """Prefix of a layer's tensors, before its number."""
    hidden: str
    """First weight of a layer's MLP, after the layer's number."""
    classes: str
    """Class embeddings of a mask transformer."""
    classifier: str
    """Weight of a linear decoder."""
    shift: str
    """Weight of the mean shift block's linear layer."""


@dataclass(frozen=True)
class Encoder:
    """A plain ViT, as far as its tensor shapes determine it."""

    width: int
    depth: int
    patch: int
    positions: int
    """Number of position embeddings, including those of prefix tokens."""
    mlp_ratio: float
    patch_bias: bool


@dataclass(frozen=True)
class Decoder:
    """The decoder and the mean shift block, as far as their tensor shapes determine them."""

    mask: bool
    """True for a mask transformer, False for a linear decoder."""
    classes: int
    channels: int | None
    """d_ms of the mean shift block; None without one."""


@dataclass
class Notes:
    """What a user should know about a checkpoint that was read."""

    assumed: list[str] = field(default_factory=list)
    """Values that the file does not state."""
    ignored: list[str] = field(default_factory=list)
    """Deviations from what the file states."""

    def __str__(self) -> str:
        """All notes in one line; empty without any."""
        parts = (("assumed, since the file does not state it", self.assumed), ("unlike the file", self.ignored))
        return "; ".join(f"{what}: {'; '.join(notes)}" for what, notes in parts if notes)


def encoder_of(state: Mapping[str, Tensor], names: Names, path: object) -> Encoder:
    """Infer the encoder of a checkpoint from its tensors.

    Raises:
        InputError: a tensor that determines the architecture is missing or has an impossible shape.
    """
    try:
        width = state[names.cls_token].shape[-1]
        patch = state[f"{names.patches}weight"].shape[-1]
        positions = state[names.positions].shape[1]
        hidden = state[f"{names.layer}0.{names.hidden}"].shape[0]
    except KeyError as error:
        raise InputError(f"{path}: has no tensor {error}, so it is not a plain ViT; expected a Segmenter") from error
    except IndexError as error:
        raise InputError(
            f"{path}: {names.cls_token}, {names.positions} or a weight is a scalar; expected a Segmenter"
        ) from error
    if min(width, patch, positions, hidden) < 1:
        raise InputError(f"{path}: {names.cls_token}, {names.positions} or a weight is empty; copy the file again")
    depth = count_layers(state, names.layer)
    return Encoder(width, depth, patch, positions, hidden / width, f"{names.patches}bias" in state)


def decoder_of(state: Mapping[str, Tensor], names: Names, path: object) -> Decoder:
    """Infer the decoder of a checkpoint from its tensors.

    Raises:
        InputError: it is neither of Segmenter's two decoders.
    """
    channels = state[names.shift].shape[0] if names.shift in state else None
    if names.classes in state:
        return Decoder(True, state[names.classes].shape[1], channels)
    if names.classifier in state:
        return Decoder(False, state[names.classifier].shape[0], channels)
    raise InputError(
        f"{path}: has neither {names.classifier} nor {names.classes} in its decoder; expected a Segmenter or "
        "MeanShifter"
    )


def count_layers(keys: Iterable[str], prefix: str) -> int:
    """Count the numbered modules under `prefix`."""
    return len({match[1] for key in keys if (match := re.match(re.escape(prefix) + r"(\d+)\.", key))})


def backbone(encoder: Encoder, heads: int, *, distilled: bool = False) -> tuple[str, dict[str, Any]]:
    """Return the name of a ViT in timm, and the arguments in which `encoder` differs from it.

    Raises:
        InputError: the number of heads does not divide the width.
    """
    if heads < 1 or encoder.width % heads:
        raise InputError(f"{heads} attention heads do not divide the width {encoder.width}; correct the configuration")
    family = ("deit_", "_distilled") if distilled else ("vit_", "")
    size = next((name for name, of in SIZES.items() if of == (encoder.width, encoder.depth, heads)), None)
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
    """Return the image size (H, W) of the position embeddings: the stated one, or a square.

    Raises:
        InputError: the number of positions is not a square number, or does not match the stated size.
    """
    patches, P = encoder.positions - prefix, encoder.patch
    side = round(patches**0.5)
    size = [side * P] * 2 if stated is None else [stated] * 2 if isinstance(stated, int) else list(stated)
    if len(size) == 1:
        size = size * 2
    if len(size) != 2 or (size[0] // P) * (size[1] // P) != patches:
        raise InputError(
            f"{path}: has {patches} position embeddings, but an image of {size} pixels does not have that many patches "
            f"of {P} pixels; state the image size of the model in its configuration"
        )
    return int(size[0]), int(size[1])
