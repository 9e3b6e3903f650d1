"""Pixels near the boundaries of the truth, where models of large patches lose most.

The band is that of Kohli, Ladický & Torr (IJCV 2009, section 7), with square neighbourhoods.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F


def near_boundary(labels: npt.NDArray[Any], radius: int, ignore: int) -> npt.NDArray[np.bool_]:
    """(H, W) whether another class than a pixel's own lies within `radius` pixels of it, row- and column-wise.

    Pixels that are ignored are of no class: where a class meets them there is no boundary.
    """
    truth = torch.from_numpy(labels.astype(np.float32))[None, None]
    counted = truth != ignore
    never = torch.tensor(-torch.inf)
    high = _largest_within(torch.where(counted, truth, never), radius)
    low = -_largest_within(torch.where(counted, -truth, never), radius)
    near: npt.NDArray[np.bool_] = (counted & (high != low))[0, 0].numpy()
    return near


def _largest_within(x: torch.Tensor, radius: int) -> torch.Tensor:
    side = 2 * radius + 1
    return F.max_pool2d(F.max_pool2d(x, (1, side), 1, (0, radius)), (side, 1), 1, (radius, 0))


def only(labels: npt.NDArray[Any], where: npt.NDArray[np.bool_], ignore: int) -> npt.NDArray[Any]:
    """The labels where `where` is true, `ignore` elsewhere."""
    kept: npt.NDArray[Any] = np.where(where, labels, labels.dtype.type(ignore))
    return kept
