"""Token merging: layers after the first few see the most uniform 2×2 windows of patches as one token each.

Finer patches resolve edges, and cost the same everywhere, though most of an image is sky, road or wall. After the
first layers, the windows whose tokens are most alike become their mean; the remaining layers see fewer tokens; and at
the end every token of a merged window gets what its mean gained:

z_i ← z_i + (layers(m)_w - m_w) with m_w = mean of z_j over window w, for i in w.

So what the tokens of a window differed by stays on the residual stream. A fixed share of the windows is merged, since
images of a batch need equal numbers of tokens, and exports known ones. The rule (windows of 2×2, cosine similarity) is
that of the first stage of Norouzi et al., Adaptive Local-then-Global Token Merging, CVPR 2024, section 3.2; it merges
above a threshold, and gives all tokens of a window the same value at the end.

Glossary: B batch, D token width, N = h·w patches, W = ⌈h/2⌉·⌈w/2⌉ windows, S of them merged, M merged and other tokens,
d width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from meanshifter.model.config import TokenMergingConfig
from meanshifter.model.vit import Grid


class MergedTokens:
    """The tokens of a batch of images with their most uniform windows merged, and the way back."""

    tokens: Float[Tensor, "B M D"]
    """The prefix, the means of the merged windows, and the tokens of the others, window by window."""

    def __init__(self, x: Float[Tensor, "B K D"], grid: Grid, *, prefix: int, config: TokenMergingConfig) -> None:
        """Merge windows of tokens.

        Args:
            x: `prefix` tokens, such as the class token, followed by those of the patches in row-major order.
            grid: (h, w); the last row or column of an odd grid forms windows with a copy of itself.
            prefix: number of tokens that are never merged.
            config: how many of the windows are merged.
        """
        self._places, self._back = _places(grid, x.device)
        B, W, D = x.shape[0], self._places.shape[0], x.shape[2]
        self._shape, self._prefix = (B, W, D), prefix
        windows = x[:, prefix:].index_select(1, self._places.flatten()).view(B, W, 4, D)
        means = windows.mean(2)
        self._order = uniformity(windows, means).argsort(1, descending=True)
        S = config.merged(W)
        self._merged, self._kept = self._order[:, :S], self._order[:, S:]
        self._means, self._own = _take(means, self._merged), _take(windows.flatten(2), self._merged)
        rest = _take(windows.flatten(2), self._kept)
        self.tokens = torch.cat([x[:, :prefix], self._means, rest.view(B, (W - S) * 4, D)], 1)

    def restored(self, out: Float[Tensor, "B M D"]) -> Float[Tensor, "B K D"]:
        """All tokens, given those that residual layers made of `tokens`."""
        (B, W, D), S, prefix = self._shape, self._merged.shape[1], self._prefix
        gained = out[:, prefix : prefix + S] - self._means
        own = self._own + gained.repeat(1, 1, 4)
        both = torch.cat([own, out[:, prefix + S :].reshape(B, W - S, 4 * D)], 1)
        tokens = _take(both, self._order.argsort(1)).view(B, W * 4, D).index_select(1, self._back)
        return torch.cat([out[:, :prefix], tokens], 1)

    def rotations(self, rope: Float[Tensor, "*heads N two_d"]) -> Float[Tensor, "B heads M_without_prefix two_d"]:
        """Rotary embeddings of `tokens`, from sines and cosines of all patches; heads = 1 if all heads share them.

        A merged window is turned by the angle of its middle: the mean of four points of the unit circle, normalized.
        """
        (B, W, _), S = self._shape, self._merged.shape[1]
        rope = rope if rope.ndim == 3 else rope[None]
        heads, wide = rope.shape[0], rope.shape[-1]
        windows = rope.index_select(1, self._places.flatten()).view(heads, W, 4, wide)
        sine, cosine = windows.mean(2).chunk(2, -1)
        middle = torch.cat([sine, cosine], -1) / torch.hypot(sine, cosine).repeat(1, 1, 2)
        merged = middle.index_select(1, self._merged.flatten()).view(heads, B, S, wide)
        kept = windows.index_select(1, self._kept.flatten()).view(heads, B, (W - S) * 4, wide)
        return torch.cat([merged, kept], 2).transpose(0, 1)


def uniformity(windows: Float[Tensor, "B W 4 D"], means: Float[Tensor, "B W D"]) -> Float[Tensor, "B W"]:
    """Mean cosine of the tokens of each window and their mean, 1 for equal tokens."""
    return F.cosine_similarity(windows, means[:, :, None], dim=-1).mean(-1)


def _places(grid: Grid, device: torch.device) -> tuple[Int[Tensor, "W 4"], Int[Tensor, " N"]]:
    """The patches of each window, and of each patch its place among all those."""
    (h, w), two = grid, torch.arange(2, device=device)
    rows, cols = (2 * torch.arange((side + 1) // 2, device=device)[:, None] + two for side in grid)
    rows, cols = rows.clamp(max=h - 1), cols.clamp(max=w - 1)
    places = rows[:, None, :, None] * w + cols[None, :, None, :]
    y, x = torch.arange(h, device=device)[:, None], torch.arange(w, device=device)
    back = (y // 2 * ((w + 1) // 2) + x // 2) * 4 + y % 2 * 2 + x % 2
    return places.view(((h + 1) // 2) * ((w + 1) // 2), 4), back.flatten()


def _take(values: Float[Tensor, "B W C"], places: Int[Tensor, "B S"]) -> Float[Tensor, "B S C"]:
    """The rows of each image at its places."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[-1]))
