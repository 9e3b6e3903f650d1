"""The mean shift block: moves tokens towards the modes of their own density.

Source: the thesis that introduced MeanShifter (University of Crete, 2022). Each step, from the current z:
R = z E_r, S = softmax(R Rᵀ / sqrt(d_ms)) row by row, z ← S z. There is no residual, no normalisation and no
projection of the values. That is what a block does unless told otherwise; the other settings are of `MeanShiftConfig`.
Glossary: B batch, N tokens, D token width, C = `channels` = d_ms, L = `layers`, h w the grid of the tokens.
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
from meanshifter.model.affinity import Grid, effective_neighbors, key_and_query_channels
from meanshifter.model.config import MOST_STEPS, MeanShiftConfig


class MeanShift(nn.Module):
    """`layers` steps of mean shift with one linear layer E_r (width → channels, with bias) shared by all."""

    def __init__(self, width: int, config: MeanShiftConfig | None = None) -> None:
        super().__init__()
        self.config = MeanShiftConfig() if config is None else config
        self.layers = self.config.layers
        self.channels = width if self.config.channels is None else self.config.channels
        self.project = nn.Linear(width, self.channels)
        nn.init.trunc_normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)
        self.beside: nn.Linear | None = None
        if self.config.beside:
            self.beside = nn.Linear(width, width, bias=False)
            nn.init.zeros_(self.beside.weight)

    def forward(
        self, tokens: Float[Tensor, "B N D"], layers: int | None = None, grid: Grid | None = None
    ) -> Float[Tensor, "B N D"]:
        """What the decoder reads after `layers` steps (None: the trained number; 0: the tokens as they are).

        Holds no N × N matrix. `grid` (h, w) is needed with a spatial bandwidth.
        """
        wanted = self.layers if layers is None else layers
        return self.readouts(tokens, [wanted], grid)[wanted]

    def readouts(
        self, tokens: Float[Tensor, "B N D"], wanted: Collection[int], grid: Grid | None = None
    ) -> dict[int, Float[Tensor, "B N D"]]:
        """What the decoder reads after each number of steps in `wanted`."""
        states = enumerate(self.states(tokens, max(wanted), grid))
        return {n: self._read(tokens, z) for n, z in states if n in wanted}

    def _read(self, tokens: Tensor, z: Tensor) -> Tensor:
        return z if self.beside is None or z is tokens else tokens + self.beside(_shift(tokens, z))

    def states(
        self, tokens: Float[Tensor, "B N D"], layers: int, grid: Grid | None = None
    ) -> Iterator[Float[Tensor, "B N D"]]:
        """The tokens after 0, 1, …, `layers` steps."""
        z, fixed = tokens, None
        yield z
        for _ in range(check_layers(layers, "layers")):
            with self._precision(tokens) as dtype:
                start = tokens.to(dtype)
                z = start if z is tokens else z
                if fixed is None and not self.config.blurring:
                    fixed = self.project(start)  # where the data stand still, so do their keys
                z = self._step(z, start, grid, fixed)
            yield z

    @contextmanager
    def _precision(self, tokens: Tensor) -> Iterator[torch.dtype]:
        """What one step is computed in: squared distances need the precision of the weights."""
        if self.config.kernel == "dot" and self.config.spatial is None:
            yield tokens.dtype
        else:
            device = tokens.device.type
            cast = not tokens.is_meta and torch.is_autocast_enabled(device)  # asked, as exporters follow no autocast
            with torch.autocast(device, enabled=False) if cast else nullcontext():
                yield self.project.weight.dtype

    def _step(self, z: Tensor, start: Tensor, grid: Grid | None, fixed: Tensor | None) -> Tensor:
        """One step from `z`, which came from `start`; `fixed`: the projected start, if the data stand still."""
        mean = self.mean(z, z if self.config.blurring else start, grid, fixed)
        moved = mean if self.config.step_size == 1 else z + self.config.step_size * (mean - z)
        return _with_spread_of(start, moved) if self.config.restore else moved

    def mean(
        self,
        z: Float[Tensor, "B N D"],
        data: Float[Tensor, "B M D"],
        grid: Grid | None = None,
        projected: Float[Tensor, "B M C"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """The mean of `data` around each token of `z`, weighted by the kernel; `projected`: the data times E_r.

        Fused attention keeps no N × N matrix only where queries and values have one width (on the CPU, else it
        silently builds the matrix), so the narrower of the two is padded with zero channels, which change
        neither the scores nor the mean; the scale stays that of the unpadded channels.
        """
        q, k = self._queries_and_keys(z, data, grid, projected)
        D = data.shape[-1]
        shared = _round_up(max(q.shape[-1], D), 8)
        q, k, v = (F.pad(part, (0, shared - part.shape[-1])).unsqueeze(1) for part in (q, k, data.to(q.dtype)))
        mean: Tensor = F.scaled_dot_product_attention(q, k, v, scale=self.scale).squeeze(1).narrow(-1, 0, D)
        return mean

    @property
    def scale(self) -> float:
        """1 / sqrt(d_ms): what products of queries and keys are multiplied by; for the Gaussian, 1 / h²."""
        return 1 / math.sqrt(self.channels)

    def weights(
        self,
        tokens: Float[Tensor, "B N D"],
        grid: Grid | None = None,
        start: Float[Tensor, "B N D"] | None = None,
    ) -> Float[Tensor, "B N N"]:
        """S of one step from `tokens`: every row sums to 1, and S is not symmetric. For analysis: it is N × N."""
        data = tokens if start is None or self.config.blurring else start
        q, k = self._queries_and_keys(tokens, data, grid)
        return (q @ k.mT * self.scale).softmax(-1)

    def trajectory(
        self, tokens: Float[Tensor, "B N D"], layers: int | None = None, grid: Grid | None = None
    ) -> Float[Tensor, "steps B N D"]:
        """The tokens after 0, 1, …, `layers` steps (None: the trained number): (layers + 1, B, N, D)."""
        states = list(self.states(tokens, self.layers if layers is None else layers, grid))
        return torch.stack([state.to(states[-1].dtype) for state in states])

    @torch.no_grad()
    def calibrate(self, tokens: Float[Tensor, "B N D"], grid: Grid | None = None) -> None:
        """Scale E_r so that `tokens` average over `config.neighbors` tokens, in the mean over about 64 of each image.

        Raises:
            InputError: a number that no bandwidth gives.
        """
        wanted = self.config.neighbors
        if wanted is None:
            return
        initial = [parameter.clone() for parameter in self.project.parameters()]

        def count(exponent: float) -> float:
            for parameter, whole in zip(self.project.parameters(), initial, strict=True):
                parameter.copy_(whole * 10**exponent)
            q, k = self._queries_and_keys(tokens, tokens, grid)
            rows = q[:, :: max(1, q.shape[1] // 64)]
            return effective_neighbors((rows @ k.mT * self.scale).softmax(-1)).mean().item()

        narrow, wide = 4.0, -3.0
        if not count(narrow) <= wanted <= count(wide):
            raise InputError(
                f"mean_shift.neighbors: {wanted:g}; these tokens can have {count(narrow):.1f} to {count(wide):.1f}"
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
            spatial=self.config.spatial,
            grid=grid,
            scale=self.scale,
        )


def _with_spread_of(start: Tensor, z: Tensor) -> Tensor:
    """`z` moved and scaled to the mean and the root mean square deviation over tokens that `start` has."""
    center, target = z.mean(1, keepdim=True), start.mean(1, keepdim=True)
    now = (z - center).square().mean((1, 2), keepdim=True)
    then = (start - target).square().mean((1, 2), keepdim=True)
    return target + (z - center) * (then / now.clamp(min=torch.finfo(z.dtype).tiny)).sqrt()


def _shift(start: Tensor, z: Tensor) -> Tensor:
    """z - start, scaled over the image to the root mean square deviation of `start` from its mean token.

    At most a hundredfold: without a bound, tokens that do not move would have infinite gradients.
    """
    shift, spread = z - start, start - start.mean(1, keepdim=True)
    exact = torch.promote_types(shift.dtype, torch.float32)
    way, target = (x.to(exact).square().mean((1, 2), keepdim=True) for x in (shift, spread))
    return shift * (target / way.maximum(1e-4 * target).clamp(min=torch.finfo(way.dtype).tiny)).sqrt().to(shift.dtype)


def check_layers(layers: int, name: str) -> int:
    """`layers`, if it is a whole number from 0 on."""
    if not 0 <= layers <= MOST_STEPS or int(layers) != layers:
        raise InputError(f"{name}: {layers}; the number of mean shift steps is a whole number from 0 to {MOST_STEPS}")
    return int(layers)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
