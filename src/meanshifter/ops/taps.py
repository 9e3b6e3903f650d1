"""Axis matrices in sparse form: the few inputs that every output pixel depends on.

Glossary: n outputs along an axis, m inputs (patches of all windows), T taps, the inputs of one output.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

SPAN = 32
"""Outputs in one run at most, so that a cell's scores stay in the first-level cache."""


class Taps(NamedTuple):
    """Output i of an axis is the sum of ``weight[t, i] * x[inputs[i, t]]``; the weights of each output sum to 1."""

    inputs: npt.NDArray[np.int32]
    """(n, T), ascending; where an output has fewer than T inputs, its last is repeated with weight 0."""
    weight: npt.NDArray[np.float32]
    """(T, n)."""
    starts: npt.NDArray[np.int32]
    """Where runs of outputs with the same inputs begin, and n at the end."""


def axis_taps(matrix: Tensor) -> Taps:
    """The taps of a dense matrix (n, m) of non-negative weights."""
    dense = matrix.detach().cpu().numpy()
    row, column = dense.nonzero()
    count = np.bincount(row, minlength=len(dense))
    place = np.arange(len(row)) - (np.cumsum(count) - count)[row]
    widest = int(count.max())
    last = column[np.cumsum(count) - 1]
    index = np.repeat(last[:, None], widest, axis=1).astype(np.int32)
    index[row, place] = column
    weight = np.zeros((widest, len(dense)), dtype=np.float32)
    weight[place, row] = dense[row, column]
    return Taps(index, weight, _runs(index))


def _runs(index: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    changed = np.flatnonzero((index[1:] != index[:-1]).any(1)) + 1
    edges = np.concatenate([[0], changed, [len(index)]])
    pieces = [np.arange(start, stop, SPAN) for start, stop in pairwise(edges)]
    return np.concatenate([*pieces, [len(index)]]).astype(np.int32)
