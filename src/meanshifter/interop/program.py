"""A model as one program of tensors, for any batch and image size, that exporters can follow.

Two things in the encoder depend on the size in ways that exporters fix at the example's: padding to whole patches,
which timm's patch embedding checks, and resampling the position embeddings. Both are written here in terms of shapes.
Glossary: B batch, K classes, H W pixels, h w patch grid, P patch size, D token width, N tokens.
"""

from __future__ import annotations

import warnings
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from meanshifter.model.affinity import Grid
from meanshifter.model.encoder import Encoder
from meanshifter.model.segmenter import Segmenter


class PatchLogits(nn.Module):
    """Normalised images (B, 3, H, W) to patch logits (B, K, h, w), after a fixed number of mean shift steps."""

    def __init__(self, model: Segmenter, layers: int) -> None:
        super().__init__()
        self.model = deepcopy(model).cpu().eval()
        self.model.encoder = _SizedEncoder(self.model.encoder)
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        """`Segmenter.forward` up to rounding; of a fine grid also the cells that hold padding."""
        (H, W), P = images.shape[-2:], self.model.patch_size
        padded = F.pad(images, (0, (W + P - 1) // P * P - W, 0, (H + P - 1) // P * P - H))
        return self.model.logits_at(padded, [self.layers])[0].float()


def exported(module: nn.Module, example: Tensor, *, side: int, rows: int = 2) -> ExportedProgram:
    """The program of `module`, whose one argument `images` has any batch, height (axis `rows`) and width (the next).

    `torch.export` proves its shapes from two patches a side on: `side` is the least height and width. Dimensions are
    hinted as dynamic, not named: guards that it cannot solve become assertions of the program then, instead of errors.
    """
    least = {0: 1, rows: side, rows + 1: side}
    sizes = {axis: Dim.DYNAMIC(min=size) for axis, size in least.items()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        return torch.export.export(
            module.eval(),
            (example,),
            dynamic_shapes={"images": sizes},
            prefer_deferred_runtime_asserts_over_guards=True,
        )


class _SizedEncoder(Encoder):
    """What timm's `VisionTransformer.forward_features` does with images of whole patches, by their shapes alone."""

    def __init__(self, encoder: Encoder) -> None:
        nn.Module.__init__(self)
        self.vit, self.patch_size, self.width = encoder.vit, encoder.patch_size, encoder.width
        self.positions = encoder.positions

    def forward(self, images: Tensor) -> tuple[Tensor, Grid]:
        vit = self.vit
        x = vit.patch_embed.proj(images)
        grid = (x.shape[-2], x.shape[-1])
        x = self._embed_positions(vit.patch_embed.norm(x.flatten(2).mT), grid)
        x = vit.norm(vit.blocks(vit.norm_pre(x)))
        return x[:, vit.num_prefix_tokens :], grid

    def _embed_positions(self, patches: Tensor, grid: Grid) -> Tensor:
        """Prefix tokens before the patches (B, N, D), position embeddings on both as timm's `_pos_embed` adds them."""
        vit = self.vit
        tokens = (vit.cls_token, getattr(vit, "dist_token", None), vit.reg_token)
        prefix = [token.expand(patches.shape[0], -1, -1) for token in tokens if token is not None]
        if vit.pos_embed is None:
            return torch.cat([*prefix, patches], 1)
        stated = 0 if vit.no_embed_class else vit.num_prefix_tokens
        size = tuple(vit.patch_embed.grid_size)
        own = vit.pos_embed[:, stated:]
        position = resample_grid(own, size, grid, self.positions)
        if self.positions != "antialias":  # of tools that compare numbers of patches, not their shapes
            position = _as_it_is_where_as_many(own, position, grid)
        if vit.no_embed_class:
            return torch.cat([*prefix, patches + position], 1)
        return torch.cat([*prefix, patches], 1) + torch.cat([vit.pos_embed[:, :stated], position], 1)


def _as_it_is_where_as_many(own: Tensor, resampled: Tensor, grid: Grid) -> Tensor:
    """`own` (1, N, D) in place of `resampled` (1, h·w, D) where N = h·w, as `Encoder` has it; the program decides."""
    N, count = own.shape[1], grid[0] * grid[1]
    same = torch.scalar_tensor(count, dtype=torch.float32) == N
    return torch.where(same, own[:, torch.arange(count).clamp(max=N - 1)], resampled)


def resample_grid(values: Tensor, size: Grid, grid: Grid, mode: str = "antialias") -> Tensor:
    """Values (1, N, D) on a grid of `size` resampled to `grid`, as `ModelConfig.positions` says.

    Resampling is linear and separable, so two small matrices do it, whose entries follow from the two sizes: exporters
    have no operation of their own for it, or one that differs.
    """
    matrix = {"antialias": antialiased_matrix, "bicubic": cubic_matrix, "bilinear": linear_matrix}[mode]
    rows, cols = (matrix(n, out).to(values.device) for n, out in zip(size, grid, strict=True))
    wide = values.float().reshape(size[0], size[1], values.shape[-1])
    down = torch.tensordot(rows, wide, dims=1)
    across = torch.matmul(cols, down)
    return across.flatten(0, 1)[None].to(values.dtype)


def antialiased_matrix(n_in: int, n_out: int) -> Tensor:
    """The weights (n_out, n_in) of antialiased bicubic resampling along one axis; the identity for equal sizes.

    Keys' kernel with a = -1/2, as PIL and torch's antialiased mode have it, stretched where the axis shrinks; weights
    outside the axis are dropped and each row is divided by its sum.
    """
    ratio, center = _centers(n_in, n_out)
    x = ((torch.arange(n_in, dtype=torch.float32) + 0.5 - center[:, None]) / ratio.clamp(min=1)).abs()
    weights = _keys(x, -0.5)
    return weights / weights.sum(1, keepdim=True)


def cubic_matrix(n_in: int, n_out: int) -> Tensor:
    """The weights (n_out, n_in) of `F.interpolate(mode="bicubic")`: Keys' kernel with a = -3/4, the border repeated."""
    _, center = _centers(n_in, n_out)
    x = (torch.arange(-2, n_in + 2, dtype=torch.float32) + 0.5 - center[:, None]).abs()
    weights = _keys(x, -0.75)
    inner = weights[:, 2 : n_in + 2]
    first, last = weights[:, :2].sum(1, keepdim=True), weights[:, n_in + 2 :].sum(1, keepdim=True)
    places = torch.arange(n_in)
    return inner + first * (places == 0) + last * (places == n_in - 1)


def linear_matrix(n_in: int, n_out: int) -> Tensor:
    """The weights (n_out, n_in) of `F.interpolate(mode="bilinear")` along one axis."""
    _, center = _centers(n_in, n_out)
    inside = center.clamp(0.5, n_in - 0.5)
    return (1 - (torch.arange(n_in, dtype=torch.float32) + 0.5 - inside[:, None]).abs()).clamp(min=0)


def _centers(n_in: int, n_out: int) -> tuple[Tensor, Tensor]:
    """Pixels of the input for one of the output, and where the centres of the output lie among them."""
    ratio = n_in / torch.scalar_tensor(n_out, dtype=torch.float32)
    return ratio, (torch.arange(n_out, dtype=torch.float32) + 0.5) * ratio


def _keys(x: Tensor, a: float) -> Tensor:
    """Keys' cubic kernel (1981) at distances x."""
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))
