"""The patch encodings of an image, or of one window of it, after each mean shift step.

Glossary: N tokens of the patches, M tokens that move (with class embeddings, if these shift along), D token width,
L steps, h w grid, P patch size in pixels of the resized image.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from meanshifter.analysis.modes import TOLERANCE, principal_plane
from meanshifter.data.rows import LargeFile
from meanshifter.errors import InputError
from meanshifter.evaluation.diagnostics import in_double, modes_of, spread
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.preprocess import resize
from meanshifter.inference.protocol import PatchModel
from meanshifter.inference.windows import window_starts
from meanshifter.model.segmenter import Segmenter

MAX_TOKENS: Final = 4096
"""Of an image with more patches, the tokens of one window are shown: links between tokens take N × N bytes."""

Pixels = npt.NDArray[np.uint8]


def why_no_tokens(model: PatchModel) -> str:
    """Why a model has no tokens to show; empty if it has."""
    if isinstance(model, Segmenter):
        return ""
    kind = "An export" if hasattr(model, "folder") else "An ensemble"
    return f"{kind} has label maps only, no access to patch encodings; open a model folder to see them."


def why_no_steps(model: PatchModel) -> str:
    """Why the tokens of a model do not move; empty if they do."""
    if not isinstance(model, Segmenter) or model.mean_shift is not None:
        return ""
    if model.pixel_shift is not None:
        return "This model shifts cells of pixels, not patch encodings, which stay where they are."
    return "This model has no mean shift block, so its patch encodings do not move."


@dataclass(frozen=True)
class Region:
    """What the tokens are of: pixels of the resized image, and their place in the original."""

    rows: slice
    cols: slice
    scale: tuple[float, float]
    """Pixels of the image per pixel of the resized one, (y, x)."""

    def in_image(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom in pixels of the image."""
        y, x = self.scale
        return self.cols.start * x, self.rows.start * y, self.cols.stop * x, self.rows.stop * y


def region_of(predictor: Predictor, size: tuple[int, int], point: tuple[float, float] | None = None) -> Region:
    """The whole resized image if it has at most `MAX_TOKENS` patches, else the window around a point (y, x).

    Windows are those of the predictor, or where these have too many patches, smaller ones; without a point, that in
    the middle.
    """
    resized = predictor.preprocess.size(*size)
    scale = size[0] / resized[0], size[1] / resized[1]
    P = _patch_size(predictor.model)
    if math.prod(math.ceil(side / P) for side in resized) <= MAX_TOKENS:
        return Region(slice(0, resized[0]), slice(0, resized[1]), scale)
    window, stride = predictor.preprocess.window, predictor.preprocess.window_stride
    most = math.isqrt(MAX_TOKENS) * P
    if window is None or window > most:
        window = stride = most
    y, x = (side / 2 for side in size) if point is None else point
    rows, cols = (
        _window(length, place / factor, window, stride)
        for length, place, factor in zip(resized, (y, x), scale, strict=True)
    )
    return Region(rows, cols, scale)


def _window(length: int, place: float, window: int, stride: int) -> slice:
    """The window whose middle is nearest to a place."""
    start = min(window_starts(length, window, stride), key=lambda start: abs(start + min(window, length) / 2 - place))
    return slice(start, start + min(window, length))


def _patch_size(model: PatchModel) -> int:
    assert isinstance(model, Segmenter)
    return model.patch_size


class Tokens:
    """The tokens of a region after 0, 1, …, L steps, in float64, as `analysis.modes.find_modes` computes them.

    They are those of one pass over the region, whereas label maps average windows.

    Args:
        predictor: the model, a `Segmenter`, and how it resizes.
        image: a file, or pixels (H, W, 3).
        region: of `region_of`.
        layers: L; 0 for a model whose tokens do not move.

    Raises:
        InputError: the file cannot be read, or the tokens are not finite.
    """

    def __init__(self, predictor: Predictor, image: Path | Pixels, region: Region, layers: int) -> None:
        assert isinstance(predictor.model, Segmenter)
        model = predictor.model.evaluation_view()
        block = model.mean_shift
        self.region, self.layers, self.patch_size = region, layers if block is not None else 0, model.patch_size
        with torch.inference_mode():
            tokens, self.grid = model.encode(model.normalize(_pixels(predictor, image, region)))
            moved = model.mean_shift_input(tokens).double()
            self._block = None if block is None else in_double(block)
            states = moved[None] if self._block is None else self._block.trajectory(moved, self.layers, self.grid)
            self._states = states[:, 0]
            if not self._states.isfinite().all():
                raise InputError(
                    "model: its patch encodings are not finite; the training diverged, use another checkpoint"
                )
            plane, explained = principal_plane(self._patches(), slice(0, 1))
        self.explained = [share if math.isfinite(share) else 0.0 for share in explained]
        """Shares of the variance before the first step along the two components; 0 if all tokens are equal."""
        self.plane: npt.NDArray[np.float32] = plane.float().cpu().numpy()
        """(L+1, N, 2) in the plane of the first two principal components of the tokens before the first step."""
        self._modes: dict[int, npt.NDArray[np.uint16]] = {}
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """N."""
        return math.prod(self.grid)

    def _patches(self) -> torch.Tensor:
        """(L+1, N, D) without class embeddings."""
        return self._states[:, : self.count]

    def modes(self, step: int) -> npt.NDArray[np.uint16]:
        """(N,) the mode of each token after `step` steps, 0 the largest; see `evaluation.diagnostics.modes_of`."""
        with self._lock:
            if step not in self._modes:
                states = self._patches()
                found = modes_of(states[step], TOLERANCE * spread(states[0]))
                self._modes[step] = found.cpu().numpy().astype(np.uint16)
            return self._modes[step]

    def similarity(self, token: int, step: int) -> npt.NDArray[np.float32]:
        """(N,) cosine similarity of a token to every token after `step` steps."""
        z = self._patches()[step]
        with torch.inference_mode():
            found: npt.NDArray[Any] = F.cosine_similarity(z[token : token + 1], z).float().cpu().numpy()
        return found.astype(np.float32)

    def weights(self, token: int, step: int) -> npt.NDArray[np.float32] | None:
        """(M,) the weights with which the next step averages tokens for this one, its row of S; None without steps."""
        if self._block is None:
            return None
        with torch.inference_mode():
            z, start = self._states[step : step + 1], self._states[:1]
            row = self._block.weights(z, self.grid, start, slice(token, token + 1))[0, 0]
        found: npt.NDArray[Any] = row.float().cpu().numpy()
        return found.astype(np.float32)


def _pixels(predictor: Predictor, image: Path | Pixels, region: Region) -> Pixels:
    """The pixels of a region of the resized image."""
    source = predictor.load(image)
    if isinstance(source, LargeFile):  # which is read as stored
        with source.rows() as rows:
            return np.ascontiguousarray(rows[region.rows, region.cols])
    resized = resize(source, predictor.preprocess.size(*source.shape[:2]))
    return np.ascontiguousarray(resized[region.rows, region.cols])
