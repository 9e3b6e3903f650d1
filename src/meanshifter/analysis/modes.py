"""Trajectories of one image's patch encodings under a model's mean shift block, and the modes that they reach.

Glossary: N tokens, D token width, L steps, H W pixels, h w token grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from torch import Tensor

from meanshifter.data.datasets import Sample
from meanshifter.data.labels import Labels as TrainIds
from meanshifter.data.reading import read_mask
from meanshifter.errors import InputError
from meanshifter.evaluation.diagnostics import (
    boundary_figures,
    by_size,
    diagnose,
    diagnose_sample,
    in_double,
    modes_of,
    spread,
)
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.preprocess import Pixels, as_pixels, resize
from meanshifter.inference.protocol import as_segmenter
from meanshifter.model.mean_shift import MeanShift
from meanshifter.utils.environment import install_hint

FORMAT_VERSION = 1
LAYERS, MAX_LAYERS = 8, 100
TOLERANCE = 0.1
"""Distance within which tokens belong to one mode, as a part of the spread at the start."""
QUANTILES = (0.05, 0.1, 0.3)
"""Quantiles of the token distances, for the bandwidths of the reference; 0.3 is scikit-learn's default."""
MAX_TOKENS = 8192
"""Diagnostics need N × N weights in float64, and the reference starts from every token."""

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Reference:
    """Classical mean shift of the tokens before the first step."""

    quantile: float
    """Quantile of the token distances, from which the bandwidth was estimated."""
    bandwidth: float
    """Radius of the flat kernel, in the units of the encodings."""
    labels: Labels
    """(N,) the cluster of each token; 0 is the largest."""

    @property
    def clusters(self) -> int:
        """The number of clusters."""
        return int(self.labels.max()) + 1


@dataclass(frozen=True, eq=False)
class Modes:
    """The patch encodings of one image under the steps of the block, and their modes."""

    image: Pixels
    """(H, W, 3), as the model sees it."""
    grid: tuple[int, int]
    """(h, w)."""
    patch_size: int
    """P, in pixels."""
    trained_layers: int
    """L_ms, the steps that the model was trained with."""
    kernel: str
    """Of the block: "dot" or "gaussian"."""
    tolerance: float
    """As a part of the spread at the start."""
    radius: float
    """Distance within which tokens belong to one mode, in the units of the encodings."""
    labels: Labels
    """(L+1, N) the mode of each token after 0, 1, …, L steps; 0 is the largest."""
    plane: npt.NDArray[np.float64]
    """(L+1, N, 2) the tokens in the plane of the first two principal components of all states."""
    explained: tuple[float, float]
    """Shares of the variance of all states along the two."""
    diagnostics: list[dict[str, float]]
    """`diagnose`, after 0, 1, …, L steps."""
    references: tuple[Reference, ...]
    """Classical mean shift, for each quantile."""

    @property
    def layers(self) -> int:
        """L, the number of steps."""
        return len(self.labels) - 1

    def sizes(self, step: int) -> Labels:
        """Tokens of each mode after `step` steps, largest first."""
        return np.bincount(self.labels[step])

    def to_dict(self) -> dict[str, Any]:
        """The numbers, for JSON; undefined ones are null."""
        h, w = self.grid
        return {
            "format_version": FORMAT_VERSION,
            "size": list(self.image.shape[:2]),
            "grid": [h, w],
            "patch_size": self.patch_size,
            "trained_layers": self.trained_layers,
            "kernel": self.kernel,
            "tolerance": self.tolerance,
            "radius": self.radius,
            "explained": list(self.explained),
            "steps": [
                {
                    "step": n,
                    **{key: value if math.isfinite(value) else None for key, value in row.items()},
                    **mode_counts(self.sizes(n)),
                }
                for n, row in enumerate(self.diagnostics)
            ],
            "modes": self.labels[-1].reshape(h, w).tolist(),
            "references": [
                {
                    "quantile": reference.quantile,
                    "bandwidth": reference.bandwidth,
                    "clusters": reference.clusters,
                    "labels": reference.labels.reshape(h, w).tolist(),
                }
                for reference in self.references
            ],
        }


def mode_counts(sizes: Labels) -> dict[str, int]:
    """The number of modes, of those with a single token, and of tokens in the largest."""
    return {"modes": len(sizes), "single": int((sizes == 1).sum()), "largest": int(sizes.max())}


def find_modes(
    predictor: Predictor,
    image: str | Path | Pixels,
    *,
    layers: int = LAYERS,
    tolerance: float = TOLERANCE,
    labels: str | Path | TrainIds | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Modes:
    """Follow the tokens of an image through `layers` steps in float64, and group those that converged.

    Args:
        predictor: the model and how it resizes; its windows are not used, as modes belong to one set of tokens.
        image: a path, or an (H, W, 3) uint8 array.
        layers: steps to follow, which may differ from the number that the model was trained with.
        tolerance: distance within which tokens belong to one mode, as a part of their spread at the start.
        labels: the image's mask, a path or (H, W) train ids, for the diagnostics that need ground truth.
        say: called with a line before each part.

    Raises:
        InputError: a model without the block, or whose steps start from pixels; an image that cannot be read, has too
            many patches or only equal ones; an argument out of range; scikit-learn is missing.
    """
    block = _check(predictor, layers, tolerance)
    original = as_pixels(image, predictor.max_pixels)
    truth = None if labels is None else _truth(predictor, original, labels)
    H, W = predictor.preprocess.size(*original.shape[:2])
    P = predictor.model.output_stride
    if (count := math.ceil(H / P) * math.ceil(W / P)) > MAX_TOKENS:
        raise InputError(
            f"image: {W}×{H} pixels are {count} patches, more than {MAX_TOKENS}; make it smaller with --short-side"
        )
    pixels = resize(original, (H, W))
    model = as_segmenter(predictor.model).evaluation_view()
    with torch.inference_mode():
        tokens, grid = model.encode(model.normalize(pixels))
        say(f"{tokens.shape[1]} patches, {grid[0]} × {grid[1]}: {layers} steps")
        moved = model.mean_shift_input(tokens)  # class embeddings may shift along; modes are those of the patches
        states = in_double(block).trajectory(moved.double(), layers, grid)[:, 0, : tokens.shape[1]].cpu()
        if not states.isfinite().all():
            raise InputError("model: its patch encodings are not finite; the training diverged, use another checkpoint")
        scale = spread(states[0])
        if scale == 0:
            raise InputError(
                f"image: all of its {states.shape[1]} patch encodings are equal; use an image whose patches differ"
            )
        figures = diagnose(block, moved, layers, grid)
    if truth is not None:
        say("diagnostics near the boundaries of the mask")
        figures, counts = diagnose_sample(predictor, truth, layers)
        figures = [{**row, **boundary_figures(count)} for row, count in zip(figures, counts, strict=True)]
    groups = torch.stack([modes_of(state, tolerance * scale) for state in states]).numpy()
    plane, explained = principal_plane(states)
    say("classical mean shift of scikit-learn")
    return Modes(
        image=pixels,
        grid=grid,
        patch_size=model.patch_size,
        trained_layers=block.layers,
        kernel=block.config.kernel,
        tolerance=tolerance,
        radius=tolerance * scale,
        labels=groups,
        plane=plane.numpy(),
        explained=explained,
        diagnostics=figures,
        references=tuple(classical_mean_shift(states[0], quantile) for quantile in QUANTILES),
    )


def classical_mean_shift(tokens: Float[Tensor, "N D"], quantile: float) -> Reference:
    """Mean shift with a flat kernel over fixed reference points, from every token (scikit-learn's `MeanShift`).

    The bandwidth is that of `estimate_bandwidth`: the distance within which the share `quantile` of all tokens lies,
    averaged over tokens. If it is 0, as for few tokens, only equal tokens form a cluster.

    Raises:
        InputError: scikit-learn is missing.
    """
    require_libraries()
    from sklearn.cluster import MeanShift as ClassicalMeanShift
    from sklearn.cluster import estimate_bandwidth
    from threadpoolctl import threadpool_limits  # a dependency of scikit-learn

    data = tokens.numpy()
    bandwidth = float(estimate_bandwidth(data, quantile=quantile))
    if bandwidth == 0:
        return Reference(quantile, bandwidth, modes_of(tokens, 0).numpy())
    with threadpool_limits(1):  # it queries the neighbors of one point at a time, for which threads only add overhead
        clusters = ClassicalMeanShift(bandwidth=bandwidth).fit(data).labels_
    return Reference(quantile, bandwidth, by_size(torch.as_tensor(clusters, dtype=torch.int64)).numpy())


def principal_plane(
    states: Float[Tensor, "steps N D"], fitted: slice = slice(None)
) -> tuple[Float[Tensor, "steps N 2"], tuple[float, float]]:
    """Project all states onto the first two principal components of the states `fitted`, by default of all.

    Also returns the shares of their variance. The sign of each axis makes its largest entry positive.
    """
    centered = states - states[fitted].mean((0, 1))
    flat = centered[fitted].flatten(0, 1)
    variances, axes = torch.linalg.eigh(flat.T @ flat)  # ascending
    axes = axes[:, [-1, -2]]
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    first, second = (variances[[-1, -2]].clamp(min=0) / variances.sum()).tolist()
    return centered @ axes, (first, second)


def require_libraries() -> None:
    """Make sure that the packages of the extra `study` are installed.

    Raises:
        InputError: one is missing.
    """
    try:
        import matplotlib.figure  # noqa: F401
        import sklearn.cluster  # noqa: F401
    except ImportError as error:
        raise InputError(f"modes: {error.name} is not installed; {install_hint('study')}") from error


def _check(predictor: Predictor, layers: int, tolerance: float) -> MeanShift:
    """The block, after all checks that need no image."""
    model = as_segmenter(predictor.model)
    block = model.mean_shift
    if model.pixel_shift is not None:
        raise InputError(
            "model: has a pixel_shift block, which shifts cells of pixels towards modes of the 3×3 patches around them "
            "and leaves the patch encodings, whose modes are analyzed here, unchanged; use a model with a mean_shift "
            "block, or `meanshifter predict --mean-shift-layers N` and `meanshifter compare` for label maps after N "
            "steps"
        )
    if block is None:
        raise InputError("model: has no mean shift block, so its tokens do not move; use a MeanShifter")
    if not 1 <= layers <= MAX_LAYERS or int(layers) != layers:
        raise InputError(f"layers: {layers}; expected an integer from 1 to {MAX_LAYERS}")
    if not 0 < tolerance < math.inf:
        raise InputError(f"tolerance: {tolerance}; expected a part of the tokens' spread, above 0, such as {TOLERANCE}")
    require_libraries()
    return block


def _truth(predictor: Predictor, image: Pixels, labels: str | Path | TrainIds) -> Sample:
    """The image with its labels."""
    ids = read_mask(labels, predictor.model.label_space) if isinstance(labels, (str, Path)) else labels
    if ids.shape != image.shape[:2]:
        where = labels if isinstance(labels, (str, Path)) else "labels"
        mask, picture = ("{1}×{0}".format(*array.shape) for array in (ids, image))
        raise InputError(f"{where}: {mask} pixels, but the image has {picture}; pass the mask of this image")
    return Sample(image, ids, "image")
