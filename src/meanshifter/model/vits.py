"""Plain ViTs that timm builds, by family: how each is built, and how it turns images into patch tokens at any grid.

A plain ViT has one grid of patches from its first layer to its last. timm has it in four classes, which differ in how
they hold positions: `VisionTransformer` (embeddings), `Eva` (rotary, with or without embeddings: DINOv3, EVA-02,
Perception Encoder, RoPE ViTs), `Beit` (a bias per relative position) and `VisionTransformerSAM` (embeddings and
decomposed relative positions; most layers attend within windows).

Sources: Dosovitskiy et al., ICLR 2021; Siméoni et al., DINOv3, arXiv 2508.10104; Heo et al., Rotary Position Embedding
for Vision Transformer, ECCV 2024; Bao et al., BEiT, ICLR 2022; Kirillov et al., Segment Anything, ICCV 2023.
Glossary: B batch, H W pixels, h w grid of patches, N = h·w, D token width, n attention heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from timm.layers.patch_embed import resample_patch_embed
from timm.layers.pos_embed import resample_abs_pos_embed, resample_abs_pos_embed_nhwc
from timm.models import beit, eva, is_model_in_modules, vision_transformer, vision_transformer_sam
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meanshifter.data.download import why_unreachable
from meanshifter.errors import InputError, did_you_mean, is_out_of_memory, summarize_error
from meanshifter.model.licenses import terms_hint
from meanshifter.model.vit import Family, Grid, State, convert_vit, sequence_tokens

_OF_HEADS = {"attn_pool_num_heads", "attn_pool_mlp_ratio", "head_init_scale", "head_hidden_size"}


def sam_tokens(vit: Any, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
    """Tokens of SAM's ViT after its neck, two convolutions with norms that end the encoder of Segment Anything."""
    features: Tensor = vit.forward_features(images)
    return rearrange(features, "b d h w -> b (h w) d")


def beit_tokens(vit: Any, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
    """Tokens of `Beit`, whose own `forward_features` knows one grid only."""
    x = vit.patch_embed.proj(images)
    grid, own = (x.shape[-2], x.shape[-1]), tuple(vit.patch_embed.grid_size)
    positions = vit.pos_embed
    if positions is not None and grid != own:
        positions = resample_abs_pos_embed(positions, list(grid), list(own), num_prefix_tokens=1)

    def bias_of(table: Tensor) -> Tensor:
        return relative_bias(table, table_at(table, own, grid), grid)

    return beit_layers(vit, x, positions, bias_of)


def beit_layers(vit: Any, x: Tensor, positions: Tensor | None, bias_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Run `Beit` on projected patches (B, D, h, w), given its positions and biases (n, N+1, N+1) at their grid."""
    x = vit.patch_embed.norm(x.flatten(2).mT)
    x = torch.cat((vit.cls_token.expand(x.shape[0], -1, -1), x), 1)
    x = vit.pos_drop(x if positions is None else x + positions)
    shared = None if vit.rel_pos_bias is None else bias_of(vit.rel_pos_bias.relative_position_bias_table)
    for block in vit.blocks:
        table = block.attn.relative_position_bias_table
        parts = [shared, None if table is None else bias_of(table)]
        present = [part for part in parts if part is not None]
        bias = sum(present[1:], start=present[0])[None] if present else None
        if vit.grad_checkpointing and torch.is_grad_enabled():
            x = checkpoint(block, x, bias, use_reentrant=False)
        else:
            x = block(x, shared_rel_pos_bias=bias)
    tokens: Tensor = vit.norm(x)[:, 1:]
    return tokens


class GridAttention(beit.Attention):
    """BEiT's attention at any grid: its bias is computed by the caller, from the table that it holds."""

    @classmethod
    def of(cls, plain: beit.Attention, grid: Grid) -> GridAttention:
        """Take over a module of timm, with a table for `grid` if it had one, zero as timm initializes it."""
        own = cls.__new__(cls)
        own.__dict__.update(plain.__dict__)
        if own.relative_position_bias_table is not None:
            own.relative_position_bias_table = empty_table(grid, own.num_heads)
        own.window_size, own.relative_position_index = grid, None
        return own

    def forward(self, x: Float[Tensor, "B M D"], shared_rel_pos_bias: Tensor | None = None) -> Float[Tensor, "B M D"]:
        """Attend with the complete bias (1, n, M, M) added to the scores, as the module of timm does."""
        parts = (self.q_bias, self.k_bias, self.v_bias)
        bias = None if self.q_bias is None else torch.cat([part for part in parts if part is not None])
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = rearrange(qkv, "b m (three n d) -> three b n m d", three=3, n=self.num_heads).unbind(0)
        if self.fused_attn:
            dropped = self.attn_drop.p if self.training else 0.0
            mask = None if shared_rel_pos_bias is None else shared_rel_pos_bias.to(q.dtype)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropped)
        else:
            scores = q * self.scale @ k.mT
            scores = scores if shared_rel_pos_bias is None else scores + shared_rel_pos_bias
            mixed = self.attn_drop(scores.softmax(-1)) @ v
        out: Tensor = self.proj_drop(self.proj(joined_heads(mixed)))
        return out


def joined_heads(x: Float[Tensor, "B n M d"]) -> Float[Tensor, "B M D"]:
    """Concatenate heads in a copy: with a bias, exporters' attention has other strides than the traced one."""
    return x.transpose(1, 2).clone(memory_format=torch.contiguous_format).flatten(2)


def empty_table(grid: Grid, heads: int) -> nn.Parameter:
    """A table of zeros for all relative positions of a grid, and three for those from, to and of the class token."""
    return nn.Parameter(torch.zeros((2 * grid[0] - 1) * (2 * grid[1] - 1) + 3, heads))


def table_at(table: Float[Tensor, "T n"], own: Grid, grid: Grid) -> Float[Tensor, "n y x"]:
    """Resample a bias table from its own grid to another, y = 2h-1, x = 2w-1, as timm does for pretrained weights."""
    wide = rearrange(table[:-3], "(y x) n -> n y x", y=2 * own[0] - 1)
    if grid == own:
        return wide
    rows, cols = (geometric_matrix(n, out).to(wide) for n, out in zip(own, grid, strict=True))
    return rows @ wide @ cols.T


def relative_bias(table: Float[Tensor, "T n"], wide: Float[Tensor, "n y x"], grid: Grid) -> Float[Tensor, "n M M"]:
    """Biases between the M = N + 1 tokens of a grid, the class token first, from a table resampled to the grid."""
    heads, (h, w) = wide.shape[0], grid
    down, right = (torch.arange(side, device=wide.device) for side in grid)
    dy, dx = (place[:, None] - place + place.shape[0] - 1 for place in (down, right))
    patches = wide[:, dy][..., dx].transpose(2, 3).reshape(heads, h * w, h * w)
    to_patch, from_patch, alone = table[-3:].T[:, :, None, None].unbind(1)
    count = patches.shape[-1]
    first = torch.cat((alone, to_patch.expand(heads, 1, count)), 2)
    return torch.cat((first, torch.cat((from_patch.expand(heads, count, 1), patches), 2)), 1)


def geometric_matrix(n_in: int, n_out: int) -> Float[Tensor, "out in"]:
    """Weights (2·n_out - 1, 2·n_in - 1) that resample biases over the offsets of one axis.

    Offsets of the table are spread as a geometric progression, dense at the center, whose last term is that of the
    new grid; values are linear in between. This is timm's `resize_rel_pos_bias_table`, after BEiT's fine-tuning code,
    written as tensors so that exporters can trace it.
    """
    ends = torch.tensor((1.01, 1.5), dtype=torch.float64).unbind()
    low, high = ends
    q = (low + high) / 2
    for _ in range(19):  # timm's bisection stops at a width of 1e-6
        q = (low + high) / 2
        above = (1 - q ** (n_in - 1)) / (1 - q) > n_out - 1
        low, high = torch.where(above, low, q), torch.where(above, q, high)
    one_side = (q ** torch.arange(n_in, dtype=torch.float64) - 1) / (q - 1)
    nodes = torch.cat((-one_side[1:].flip(0), one_side)).float()
    reach = one_side[-1].float()
    offsets = (torch.arange(2 * n_out - 1, dtype=torch.float32) - (n_out - 1)).clamp(-reach, reach)[:, None]
    before, after = torch.cat((nodes[:1] - 1, nodes[:-1])), torch.cat((nodes[1:], nodes[-1:] + 1))
    rising, falling = (offsets - before) / (nodes - before), (after - offsets) / (after - nodes)
    return torch.minimum(rising, falling).clamp(0, 1)


def _convert_eva(state: State, vit: Any) -> State:
    """Convert with timm, after removing biases that the encoder does without: they must be zero.

    DINOv3 has biases of queries and values, which are zero in most sizes; timm's names ending in _qkvb have them.
    """
    state, own = dict(state), vit.state_dict()
    for name in [name for name in state if name.endswith("attn.qkv.bias") and name not in own]:
        q, k, v = state[name].chunk(3)
        biased = getattr(vit.blocks[0].attn, "q_bias", None) is not None if len(vit.blocks) else False
        if k.any() or (not biased and (q.any() or v.any())):
            raise InputError(
                f"{name} is not zero, and the encoder has no such bias; choose the encoder's name that ends in _qkvb"
            )
        if not biased:
            del state[name]
    return dict(eva.checkpoint_filter_fn(state, vit))


def _convert_sam(state: State, vit: Any) -> State:
    """Convert with timm, and resample patches as it does for other ViTs, and positions as its forward pass does."""
    convert: Any = vision_transformer_sam.checkpoint_filter_fn
    state = dict(convert(state, vit))
    own = vit.state_dict()
    for name in own.keys() & state.keys():
        if name == "patch_embed.proj.weight" and own[name].shape[1] == state[name].shape[1]:
            state[name] = resample_patch_embed(state[name], list(own[name].shape[2:]))
        elif name == "pos_embed" and state[name].ndim == 4:
            state[name] = resample_abs_pos_embed_nhwc(state[name], list(own[name].shape[1:3]))
        elif name.endswith((".rel_pos_h", ".rel_pos_w")) and state[name].shape[0] != own[name].shape[0]:
            state[name] = F.interpolate(state[name].T[None], own[name].shape[0], mode="linear")[0].T
    return state


def _convert_beit(state: State, vit: Any) -> State:
    """Convert with timm, except for tables of biases, for which timm takes a non-square grid for a square one."""
    tables = {name: state[name] for name in state if name.endswith(".relative_position_bias_table")}
    rest = {name: value for name, value in state.items() if name not in tables}
    grid = tuple(vit.patch_embed.grid_size)
    wanted = (2 * grid[0] - 1) * (2 * grid[1] - 1) + 3
    for name, table in tables.items():
        side = (math.isqrt(table.shape[0] - 3) + 1) // 2
        if table.shape[0] == wanted:
            continue
        if (2 * side - 1) ** 2 + 3 != table.shape[0]:
            raise ValueError(f"{name} has {table.shape[0]} rows, which are not those of a square grid")
        wide = table_at(table.float(), (side, side), grid)
        tables[name] = torch.cat((rearrange(wide, "n y x -> (y x) n"), table[-3:].float())).to(table.dtype)
    return dict(beit.checkpoint_filter_fn(rest, vit)) | tables


FAMILIES = (
    Family(
        vision_transformer.VisionTransformer,
        ("vision_transformer", "deit"),
        sequence_tokens,
        convert_vit,
        {"dynamic_img_size": True},
        is_sequence=True,
        has_embeddings=True,
    ),
    Family(
        eva.Eva,
        ("eva",),
        sequence_tokens,
        _convert_eva,
        {"dynamic_img_size": True},
        reserved=frozenset(_OF_HEADS | {"patch_drop_rate"}),
        is_sequence=True,
    ),
    Family(beit.Beit, ("beit",), beit_tokens, _convert_beit, reserved=frozenset(_OF_HEADS), resampled_by_timm=False),
    Family(
        vision_transformer_sam.VisionTransformerSAM,
        ("vision_transformer_sam",),
        sam_tokens,
        _convert_sam,
        reserved=frozenset(_OF_HEADS | {"patch_drop_rate", "use_rope", "ref_feat_shape"}),
        resampled_by_timm=False,
    ),
)


def plain_names() -> list[str]:
    """Names of timm's plain ViTs, sorted."""
    return sorted(
        {name for family in FAMILIES for module in family.modules for name in timm.list_models(module=module)}
    )


def family_of(encoder: str) -> Family:
    """Return the family of an encoder's name, with or without a tag.

    Models registered elsewhere count as a `VisionTransformer`.

    Raises:
        InputError: the name is not in timm, or not one of a plain ViT; names the nearest that are.
    """
    name = encoder.split(".")[0]
    if not timm.is_model(name):
        hint = did_you_mean(name, plain_names(), "`timm.list_models('vit*')` lists the names")
        raise InputError(f"encoder: {encoder!r} is not a model in timm; {hint}")
    for family in FAMILIES:
        if is_model_in_modules(name, family.modules):
            return family
    if timm.model_entrypoint(name).__module__.startswith("timm."):
        raise InputError(f"encoder: {encoder!r} is not a plain ViT; choose one of {', '.join(_alternatives(name))}, …")
    return FAMILIES[0]


def _alternatives(name: str) -> list[str]:
    """Plain ViTs of about the same size as the model `name`."""
    sizes = ("tiny", "small", "base", "large", "huge")
    size = next((size for size in sizes if size in name), "small")
    patterns = ("vit_{}_patch16_224", "vit_{}_patch16_dinov3", "vit_{}_patch14_dinov2", "deit3_{}_patch16_224")
    more = ("vit_{}_patch14_224", "vit_{}_plus_patch16_dinov3", "deit_{}_patch16_224", "eva02_{}_patch14_224")
    found = [text.format(size) for text in (*patterns, *more)]
    return [text for text in found if timm.is_model(text)][:4]


def create_vit(
    encoder: str, image_size: Grid, drop_path: float, arguments: Mapping[str, Any], *, pretrained: bool = False
) -> tuple[Any, Family]:
    """Build an encoder without its classifier, whose positions are made for images of (height, width).

    Raises:
        InputError: an unknown name or argument, a model that is not a plain ViT, or weights that timm cannot load.
    """
    family = family_of(encoder)
    _check_arguments(arguments, family)
    size = image_size
    if family.kind is beit.Beit:  # timm's relative indices need N × N memory, which a configuration must not ask for
        size = (int(arguments.get("patch_size", 16)),) * 2
    vit, found = load_from_timm(encoder, size, arguments, drop_path=drop_path, pretrained=pretrained)
    projection = getattr(vit.patch_embed, "proj", None)
    patch = int(vit.patch_embed.patch_size[0])
    if (
        not isinstance(projection, nn.Conv2d)
        or projection.kernel_size != projection.stride
        or projection.stride != (patch, patch)
    ):
        raise InputError(
            f"encoder: {encoder!r} is not a plain ViT: its patches come from {type(vit.patch_embed).__name__}; choose "
            f"one of {', '.join(_alternatives(encoder))}, …"
        )
    if min(image_size) < patch:
        raise InputError(
            f"image_size: {tuple(image_size)} (by default the crop) is below the patch size of {patch} pixels; both "
            f"sides must be at least {patch}"
        )
    if isinstance(vit, beit.Beit):
        _resize_beit(vit, image_size)
    return vit, found


def _check_arguments(arguments: Mapping[str, Any], family: Family) -> None:
    unknown = sorted(str(key) for key in arguments.keys() - family.accepted)
    if unknown:
        raise InputError(
            f"encoder_args: {unknown[0]!r} is not an argument of a {family.kind.__name__}; use one of "
            f"{', '.join(sorted(family.accepted))}"
        )


def _resize_beit(vit: Any, image_size: Grid) -> None:
    """Replace what depends on the grid, without timm's indices of N × N relative positions."""
    vit.patch_embed.set_input_size(image_size)
    grid = vit.patch_embed.grid_size
    if vit.pos_embed is not None:
        vit.pos_embed = nn.Parameter(
            nn.init.trunc_normal_(torch.empty(1, grid[0] * grid[1] + 1, vit.embed_dim), std=0.02)
        )
    for block in vit.blocks:
        block.attn = GridAttention.of(block.attn, grid)
    if vit.rel_pos_bias is not None:
        shared = vit.rel_pos_bias
        shared.window_size, shared.relative_position_index = grid, None
        shared.relative_position_bias_table = empty_table(grid, vit.blocks[0].attn.num_heads)


def load_from_timm(
    encoder: str, image_size: Grid, arguments: Mapping[str, Any], *, drop_path: float = 0.0, pretrained: bool = False
) -> tuple[Any, Family]:
    """Build timm's model, with its final norm at each token and nothing behind it.

    timm moves the final norm behind the pooling of models that average their tokens; here it is always at the tokens,
    so that its weights are used.
    """
    family = family_of(encoder)
    cached = _cached_weights(encoder) if pretrained else None
    try:
        vit: Any = timm.create_model(
            encoder,
            pretrained=pretrained,
            img_size=image_size,
            num_classes=0,
            drop_path_rate=drop_path,
            pretrained_cfg_overlay=cached,
            **family.arguments,
            **arguments,
        )
    except (TypeError, AssertionError, ValueError, ArithmeticError) as error:
        raise InputError(f"encoder: {encoder!r} cannot be built as a plain ViT: {summarize_error(error)}") from error
    except (OSError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = summarize_error(error)
        if not pretrained:
            raise InputError(f"encoder: {encoder!r} cannot be built as a plain ViT: {reason}") from error
        raise InputError(
            f"encoder_weights: timm could not load {encoder!r}: {reason}; check the tag and the network, "
            f"or give a local file, --model.encoder_weights FILE{terms_hint(encoder)}"
        ) from error
    found = next((family for family in FAMILIES if isinstance(vit, family.kind)), None)
    if found is None:
        raise InputError(
            f"encoder: {encoder!r} is a {type(vit).__name__}, not a plain ViT; choose one of "
            f"{', '.join(_alternatives(encoder))}, …"
        )
    if isinstance(getattr(vit, "norm", None), nn.Identity):
        vit.norm = vit.fc_norm
    vit.fc_norm = nn.Identity()
    vit.attn_pool = None
    return vit, found


def _cached_weights(encoder: str) -> dict[str, Any] | None:
    """The file of these weights in the Hub's cache, as timm's overlay; None if timm has to download it.

    Raises:
        InputError: it is not cached and the Hub is unreachable; the Hub's client would retry for a minute.
    """
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

    stated: Any = timm.get_pretrained_cfg(encoder)  # Any, since `custom_load` may be a string, unlike its annotation
    if stated is None or stated.hf_hub_id is None or stated.custom_load == "hf":
        return None
    repo, _, revision = stated.hf_hub_id.partition("@")
    names = (constants.SAFETENSORS_SINGLE_FILE, constants.PYTORCH_WEIGHTS_NAME)
    for name in names if stated.hf_hub_filename is None else (stated.hf_hub_filename,):
        cached = try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(cached, str):
            return {"file": cached, "custom_load": False}
    reason = why_unreachable(constants.ENDPOINT)
    if reason is None:
        return None
    raise InputError(
        f"encoder_weights: {encoder!r} is not in the cache, and {constants.ENDPOINT} is unreachable ({reason}); "
        f"download {hf_hub_url(repo, names[0])} elsewhere and give it with --model.encoder_weights FILE"
        f"{terms_hint(encoder)}"
    )
