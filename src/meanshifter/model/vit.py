"""The plain ViT of the presets: timm's `VisionTransformer` as AugReg and DeiT have it, without importing timm.

Importing timm takes two seconds, mostly for parts of torch that inference does not need: as long as importing torch,
and longer than the encoder takes for a photo. Names of tensors, initialization and arithmetic are timm's, bit for bit;
`model.vits` has all other plain ViTs, which timm builds.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; names, initialization and defaults of timm's
`models/vision_transformer.py`.
Glossary: B batch, H W pixels, h w grid of patches, N = h·w, M = N + 1 with the class token, D token width, n heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Grid = tuple[int, int]
State = dict[str, Tensor]
_SET_HERE = {"img_size", "num_classes", "fc_norm", "use_fc_norm", "dynamic_img_size", "dynamic_img_pad"}
SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}
"""timm's name of a size → width, depth and heads."""
_PATCHES = {
    ("vit_tiny", 224): (16,),
    ("vit_tiny", 384): (16,),
    ("vit_small", 224): (8, 16, 32),
    ("vit_small", 384): (16, 32),
    ("vit_base", 224): (8, 16, 32),
    ("vit_base", 384): (16, 32),
    ("vit_large", 224): (14, 16, 32),
    ("vit_large", 384): (16, 32),
    ("deit_tiny", 224): (16,),
    ("deit_small", 224): (16,),
    ("deit_base", 224): (16,),
    ("deit_base", 384): (16,),
}
STANDARD: dict[str, dict[str, int]] = {
    f"{name}_patch{patch}_{side}": dict(
        zip(("embed_dim", "depth", "num_heads"), SIZES[name.partition("_")[2]], strict=True), patch_size=patch
    )
    for (name, side), patches in _PATCHES.items()
    for patch in patches
}
"""timm's names of the plain ViTs that are built here → the arguments that differ between them."""


@dataclass(frozen=True)
class Family:
    """The ViTs of one class."""

    kind: type[nn.Module]
    modules: tuple[str, ...]
    """Modules of `timm.models` all of whose models are of this class."""
    tokens: Callable[[Any, Tensor], Tensor]
    """The encoder and images (B, 3, H, W) of full patches to patch tokens (B, N, D) after the final norm."""
    convert: Callable[[State, Any], State]
    """Tensors in timm's or the authors' names to timm's, resampled to the encoder's grid."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of timm.create_model that each encoder gets."""
    reserved: frozenset[str] = frozenset()
    """Arguments of its constructor that `encoder_args` must not have, in addition to those set here."""
    resampled_by_timm: bool = True
    """Whether timm resamples pretrained weights to any image size while it loads them."""
    is_sequence: bool = False
    """Whether layers see tokens as one sequence, some of which may be merged, rather than on a grid."""
    has_embeddings: bool = False
    """Whether all its positions are embeddings added to the tokens, which other tools resample in other ways."""

    @property
    def accepted(self) -> set[str]:
        """Valid `encoder_args`; timm.create_model also accepts URLs and files, which a configuration must not have."""
        return {*signature(self.kind).parameters} - _SET_HERE - self.reserved - {"device", "dtype"}


class DropPath(nn.Module):
    """Stochastic depth: drop the branch of a residual connection for some samples of a batch, and scale the others."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        """Drop samples of x (B, …) while training."""
        if not self.training or self.drop_prob == 0:
            return x
        keep = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.drop_prob)
        return x * (keep.div_(1 - self.drop_prob) if self.drop_prob < 1 else keep)


class Attention(nn.Module):
    """Multi-head self-attention; `fused_attn` chooses torch's fused kernel, which holds no M × M weights."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.fused_attn = True
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "B M D"]) -> Float[Tensor, "B M D"]:
        """Attend from all tokens to all."""
        B, M, D = x.shape
        q, k, v = self.qkv(x).reshape(B, M, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused_attn:
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            mixed = self.attn_drop((q * self.scale @ k.mT).softmax(-1)) @ v
        out: Tensor = self.proj(mixed.transpose(1, 2).reshape(B, M, D))
        return out


class Mlp(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "B M D"]) -> Float[Tensor, "B M D"]:
        """Apply to each token."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0, norm_eps: float = 1e-6
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, norm_eps)
        self.attn = Attention(dim, num_heads)
        self.drop_path1: nn.Module = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path2: nn.Module = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Float[Tensor, "B M D"]) -> Float[Tensor, "B M D"]:
        """Run attention and the MLP, each on a residual connection."""
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path2(self.mlp(self.norm2(x)))
        return out


class PatchEmbed(nn.Module):
    """A linear layer from patches to tokens, as a convolution."""

    def __init__(self, image_size: Grid, patch_size: int, dim: int) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.img_size = image_size
        self.grid_size = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)
        self.norm = nn.Identity()

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Embed images of full patches."""
        tokens: Tensor = self.proj(images).permute(0, 2, 3, 1)
        return tokens


class VisionTransformer(nn.Module):
    """A plain ViT with a class token and learned positions, which are resampled to any grid."""

    def __init__(
        self,
        img_size: Grid,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        """Build the encoder with random weights, drawn in timm's order."""
        super().__init__()
        self.num_features = self.embed_dim = embed_dim
        self.num_prefix_tokens, self.no_embed_class, self.grad_checkpointing = 1, False, False
        self.patch_embed = PatchEmbed(img_size, patch_size, embed_dim)
        h, w = self.patch_embed.grid_size
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + h * w, embed_dim))
        self.norm_pre, self.patch_drop = nn.Identity(), nn.Identity()
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()
        self.blocks = nn.Sequential(*(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates))
        self.norm = nn.LayerNorm(embed_dim, 1e-6)
        if not self.pos_embed.is_meta:
            self._init_weights()

    @torch.no_grad()
    def _init_weights(self) -> None:
        """Draw weights in timm's order, normal numbers of standard deviation 0.02 from uniform ones."""
        layers = [module for module in self.modules() if isinstance(module, nn.Linear)]
        for values in (self.pos_embed, self.cls_token, *(layer.weight for layer in layers)):
            if values is self.cls_token:
                values.normal_(std=1e-6)
            else:
                values.uniform_(-1, 1).erfinv_().mul_(0.02 * math.sqrt(2)).clamp_(-2, 2)
        for layer in layers:
            layer.bias.zero_()

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are never decayed."""
        return {"pos_embed", "cls_token"}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of names by layer, for timm's decay of learning rates."""
        return {"stem": "^cls_token|pos_embed|patch_embed", "blocks": [(r"^blocks\.(\d+)", None), ("^norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute layers in the backward pass instead of keeping their activations."""
        self.grad_checkpointing = enable

    def _pos_embed(self, x: Float[Tensor, "B h w D"]) -> Float[Tensor, "B M D"]:
        B, h, w, D = x.shape
        positions = resample_positions(self.pos_embed, self.patch_embed.grid_size, (h, w))
        return torch.cat([self.cls_token.expand(B, -1, -1), x.reshape(B, -1, D)], dim=1) + positions

    def forward_features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B M D"]:
        """Compute the class token and the patch tokens after the final norm, of images of full patches."""
        x = self._pos_embed(self.patch_embed(images))
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        tokens: Tensor = self.norm(x)
        return tokens


def resample_positions(table: Float[Tensor, "1 M D"], own: Grid, grid: Grid) -> Float[Tensor, "1 M2 D"]:
    """Resample position embeddings, of which the first is the class token's, from one grid to another (bicubic)."""
    if own == grid:
        return table
    first, rest = table[:, :1], table[:, 1:]
    rest = rest.float().reshape(1, *own, -1).permute(0, 3, 1, 2)
    rest = F.interpolate(rest, grid, mode="bicubic", antialias=True)
    return torch.cat([first, rest.permute(0, 2, 3, 1).reshape(1, -1, table.shape[-1]).to(table.dtype)], dim=1)


def sequence_tokens(vit: Any, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
    """Tokens of ViTs that resample embeddings and rotations to any grid themselves."""
    tokens: Tensor = vit.forward_features(images)[:, vit.num_prefix_tokens :]
    return tokens


def convert_vit(state: State, vit: Any) -> State:
    """Convert tensors with timm's own function for its `VisionTransformer`."""
    from timm.models import vision_transformer

    convert: Any = vision_transformer.checkpoint_filter_fn
    return dict(convert(state, vit))


PLAIN = Family(VisionTransformer, (), sequence_tokens, convert_vit, is_sequence=True, has_embeddings=True)


def create_standard(
    encoder: str, image_size: Grid, drop_path: float, arguments: Mapping[str, Any]
) -> VisionTransformer | None:
    """Build the encoder of a timm name, with or without a tag; None if timm has to, or has to refuse it."""
    name = encoder.partition(".")[0]
    if name not in STANDARD:
        return None
    options: dict[str, Any] = {**STANDARD[name], **arguments}
    if not options.keys() <= {*signature(VisionTransformer).parameters} - {"img_size"}:
        return None
    ratio = options.get("mlp_ratio", 4.0)
    numbers = [options[name] for name in ("embed_dim", "depth", "num_heads", "patch_size")]
    if any(isinstance(number, bool) or not isinstance(number, int) or number < 1 for number in numbers):
        return None
    plain = isinstance(ratio, int | float) and not isinstance(ratio, bool) and ratio > 0
    if (
        not plain
        or "drop_path_rate" in options
        or options["embed_dim"] % options["num_heads"]
        or min(image_size) < options["patch_size"]
    ):
        return None
    return VisionTransformer(image_size, drop_path_rate=drop_path, **options)
