"""The mean shift block: tokens move towards the modes of their own density.

Source: the thesis that introduced MeanShifter (University of Crete, 2022). Each step, from the current z:
R = z E_r, S = softmax(R Rᵀ / sqrt(d_ms)) row by row, z ← S z. There is no residual, no normalization and no
projection of the values. `MeanShiftConfig` describes the variants. Exponents that are not scalar products become ones
with a few more channels, so that every kernel is a single fused attention call; terms that depend on the query alone
cancel in the softmax over keys.

Glossary: B batch, N tokens (queries), M keys, D token width, C = `channels` = d_ms, L = `layers`, h w the grid of the
tokens, σ in patches.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from meanshifter.errors import InputError
from meanshifter.model.config import MOST_STEPS, MeanShiftConfig

Grid = tuple[int, int]


def key_and_query_channels(
    r: Float[Tensor, "B N C"],
    s: Float[Tensor, "B M C"],
    *,
    kernel: str,
    spatial: float | None,
    grid: Grid | None,
    scale: float,
) -> tuple[Float[Tensor, "B N Q"], Float[Tensor, "B M Q"]]:
    """Return queries and keys whose products times `scale` are the kernel's exponents, up to a term in the query.

    dot: r_i·s_j, as in the thesis. gaussian: -‖r_i - s_j‖²/2 without its term in r_i, by one key channel -‖s_j‖²/2.
    spatial: plus -‖p_i - p_j‖²/2σ², by two channels p/σ and a term in that key channel (the joint domain of
    Comaniciu & Meer, PAMI 2002, section 4).
    """
    if kernel == "dot" and spatial is None:
        return r, s
    queries, keys = r, s
    bias = s.new_zeros(*s.shape[:-1], 1)
    if kernel == "gaussian":
        middle = s.mean(1, keepdim=True)  # centering keeps distances, and keeps squares small
        queries, keys = r - middle, s - middle
        bias = -0.5 * keys.square().sum(-1, keepdim=True)
    if spatial is not None:
        p = _places(grid, s) / (spatial * math.sqrt(scale))
        p = p.expand(s.shape[0], -1, -1)
        queries, keys = torch.cat([queries, p], -1), torch.cat([keys, p], -1)
        bias = bias - 0.5 * p.square().sum(-1, keepdim=True)
    return torch.cat([queries, torch.ones_like(queries[..., :1])], -1), torch.cat([keys, bias], -1)


def _places(grid: Grid | None, like: Tensor) -> Float[Tensor, "M 2"]:
    """Row and column of each token, from the middle of the grid."""
    if grid is None or math.prod(grid) != like.shape[1]:
        raise InputError(f"grid: {grid}; spatial_sigma needs the rows and columns of the {like.shape[1]} tokens")
    h, w = (torch.arange(1 - n, n, 2, device=like.device, dtype=like.dtype) / 2 for n in grid)
    return torch.cartesian_prod(h, w)


def effective_neighbors(weights: Float[Tensor, "*rows M"]) -> Float[Tensor, "*rows"]:
    """Return exp of the entropy of each row of S, the effective number of tokens in a mean."""
    entropy: Tensor = torch.special.entr(weights).sum(-1)
    return entropy.exp()


class MeanShift(nn.Module):
    """`layers` mean shift steps that share one linear layer E_r (width → channels, with bias)."""

    def __init__(self, width: int, config: MeanShiftConfig | None = None) -> None:
        super().__init__()
        self.config = MeanShiftConfig() if config is None else config
        self.layers = self.config.layers
        self.channels = width if self.config.channels is None else self.config.channels
        self.project = nn.Linear(width, self.channels)
        nn.init.trunc_normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)
        self.residual_readout: nn.Linear | None = None
        if self.config.residual_readout:
            self.residual_readout = nn.Linear(width, width, bias=False)
            nn.init.zeros_(self.residual_readout.weight)

    def forward(
        self, tokens: Float[Tensor, "B N D"], layers: int | None = None, grid: Grid | None = None
    ) -> Float[Tensor, "B N D"]:
        """Return the decoder's input after `layers` steps (None: the trained number; 0: the tokens unchanged).

        No N × N matrix is stored. `grid` (h, w) is required with `spatial_sigma`.
        """
        wanted = self.layers if layers is None else layers
        return self.readouts(tokens, [wanted], grid)[wanted]

    def readouts(
        self, tokens: Float[Tensor, "B N D"], wanted: Collection[int], grid: Grid | None = None
    ) -> dict[int, Float[Tensor, "B N D"]]:
        """Return the decoder's input after each number of steps in `wanted`."""
        states = enumerate(self.states(tokens, max(wanted), grid))
        return {n: self._read(tokens, z) for n, z in states if n in wanted}

    def _read(self, tokens: Tensor, z: Tensor) -> Tensor:
        return z if self.residual_readout is None or z is tokens else tokens + self.residual_readout(_shift(tokens, z))

    def states(
        self, tokens: Float[Tensor, "B N D"], layers: int, grid: Grid | None = None
    ) -> Iterator[Float[Tensor, "B N D"]]:
        """Yield the tokens after 0, 1, …, `layers` steps."""
        z, fixed = tokens, None
        yield z
        for _ in range(check_layers(layers, "layers")):
            with self._precision(tokens) as dtype:
                start = tokens.to(dtype)
                z = start if z is tokens else z
                if fixed is None and not self.config.blurring:
                    fixed = self.project(start)  # fixed reference points have fixed keys
                z = self._step(z, start, grid, fixed)
            yield z

    @contextmanager
    def _precision(self, tokens: Tensor) -> Iterator[torch.dtype]:
        """The data type of a step: squared distances need the precision of the weights."""
        if self.config.kernel == "dot" and self.config.spatial_sigma is None:
            yield tokens.dtype
        else:
            device = tokens.device.type
            cast = not tokens.is_meta and torch.is_autocast_enabled(device)  # if needed only: exporters cannot trace it
            with torch.autocast(device, enabled=False) if cast else nullcontext():
                yield self.project.weight.dtype

    def _step(self, z: Tensor, start: Tensor, grid: Grid | None, fixed: Tensor | None) -> Tensor:
        """One step from `z`; `fixed` is the projected `start` if reference points are fixed."""
        mean = self.mean(z, z if self.config.blurring else start, grid, fixed)
        return mean if self.config.step_size == 1 else z + self.config.step_size * (mean - z)

    def mean(
        self,
        z: Float[Tensor, "B N D"],
        data: Float[Tensor, "B M D"],
        grid: Grid | None = None,
        projected: Float[Tensor, "B M C"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Return the kernel-weighted mean of `data` around each token of `z`; `projected` is `data` times E_r.

        On the CPU, fused attention avoids the N × N matrix only if queries and values have the same width, and
        silently builds it otherwise. So the narrower of the two is padded with zero channels, which change neither
        scores nor mean; the scale is that of the unpadded channels.
        """
        q, k = self._queries_and_keys(z, data, grid, projected)
        D = data.shape[-1]
        shared = _round_up(max(q.shape[-1], D), 8)
        q, k, v = (F.pad(part, (0, shared - part.shape[-1])).unsqueeze(1) for part in (q, k, data.to(q.dtype)))
        mean: Tensor = F.scaled_dot_product_attention(q, k, v, scale=self.scale).squeeze(1).narrow(-1, 0, D)
        return mean

    @property
    def scale(self) -> float:
        """1 / sqrt(d_ms), the factor on products of queries and keys; for the Gaussian kernel, 1 / h²."""
        return 1 / math.sqrt(self.channels)

    def weights(
        self,
        tokens: Float[Tensor, "B N D"],
        grid: Grid | None = None,
        start: Float[Tensor, "B N D"] | None = None,
        rows: slice = slice(None),
    ) -> Float[Tensor, "B R N"]:
        """Return S of one step from `tokens`, or some of its rows, for analysis.

        Rows sum to 1, and S is not symmetric. `start` are the tokens before the first step, which fixed reference
        points are.
        """
        data = tokens if start is None or self.config.blurring else start
        q, k = self._queries_and_keys(tokens, data, grid)
        return (q[:, rows] @ k.mT * self.scale).softmax(-1)

    def trajectory(
        self, tokens: Float[Tensor, "B N D"], layers: int | None = None, grid: Grid | None = None
    ) -> Float[Tensor, "steps B N D"]:
        """Return the tokens after 0, 1, …, `layers` steps (None: the trained number): (layers + 1, B, N, D)."""
        states = list(self.states(tokens, self.layers if layers is None else layers, grid))
        return torch.stack([state.to(states[-1].dtype) for state in states])

    @torch.no_grad()
    def calibrate(self, tokens: Float[Tensor, "B N D"], grid: Grid | None = None) -> None:
        """Scale E_r so that tokens average over `config.init_neighbors` others, measured on about 64 tokens per image.

        Raises:
            InputError: no bandwidth gives that number.
        """
        wanted = self.config.init_neighbors
        if wanted is None:
            return
        initial = [parameter.clone() for parameter in self.project.parameters()]

        def count(exponent: float) -> float:
            for parameter, unscaled in zip(self.project.parameters(), initial, strict=True):
                parameter.copy_(unscaled * 10**exponent)
            q, k = self._queries_and_keys(tokens, tokens, grid)
            rows = q[:, :: max(1, q.shape[1] // 64)]
            return effective_neighbors((rows @ k.mT * self.scale).softmax(-1)).mean().item()

        narrow, wide = 4.0, -3.0
        if not count(narrow) <= wanted <= count(wide):
            raise InputError(
                f"mean_shift.init_neighbors: {wanted:g}; these tokens allow {count(narrow):.1f} to {count(wide):.1f}"
            )
        for _ in range(40):
            middle = (narrow + wide) / 2
            narrow, wide = (middle, wide) if count(middle) <= wanted else (narrow, middle)
        count(narrow)

    def _queries_and_keys(
        self, z: Tensor, data: Tensor, grid: Grid | None, projected: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        r: Tensor = self.project(data) if projected is None else projected
        return key_and_query_channels(
            r if z is data else self.project(z),
            r,
            kernel=self.config.kernel,
            spatial=self.config.spatial_sigma,
            grid=grid,
            scale=self.scale,
        )


def _shift(start: Tensor, z: Tensor) -> Tensor:
    """z - start, scaled per image to the root mean square deviation of `start` from its mean token.

    The factor is at most 100: without a bound, tokens that do not move would have infinite gradients.
    """
    shift, spread = z - start, start - start.mean(1, keepdim=True)
    exact = torch.promote_types(shift.dtype, torch.float32)
    way, target = (x.to(exact).square().mean((1, 2), keepdim=True) for x in (shift, spread))
    return shift * (target / way.maximum(1e-4 * target).clamp(min=torch.finfo(way.dtype).tiny)).sqrt().to(shift.dtype)


def check_layers(layers: int, name: str) -> int:
    """Return `layers` as an int if it is a valid number of mean shift steps."""
    if not 0 <= layers <= MOST_STEPS or int(layers) != layers:
        raise InputError(f"{name}: {layers}; expected an integer from 0 to {MOST_STEPS}")
    return int(layers)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
