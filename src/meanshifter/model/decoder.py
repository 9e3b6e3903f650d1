"""Decoders from tokens on a grid to class logits per patch.

Source: Strudel et al., Segmenter: Transformer for Semantic Segmentation, ICCV 2021, section 3.2.
Glossary: B batch, K classes, N = h·w tokens, M = N + K, D token width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from meanshifter.errors import InputError
from meanshifter.model.vit import Block, Grid


class LinearDecoder(nn.Module):
    """One point-wise linear layer from token to class logits (section 3.2, "linear baseline")."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Float[Tensor, "B N D"], grid: Grid) -> Float[Tensor, "B K h w"]:
        """Compute logits per patch on the grid (h, w)."""
        logits: Tensor = rearrange(self.head(tokens), "b (h w) k -> b k h w", h=grid[0])
        return logits


class MaskTransformer(nn.Module):
    """Patch tokens and one learnable embedding per class through pre-norm transformer layers.

    The logits are the scalar products of L2-normalized patch and class features, followed by a layer norm over
    classes (section 3.2, "mask transformer", equation 5, and the published implementation for the normalizations).
    """

    def __init__(self, width: int, num_classes: int, layers: int = 2, heads: int | None = None) -> None:
        super().__init__()
        heads = max(width // 64, 1) if heads is None else heads
        if layers < 0:
            raise InputError(f"decoder_layers: {layers}; it must be at least 0")
        if width % heads:
            raise InputError(f"decoder: width {width} cannot be split into {heads} heads; choose a divisor")
        self.project = nn.Linear(width, width)
        self.class_embeddings = nn.Parameter(torch.empty(1, num_classes, width))
        self.blocks = nn.ModuleList(Block(width, heads, norm_eps=1e-5) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.patch_projection = nn.Linear(width, width, bias=False)
        self.class_projection = nn.Linear(width, width, bias=False)
        self.mask_norm = nn.LayerNorm(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.trunc_normal_(self.class_embeddings, std=0.02)
        nn.init.normal_(self.patch_projection.weight, std=width**-0.5)
        nn.init.normal_(self.class_projection.weight, std=width**-0.5)

    def forward(self, tokens: Float[Tensor, "B N D"], grid: Grid) -> Float[Tensor, "B K h w"]:
        """Compute logits per patch on the grid (h, w)."""
        return self.masks(self.features(self.attend(self.join(tokens))), grid)

    def join(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B M D"]:
        """Project the N patch tokens and append the K class embeddings."""
        embeddings = repeat(self.class_embeddings, "1 k d -> b k d", b=tokens.shape[0])
        return torch.cat([self.project(tokens), embeddings], dim=1)

    def attend(self, both: Float[Tensor, "B M D"]) -> Float[Tensor, "B M D"]:
        """Pass patches and classes through the transformer layers and the final norm."""
        for block in self.blocks:
            both = block(both)
        normed: Tensor = self.norm(both)
        return normed

    def features(self, both: Float[Tensor, "B M D"]) -> Float[Tensor, "B M D"]:
        """Project patches and classes, each by its own layer, to unit vectors, whose scalar products are the masks."""
        K = self.class_embeddings.shape[1]
        projected = torch.cat([self.patch_projection(both[:, :-K]), self.class_projection(both[:, -K:])], dim=1)
        return F.normalize(projected, dim=-1)

    def masks(self, features: Float[Tensor, "B M D"], grid: Grid) -> Float[Tensor, "B K h w"]:
        """Compute logits on the grid (h, w): scalar products of patches and classes, and a norm over classes."""
        K = self.class_embeddings.shape[1]
        masks = self.mask_norm(features[:, :-K] @ features[:, -K:].mT)
        logits: Tensor = rearrange(masks, "b (h w) k -> b k h w", h=grid[0])
        return logits
