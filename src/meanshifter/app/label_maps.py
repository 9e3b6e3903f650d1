"""Label maps and confidence of one image after any number of mean shift steps, from patch logits that are kept.

What is shown of a large image is every s-th pixel of its label map: rows and columns of the two matrices that
upsample the logits are picked, so the other pixels are never computed. Glossary: K classes, H W pixels of the image,
s the stride of what is shown.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from meanshifter.data.labels import Labels
from meanshifter.data.rows import FileRows, LargeFile
from meanshifter.inference.ensemble import members_of
from meanshifter.inference.predictor import Predictor
from meanshifter.inference.windows import enough_memory
from meanshifter.ops import View, label_map, pixel_confidence

MAX_SIDE: Final = 2048
"""Pixels of the longer side that are shown at most."""
MAX_KEPT: Final = 512 * 2**20
"""Bytes of patch logits that are kept for an image, about."""

Pixels = npt.NDArray[np.uint8]


def shown_stride(height: int, width: int) -> int:
    """The stride s at which an image is shown; pixels s // 2, s // 2 + s, … of each axis are."""
    return math.ceil(max(height, width) / MAX_SIDE)


def every(length: int, stride: int) -> slice:
    """The pixels of an axis that are shown."""
    return slice(min(stride // 2, length - 1), length, stride)


def shown_size(height: int, width: int) -> tuple[int, int]:
    """(h, w) of what is shown of an image."""
    s = shown_stride(height, width)
    h, w = (len(range(*every(length, s).indices(length))) for length in (height, width))
    return h, w


class LabelMaps:
    """The patch logits of an image for several numbers of mean shift steps, read out when asked for.

    Args:
        predictor: the model, its preprocessing and windows.
        image: a file, or pixels (H, W, 3).
        steps: numbers of mean shift steps; the trained one is always among them. If their logits would exceed
            `MAX_KEPT`, only the trained number is kept.
        progress: called with the share of the image that is done; what it raises ends the computation.

    Raises:
        InputError: as `Predictor.__call__`.
    """

    def __init__(
        self,
        predictor: Predictor,
        image: Path | Pixels,
        steps: Sequence[int],
        progress: Callable[[float], object] = lambda share: None,
    ) -> None:
        source = predictor.load(image)
        self.size = H, W = source.shape[0], source.shape[1]
        """(H, W) of the image."""
        self.stride = shown_stride(H, W)
        self.trained = predictor.mean_shift_layers
        wanted = sorted({*steps, self.trained})
        per_step = _bytes_of_logits(predictor, H, W)
        self.limited = per_step * len(wanted) > MAX_KEPT
        """Whether only the trained number of steps is kept, as there would be too many logits."""
        self.steps = [self.trained] if self.limited else wanted
        """Numbers of mean shift steps."""
        self._views: list[list[list[View]]] = []
        self._labels: dict[int, Labels] = {}
        self._confidence: dict[int, Pixels] = {}
        self._lock = threading.Lock()
        self._encode(predictor, source, progress, keep=per_step <= MAX_KEPT)

    def labels(self, step: int) -> Labels:
        """The label map after `step` steps, of the pixels that are shown.

        Raises:
            KeyError: a number of steps that is not among `steps`.
        """
        with self._lock:
            if step not in self._labels:
                place = self._place(step)
                with torch.inference_mode():
                    bands = [label_map(several[place]).cpu().numpy() for several in self._views]
                self._labels[step] = np.concatenate(bands)
            return self._labels[step]

    def confidence(self, step: int) -> Pixels:
        """The probability of the winning class after `step` steps, where 255 is 1.

        Raises:
            KeyError: as `labels`.
        """
        with self._lock:
            if step not in self._confidence:
                place = self._place(step)
                self._confidence[step] = np.concatenate([_probability(several[place]) for several in self._views])
            return self._confidence[step]

    def _place(self, step: int) -> int:
        if step not in self.steps:
            raise KeyError(step)
        return self.steps.index(step)

    def _encode(
        self, predictor: Predictor, source: Pixels | LargeFile, progress: Callable[[float], object], *, keep: bool
    ) -> None:
        """Encode all windows; without `keep`, read out at once what is shown."""
        (H, W), labels, confidence = self.size, [], []
        cols = every(W, self.stride)
        shown = np.arange(H)[every(H, self.stride)]
        opened: AbstractContextManager[Pixels | FileRows]
        opened = source.rows() if isinstance(source, LargeFile) else nullcontext(source)
        with enough_memory(H, W), torch.inference_mode(), opened as pixels:
            for band, several in predictor.bands(pixels, self.steps):
                rows = torch.from_numpy(shown[(shown >= band.start) & (shown < band.stop)] - band.start)
                picked = [[_picked(view, rows, cols) for view in views] for views in several] if len(rows) else []
                if picked and keep:
                    self._views.append(picked)
                elif picked:
                    labels.append(label_map(picked[0]).cpu().numpy())
                    confidence.append(_probability(picked[0]))
                progress(band.stop / H)
        if not keep:
            self._labels[self.trained] = np.concatenate(labels)
            self._confidence[self.trained] = np.concatenate(confidence)


def _picked(view: View, rows: torch.Tensor, cols: slice) -> View:
    """Only some pixels of a view."""
    return view._replace(rows=view.rows[rows.to(view.rows.device)].contiguous(), cols=view.cols[cols].contiguous())


def _probability(views: list[View]) -> Pixels:
    with torch.inference_mode():
        found = pixel_confidence(views, confidence=["probability"]).confidence["probability"]
    scaled: Any = (255 * found).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    return np.asarray(scaled, np.uint8)


def _bytes_of_logits(predictor: Predictor, height: int, width: int) -> float:
    """Of one number of steps, about: windows overlap by a few percent."""
    patches = sum(
        math.prod(side / member.output_stride for side in predictor.preprocess.size(height, width, scale))
        for member in members_of(predictor.model)
        for scale in predictor.scales
    )
    window, stride = predictor.preprocess.window, predictor.preprocess.window_stride
    overlap = 1.0 if window is None else (window / stride) ** 2
    return 4 * predictor.model.label_space.num_classes * patches * overlap * (2 if predictor.flip else 1)
