"""Encoders in terms of shapes only, so that exporters keep any image size.

Exporters fix to the example what timm computes with Python numbers: the check that images consist of full patches,
resampled position embeddings, the coordinates of rotary embeddings, and biases between relative positions. Here all of
them depend on tensors and symbolic sizes; values are those of `model.encoder` up to rounding.

Glossary: B batch, h w grid of patches, N = h·w, D token width, n heads, d width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from timm.layers import pos_embed_sincos as rotary
from timm.models import vision_transformer_sam as sam
from timm.models.beit import Beit
from torch import Tensor, nn

from meanshifter.errors import InputError
from meanshifter.model.encoder import Encoder, own_tokens
from meanshifter.model.vit import Grid
from meanshifter.model.vits import beit_layers, geometric_matrix, joined_heads, relative_bias

COPY = torch.contiguous_format
"""Memory format of copies before a view: a copy only if needed would trace to a guard on the number of windows."""


class SizedEncoder(Encoder):
    """`Encoder` for images of full patches, in terms of shapes only."""

    def __init__(self, encoder: Encoder) -> None:
        nn.Module.__init__(self)
        self.vit, self.patch_size, self.width = encoder.vit, encoder.patch_size, encoder.width
        self.positions, self.family, self.frozen = encoder.positions, encoder.family, encoder.frozen
        self.merging = encoder.merging
        if isinstance(self.vit, sam.VisionTransformerSAM):
            self.vit.blocks = nn.Sequential(*map(_SamBlock, self.vit.blocks.children()))

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        """Return patch tokens and their grid, as `Encoder.forward` does."""
        P = self.patch_size
        if self.family is None:
            grid = (images.shape[-2] // P, images.shape[-1] // P)
            return own_tokens(self.vit, images, grid, self.width), grid
        x = self.vit.patch_embed.proj(images)
        grid = (x.shape[-2], x.shape[-1])
        vit, kind = self.vit, self.family.kind
        if self.family.is_sequence:
            x = _with_positions(vit, vit.patch_embed.norm(x.flatten(2).mT), grid, self.positions)
            rope = None if self.family.has_embeddings or vit.rope is None else rotations(vit.rope, grid)
            return self.layers(vit.norm_pre(x), grid, rope), grid
        forward: Callable[[Any, Tensor, Grid, str], Tensor] = _FORWARD[kind]
        return forward(vit, x, grid, self.positions), grid


def _beit_tokens(vit: Any, x: Tensor, grid: Grid, mode: str) -> Tensor:
    """`beit_tokens` from projected patches on."""
    own = tuple(vit.patch_embed.grid_size)
    positions = vit.pos_embed
    if positions is not None:
        positions = torch.cat([positions[:, :1], resample_grid(positions[:, 1:], own, grid, mode)], 1)
    same = (torch.scalar_tensor(grid[0]) == own[0]) & (torch.scalar_tensor(grid[1]) == own[1])
    rows, cols = (
        torch.where(same, _centered_identity(n, out), geometric_matrix(n, out))
        for n, out in zip(own, grid, strict=True)
    )

    def bias_of(table: Tensor) -> Tensor:
        wide = rearrange(table[:-3], "(y x) n -> n y x", y=2 * own[0] - 1)
        return relative_bias(table, rows.to(wide) @ wide @ cols.T.to(wide), grid)

    return beit_layers(vit, x, positions, bias_of)


def _centered_identity(n_in: int, n_out: int) -> Tensor:
    """The identity for equal sizes, in the shape of `geometric_matrix`."""
    out, own = torch.arange(2 * n_out - 1) - (n_out - 1), torch.arange(2 * n_in - 1) - (n_in - 1)
    return (out[:, None] == own).float()


def _sam_tokens(vit: Any, x: Tensor, grid: Grid, mode: str) -> Tensor:
    """`VisionTransformerSAM.forward_features` from projected patches on."""
    x = vit.patch_embed.norm(x.permute(0, 2, 3, 1))
    if vit.pos_embed is not None:
        own = (vit.pos_embed.shape[1], vit.pos_embed.shape[2])
        x = x + resample_grid(vit.pos_embed.flatten(1, 2), own, grid, mode).view(1, *grid, x.shape[-1])
    x = vit.neck(vit.blocks(vit.norm_pre(x)).permute(0, 3, 1, 2))
    return x.flatten(2).mT


_FORWARD: dict[type[nn.Module], Callable[[Any, Tensor, Grid, str], Tensor]] = {
    Beit: _beit_tokens,
    sam.VisionTransformerSAM: _sam_tokens,
}


class _SamBlock(nn.Module):
    """A layer of SAM's ViT at inference, with its windows and relative positions in terms of shapes."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block: Any = block

    def forward(self, x: Tensor) -> Tensor:
        """Compute timm's `Block.forward` for x (B, h, w, D)."""
        block = self.block
        y = block.norm1(x)
        y = self._in_windows(y, block.window_size) if block.window_size else _sam_attention(block.attn, y)
        x = x + block.ls1(y)
        out: Tensor = x + block.ls2(block.mlp(block.norm2(x)))
        return out

    def _in_windows(self, x: Tensor, side: int) -> Tensor:
        B, h, w, D = x.shape
        rows, cols = (h + side - 1) // side, (w + side - 1) // side
        # at least two along each axis, since views of one trace to a guard that there is one; runtimes lack max
        rows, cols = rows + 1 // rows, cols + 1 // cols
        x = F.pad(x, (0, 0, 0, cols * side - w, 0, rows * side - h))
        x = x.view(B, rows, side, cols, side, D).transpose(2, 3).clone(memory_format=COPY)
        x = x.view(B * rows * cols, side, side, D)
        x = _sam_attention(self.block.attn, x).view(B, rows, cols, side, side, D).transpose(2, 3)
        x = x.clone(memory_format=COPY).view(B, rows * side, cols * side, D)
        # not x[:, :h, :w], which traces to a guard that there is padding
        return x.index_select(1, torch.arange(h)).index_select(2, torch.arange(w))


def _sam_attention(attn: Any, x: Tensor) -> Tensor:
    """timm's `Attention.forward` of SAM at inference, for x (B, h, w, D)."""
    B, h, w, D = x.shape
    n, d = attn.num_heads, attn.head_dim
    q, k, v = attn.qkv(x).view(B, h * w, 3, n, d).permute(2, 0, 3, 1, 4).clone(memory_format=COPY).unbind(0)
    q, k, bias = attn.q_norm(q), attn.k_norm(k), None
    if attn.use_rel_pos:
        wide = q.view(B, n, h, w, d)
        down = wide @ _between(attn.rel_pos_h, h).mT
        right = (wide.transpose(2, 3) @ _between(attn.rel_pos_w, w).mT).transpose(2, 3)
        bias = (down[..., :, None] + right[..., None, :]).clone(memory_format=COPY).view(B, n, h * w, h * w)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    out: Tensor = attn.proj(joined_heads(mixed).view(B, h, w, D))
    return out


def _between(table: Tensor, size: int) -> Tensor:
    """Relative embeddings (size, size, d) along an axis, linearly resampled as in timm's `get_rel_pos`."""
    resampled = linear_matrix(table.shape[0], 2 * size - 1).to(table) @ table
    place = torch.arange(size, device=table.device)
    return resampled[place[:, None] - place + size - 1]


def rotations(rope: Any, grid: Grid) -> Tensor:
    """Sines and cosines (N, 2d) of timm's rotary embeddings; (depth, n, N, 2d) of learned frequencies.

    Raises:
        InputError: a kind of rotary embedding that is not written in terms of shapes.
    """
    if isinstance(rope, rotary.RotaryEmbeddingMixed):
        columns, rows = _coordinates(grid, rope.grid_indexing).unbind(1)
        angles = (
            columns[:, None] * rope.freqs[0].float()[..., None, :] + rows[:, None] * rope.freqs[1].float()[..., None, :]
        )
        return _sines(angles, half=False)
    if isinstance(rope, rotary.RotaryEmbeddingDinoV3) and rope.normalize_coords == "separate":
        places = _coordinates(grid, rope.grid_indexing) + 0.5 + rope.grid_offset
        sizes = torch.stack(
            [torch.scalar_tensor(side, dtype=torch.float32) for side in _ordered(grid, rope.grid_indexing)]
        )
        periods: Any = rope.periods
        angles = 2 * math.pi * (2 * places / sizes - 1)[:, :, None] / periods
        return _sines(angles.flatten(1), half=rope.rotate_half)
    if isinstance(rope, rotary.RotaryEmbeddingCat) and rope.grid_type == "index":
        places = _coordinates(grid, rope.grid_indexing) + rope.grid_offset
        if rope.ref_feat_shape is not None:
            own, wanted = (_ordered(pair, rope.grid_indexing) for pair in (grid, rope.ref_feat_shape))
            ratio = [r / torch.scalar_tensor(size, dtype=torch.float32) for size, r in zip(own, wanted, strict=True)]
            places = places * torch.stack(ratio)
        bands: Any = rope.bands
        return _sines((places[:, :, None] * bands).flatten(1), half=rope.rotate_half)
    raise InputError(
        f"export: rotary embeddings of type {type(rope).__name__} as this encoder has them are not supported"
    )


def _ordered(pair: Any, indexing: str) -> tuple[Any, Any]:
    return (pair[0], pair[1]) if indexing == "ij" else (pair[1], pair[0])


def _coordinates(grid: Grid, indexing: str) -> Tensor:
    """Integer coordinates (N, 2) of patches in row-major order: (row, column) for "ij", (column, row) for "xy"."""
    rows, cols = (torch.arange(side, dtype=torch.float32) for side in grid)
    both = (rows[:, None].expand(grid), cols[None].expand(grid))
    return torch.stack(_ordered(both, indexing), -1).flatten(0, 1)


def _sines(angles: Tensor, *, half: bool) -> Tensor:
    """Sines and cosines of angles (…, d/2), each laid out in pairs or in halves as timm applies them."""
    parts = angles.sin(), angles.cos()
    laid_out = [torch.cat([x, x], -1) if half else torch.stack([x, x], -1).flatten(-2) for x in parts]
    return torch.cat(laid_out, -1)


def _with_positions(vit: Any, patches: Tensor, grid: Grid, mode: str) -> Tensor:
    """Prepend prefix tokens to the patches (B, N, D) and add position embeddings, as timm's `_pos_embed` does."""
    tokens = (vit.cls_token, getattr(vit, "dist_token", None), getattr(vit, "reg_token", None))
    prefix = [token.expand(patches.shape[0], -1, -1) for token in tokens if token is not None]
    if vit.pos_embed is None:
        return torch.cat([*prefix, patches], 1)
    stated = 0 if vit.no_embed_class else vit.num_prefix_tokens
    size = tuple(vit.patch_embed.grid_size)
    own = vit.pos_embed[:, stated:]
    position = resample_grid(own, size, grid, mode)
    if mode != "antialias":  # the other tools skip resampling if h·w = N, whatever the grid's shape
        N, count = own.shape[1], grid[0] * grid[1]
        same = torch.scalar_tensor(count, dtype=torch.float32) == N
        position = torch.where(same, own[:, torch.arange(count).clamp(max=N - 1)], position)
    if vit.no_embed_class:
        return torch.cat([*prefix, patches + position], 1)
    return torch.cat([*prefix, patches], 1) + torch.cat([vit.pos_embed[:, :stated], position], 1)


def resample_grid(values: Tensor, size: Grid, grid: Grid, mode: str = "antialias") -> Tensor:
    """Resample values (1, N, D) on a grid of `size` to `grid`, in one of the modes of `ModelConfig.positions`.

    Resampling is linear and separable, so it is two products with small matrices, which depend on the two sizes only.
    Exporters lack the operation, or have one that differs.
    """
    matrix = {"antialias": antialiased_matrix, "bicubic": cubic_matrix, "bilinear": linear_matrix}[mode]
    rows, cols = (matrix(n, out).to(values.device) for n, out in zip(size, grid, strict=True))
    wide = values.float().reshape(size[0], size[1], values.shape[-1])
    down = torch.tensordot(rows, wide, dims=1)
    across = torch.matmul(cols, down)
    return across.flatten(0, 1)[None].to(values.dtype)


def antialiased_matrix(n_in: int, n_out: int) -> Tensor:
    """Weights (n_out, n_in) of antialiased bicubic resampling along one axis; the identity for equal sizes.

    Keys' kernel with a = -1/2, as in PIL and torch's antialiased mode, widened when downsampling. Weights outside the
    axis are dropped and each row is normalized to sum 1.
    """
    ratio, center = _centers(n_in, n_out)
    x = ((torch.arange(n_in, dtype=torch.float32) + 0.5 - center[:, None]) / ratio.clamp(min=1)).abs()
    weights = _keys(x, -0.5)
    return weights / weights.sum(1, keepdim=True)


def cubic_matrix(n_in: int, n_out: int) -> Tensor:
    """Weights (n_out, n_in) of `F.interpolate(mode="bicubic")`: Keys' kernel with a = -3/4, borders repeated."""
    _, center = _centers(n_in, n_out)
    x = (torch.arange(-2, n_in + 2, dtype=torch.float32) + 0.5 - center[:, None]).abs()
    weights = _keys(x, -0.75)
    inner = weights[:, 2 : n_in + 2]
    first, last = weights[:, :2].sum(1, keepdim=True), weights[:, n_in + 2 :].sum(1, keepdim=True)
    places = torch.arange(n_in)
    return inner + first * (places == 0) + last * (places == n_in - 1)


def linear_matrix(n_in: int, n_out: int) -> Tensor:
    """Weights (n_out, n_in) of `F.interpolate(mode="bilinear")` along one axis."""
    _, center = _centers(n_in, n_out)
    inside = center.clamp(0.5, n_in - 0.5)
    return (1 - (torch.arange(n_in, dtype=torch.float32) + 0.5 - inside[:, None]).abs()).clamp(min=0)


def _centers(n_in: int, n_out: int) -> tuple[Tensor, Tensor]:
    """Input pixels per output pixel, and the output centers in input pixels."""
    ratio = n_in / torch.scalar_tensor(n_out, dtype=torch.float32)
    return ratio, (torch.arange(n_out, dtype=torch.float32) + 0.5) * ratio


def _keys(x: Tensor, a: float) -> Tensor:
    """Keys' cubic kernel (1981) at distances `x`."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
