"""The encoder: a plain ViT of timm without its classifier, or a module of one's own, from images to patch tokens.

Source: Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; code and weights by timm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from meanshifter.errors import InputError
from meanshifter.model.config import TokenMergingConfig
from meanshifter.model.token_merging import MergedTokens
from meanshifter.model.vit import PLAIN, Family, Grid, create_standard


class PatchProjection(nn.Conv2d):
    """The convolution of a patch embedding, computed on mean-free patches at inference, which rounds less.

    W x = W (x − x̄) + (Σ W) x̄ with the mean x̄ of each channel of a patch. In a smooth patch, such as sky or a wall, all
    products of the plain sum are large and nearly cancel, and layer norms amplify the rounding error of float32.
    Training keeps the plain product, since its noise is larger; so do 16-bit types, which would round Σ W, and the
    meta device, which has no values to round and on which FLOPs of the plain product are counted.
    """

    @classmethod
    def of(cls, plain: nn.Conv2d) -> PatchProjection:
        """Wrap a convolution, sharing its parameters."""
        size = cast(tuple[int, int], plain.kernel_size)
        own = cls(plain.in_channels, plain.out_channels, size, size, bias=plain.bias is not None, device="meta")
        own.weight, own.bias = plain.weight, plain.bias
        return own.train(plain.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Project images (B, C, H, W) of full patches to (B, D, h, w)."""
        if self.training or input.is_meta or _has_16_bits(input):
            return super().forward(input)
        means = F.avg_pool2d(input, self.kernel_size)
        (B, C, h, w), (P, Q) = means.shape, self.kernel_size
        rest = input.reshape(B, C, h, P, w, Q) - means[:, :, :, None, :, None]
        return super().forward(rest.reshape(input.shape)) + F.conv2d(means, self.weight.sum((2, 3), keepdim=True))


def _has_16_bits(images: Tensor) -> bool:
    device = images.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return autocast or images.dtype in (torch.float16, torch.bfloat16)


def center_patches(embed: nn.Module) -> None:
    """Use `PatchProjection` in a patch embedding of timm, if its patches do not overlap."""
    proj = getattr(embed, "proj", None)
    if type(proj) is nn.Conv2d and proj.kernel_size == proj.stride != (1, 1):
        embed.proj = PatchProjection.of(proj)


class TokenEncoder(Protocol):
    """What a module of one's own must offer to be an encoder."""

    patch_size: int
    """P, the side of a patch in pixels."""
    embed_dim: int
    """D, the width of a token."""

    def __call__(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B N D"]:
        """Compute the tokens of the patches in row-major order, N = H/P · W/P, without class or register tokens.

        H and W are multiples of P, and may differ from call to call.
        """


class Encoder(nn.Module):
    """A ViT without its classifier: images (B, 3, H, W) to patch tokens (B, h·w, D) after its final norm."""

    def __init__(
        self,
        encoder: str | nn.Module,
        image_size: tuple[int, int],
        *,
        drop_path: float = 0.0,
        arguments: Mapping[str, Any] | None = None,
        positions: str = "antialias",
        norm_eps: float | None = None,
        patch_bias: bool = True,
        merging: TokenMergingConfig | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.frozen = False
        self.positions, self.merging = positions, merging
        self.family: Family | None = None
        self.vit: Any
        if isinstance(encoder, nn.Module):
            self.vit = encoder
            self.patch_size, self.width = _sizes_of(encoder)
            self._check_merging()
            return
        vit, self.family = _create(encoder, image_size, drop_path, arguments or {}, pretrained=pretrained)
        if positions != "antialias" and not self.family.has_embeddings:
            raise InputError(
                f"positions: {positions!r}, but {encoder!r} is a {type(vit).__name__}, which other tools do not have; "
                "use 'antialias'"
            )
        self.vit = vit
        if norm_eps is not None:
            for module in self.vit.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = norm_eps
        if not patch_bias:
            self.vit.patch_embed.proj.bias = None
        center_patches(self.vit.patch_embed)
        self.patch_size = int(self.vit.patch_embed.patch_size[0])
        self.width = int(self.vit.num_features)
        self._check_merging()

    def _check_merging(self) -> None:
        """Check that the encoder's layers are such that some of them can see merged tokens."""
        if self.merging is None:
            return
        if self.family is None or not self.family.is_sequence:
            raise InputError(
                f"token_merging: given, but the layers of a {type(self.vit).__name__} need the grid of all tokens; use "
                "a ViT with position or rotary embeddings, such as vit_small_patch16_dinov3, or a ratio of 0"
            )
        if self.merging.after_layer >= self.depth:
            raise InputError(
                f"token_merging.after_layer: {self.merging.after_layer}, but the encoder has {self.depth} layers; use "
                f"0 to {self.depth - 1}, or a token_merging.ratio of 0"
            )

    def merge_tokens(self, merging: TokenMergingConfig | None) -> None:
        """Merge uniform windows of tokens from now on; None: none.

        Raises:
            InputError: the encoder cannot.
        """
        self.merging = merging
        self._check_merging()

    def freeze(self) -> None:
        """Stop training the encoder: without gradients, and in evaluation mode whatever `train` is called with."""
        self.frozen = True
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Encoder:
        """Set the mode, as of any module, unless the encoder is frozen."""
        return super().train(mode and not self.frozen)

    @property
    def heads(self) -> int:
        """Attention heads per layer."""
        stated = (getattr(module, "num_heads", 1) for module in self.vit.modules())
        return max((number for number in stated if isinstance(number, int)), default=1)

    @property
    def depth(self) -> int:
        """Number of layers; 1 for a module of one's own without `blocks`."""
        blocks = getattr(self.vit, "blocks", None)
        return len(blocks) if isinstance(blocks, nn.Sequential | nn.ModuleList) else 1

    def set_attention(self, *, fused: bool) -> None:
        """Choose whether attention runs fused, without N × N weights, or as products with a softmax in between."""
        for module in self.vit.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = fused

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> tuple[Float[Tensor, "B N D"], Grid]:
        """Return patch tokens and their grid (h, w) = (ceil(H/P), ceil(W/P)).

        Images are zero-padded at the right and bottom to a multiple of the patch; positions are resampled to the grid;
        class, distillation and register tokens are dropped after the final norm.

        Raises:
            InputError: a module of one's own returned something other than one token per patch.
        """
        P = self.patch_size
        grid = (-(-images.shape[-2] // P), -(-images.shape[-1] // P))
        images = F.pad(images, (0, grid[1] * P - images.shape[-1], 0, grid[0] * P - images.shape[-2]))
        if self.family is None:
            return own_tokens(self.vit, images, grid, self.width), grid
        if self.positions == "antialias" and self.merging is None:
            return self.family.tokens(self.vit, images), grid
        x, rope = self._embed(images)
        return self.layers(self.vit.norm_pre(x), grid, rope), grid

    def layers(
        self, x: Float[Tensor, "B K D"], grid: Grid, rope: Float[Tensor, "*depth_and_heads N two_d"] | None = None
    ) -> Float[Tensor, "B N D"]:
        """Run the layers and the final norm of an encoder that `is_sequence`, from its tokens with positions on.

        `rope` are rotary embeddings of the patches, as timm has them.
        """
        vit, merging, blocks = self.vit, self.merging, list(self.vit.blocks)
        by_layer = [rope] * len(blocks) if rope is None or not vit.rope_mixed else list(rope)
        first = len(blocks) if merging is None else merging.after_layer
        x = self._run(blocks[:first], x, by_layer)
        if merging is not None:
            merged = MergedTokens(x, grid, prefix=vit.num_prefix_tokens, config=merging)
            turned = [None if each is None else merged.rotations(each) for each in by_layer[first:]]
            x = merged.restored(self._run(blocks[first:], merged.tokens, turned))
        tokens: Tensor = vit.norm(x)
        return tokens[:, vit.num_prefix_tokens :]

    def _run(self, blocks: list[nn.Module], x: Tensor, rope: list[Tensor | None]) -> Tensor:
        for block, each in zip(blocks, rope, strict=False):
            more: dict[str, Any] = {} if each is None else {"rope": each}
            if self.vit.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False, **more)
            else:
                x = block(x, **more)
        return x

    def _embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Patch, class and distillation tokens with positions, resampled as in timm or other tools, and rotations.

        Sources: MMSegmentation's `VisionTransformer.resize_pos_embed` and the official Segmenter's `resize_pos_embed`;
        both resample only if the number of patches differs.
        """
        vit = self.vit
        x = vit.patch_embed(images)
        if self.positions == "antialias":
            if self.family is None or not self.family.has_embeddings:
                embedded, rope = vit._pos_embed(x)
                return embedded, rope
            return vit.patch_drop(vit._pos_embed(x)), None
        assert vit.pos_embed is not None  # the models of other tools have it
        grid, size = tuple(vit.patch_embed.grid_size), tuple(x.shape[1:3])
        own, positions = torch.tensor_split(vit.pos_embed, [vit.num_prefix_tokens], dim=1)
        if size[0] * size[1] != positions.shape[1]:
            table = rearrange(positions, "1 (h w) d -> 1 d h w", h=grid[0])
            table = F.interpolate(table, size, mode=self.positions, align_corners=False)
            positions = rearrange(table, "1 d h w -> 1 (h w) d")
        prefix = [token for token in (vit.cls_token, getattr(vit, "dist_token", None)) if token is not None]
        first = [(torch.cat(prefix, 1) + own).expand(len(x), -1, -1)] if prefix else []
        return torch.cat([*first, x.flatten(1, 2) + positions], dim=1), None


def _create(
    encoder: str, image_size: Grid, drop_path: float, arguments: Mapping[str, Any], *, pretrained: bool
) -> tuple[Any, Family]:
    """Build the encoder of a timm name here if it is one of `vit.STANDARD`, else with timm.

    Raises:
        InputError: as `create_vit`.
    """
    own = None if pretrained else create_standard(encoder, image_size, drop_path, arguments)
    if own is not None:
        return own, PLAIN
    from meanshifter.model.vits import create_vit

    vit, family = create_vit(encoder, image_size, drop_path, arguments, pretrained=pretrained)
    if pretrained:
        with torch.random.fork_rng(devices=[]):
            own = create_standard(encoder, image_size, drop_path, arguments)
    if own is None:
        return vit, family
    own.load_state_dict(vit.state_dict())
    return own, PLAIN


def _sizes_of(module: nn.Module) -> tuple[int, int]:
    """Patch size and width that a module of one's own states."""
    found = []
    for name in ("patch_size", "embed_dim"):
        value = getattr(module, name, None)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(
                f"encoder: {type(module).__name__}.{name} is {value!r:.40}; a module as encoder must have the integers "
                "patch_size, in pixels, and embed_dim, the width of its tokens"
            )
        found.append(value)
    return found[0], found[1]


def own_tokens(module: nn.Module, images: Tensor, grid: Grid, width: int) -> Float[Tensor, "B N D"]:
    """Call a module of one's own and check what it returns."""
    tokens = module(images)
    expected = (images.shape[0], grid[0] * grid[1], width)
    if not isinstance(tokens, Tensor) or tokens.ndim != 3 or tokens.shape != expected:
        found = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InputError(
            f"encoder: {type(module).__name__} returned {found} for images {tuple(images.shape)}; expected tokens "
            f"{expected}, one for each patch, without class and register tokens"
        )
    return tokens
