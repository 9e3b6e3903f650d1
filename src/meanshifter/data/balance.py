"""Class weights: one formula for the loss of a training and for the report on a data set."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def class_weights(counts: npt.NDArray[np.float64], power: float) -> npt.NDArray[np.float64]:
    """(1 / share of the pixels) ** power per class from pixel counts (K,), scaled so that the mean over pixels is 1.

    A class that never occurs weighs as much as the rarest that does.
    """
    present = counts[counts > 0]
    share = np.maximum(counts, present.min(initial=counts.max(initial=1.0))) / max(counts.sum(), 1.0)
    weights: npt.NDArray[np.float64] = share**-power
    weights /= max((weights * counts).sum() / max(counts.sum(), 1.0), 1e-12)
    return weights
