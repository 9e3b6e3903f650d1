"""Mean shift from pixels: cells between the patches move towards the modes of the patches' density.

A plain ViT makes one decision per patch, and bilinear upsampling cannot know where an edge runs inside it. Here every
cell of a grid `factor` times finer starts from features of its own pixels and takes mean shift steps over the nine
patches around it, in the joint domain of position and range (Comaniciu & Meer, PAMI 2002, section 4), with the patches
as fixed reference points. Its logits are the mean of theirs under the weights of the last step. There is no N × N
matrix.

With f_x the features of cell x, r_x = f_x at first, r_j = E z_j + (mean of f_x over the cells of patch j) those of
patch j, b_xj initialized to -‖p_x - p_j‖²/2σ², and α = `anchor`:
w_xj ∝ exp(r_x·r_j / √C + b_xj),  r_x ← α f_x + (1 - α) Σ_j w_xj r_j.
With α = 0 cells converge to the modes of the patches and forget the edge that they lie at. With α > 0 they converge to
points between the modes and themselves, so that more steps change little; α is also what a restart is in APPNP
(Gasteiger et al., ICLR 2019, equation 4).
Glossary: B batch, N = h·w patches, D token width, K classes, C = `channels`, s = `factor`, P patch size.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from meanshifter.model.config import PixelShiftConfig
from meanshifter.model.mean_shift import Grid


class PixelShift(nn.Module):
    """`layers` mean shift steps of cells of P/s pixels, over the 3 × 3 patches around each."""

    def __init__(self, width: int, patch_size: int, config: PixelShiftConfig) -> None:
        super().__init__()
        self.layers, self.factor, self.anchor = config.layers, config.factor_for(patch_size), config.anchor
        C, side = config.channels, patch_size // self.factor
        self.odd = side % 2  # an odd window around a cell cannot be centered: it has one more pixel after the cell
        self.pixel_features = nn.Sequential(
            nn.Conv2d(3, C, 2 * side, side, padding=side // 2),
            nn.GELU(),
            nn.Conv2d(C, C, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(C, C, 3, padding=1),
        )
        self.project = nn.Linear(width, C)
        self.bias = nn.Parameter(-_square_distances(self.factor) / (2 * config.spatial_sigma**2))

    def readouts(
        self,
        images: Float[Tensor, "B 3 H W"],
        tokens: Float[Tensor, "B N D"],
        grid: Grid,
        logits: Float[Tensor, "B K h w"],
        wanted: Collection[int],
    ) -> dict[int, Float[Tensor, "B K fine_h fine_w"]]:
        """Compute the cells' logits after each number of steps in `wanted`; for 0, upsample those of the patches."""
        found, s = {}, self.factor
        if 0 in wanted:
            found[0] = F.interpolate(logits.to(self.bias.dtype), scale_factor=float(s), mode="bilinear")
        features = self.pixel_features(F.pad(images, (0, 1, 0, 1)) if self.odd else images)
        own = r = rearrange(features, "b c (h i) (w j) -> b c i j h w", i=s, j=s)
        keys = _around(rearrange(self.project(tokens), "b (h w) c -> b c h w", h=grid[0]) + F.avg_pool2d(features, s))
        values = _around(logits)
        last = max(wanted)
        for step in range(1, last + 1):
            scores = torch.einsum("b c i j h w, b n c h w -> b n i j h w", r, keys) * keys.shape[2] ** -0.5
            weights = (scores.to(self.bias.dtype) + self.bias[..., None, None]).softmax(1)
            if step in wanted:
                cells = torch.einsum("b n i j h w, b n k h w -> b k i j h w", weights.to(values.dtype), values)
                found[step] = rearrange(cells, "b k i j h w -> b k (h i) (w j)")
            if step < last:
                mean = torch.einsum("b n i j h w, b n c h w -> b c i j h w", weights.to(keys.dtype), keys)
                r = self.anchor * own + (1 - self.anchor) * mean
        return found


def _around(x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 9 C h w"]:
    """The 3 × 3 neighbors of each patch, with the border repeated."""
    h, w = x.shape[-2:]
    # no F.pad: torch.compile has wrong strides for its gradient if x is channels-last (torch 2.14)
    wide = torch.cat([x[..., :1], x, x[..., -1:]], -1)
    padded = torch.cat([wide[..., :1, :], wide, wide[..., -1:, :]], -2)
    return torch.stack([padded[..., i : i + h, j : j + w] for i in range(3) for j in range(3)], 1)


def _square_distances(s: int) -> Float[Tensor, "9 s s"]:
    """Squared distances, in patches, from the 3 × 3 patches around a patch to its s × s cells."""
    cells, patches = (torch.arange(s) + 0.5) / s - 0.5, torch.arange(-1.0, 2.0)
    along = (cells - patches[:, None]).square()
    return (along[:, None, :, None] + along[None, :, None, :]).flatten(0, 1)
