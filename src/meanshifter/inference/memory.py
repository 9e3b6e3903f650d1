"""Windows that do not fit into memory together are read in fewer at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meanshifter.errors import InputError, is_out_of_memory

Windows = npt.NDArray[np.uint8] | Tensor
"""(b, height, width, 3)."""


class Budget:
    """How many windows of a size go through the model together, which memory that ran out has lowered for good."""

    def __init__(self) -> None:
        self._pixels: int | None = None

    def windows(self, wanted: int, size: tuple[int, int]) -> int:
        """At most `wanted` windows of `size` (height, width), and at least 1."""
        if self._pixels is None:
            return wanted
        return max(min(wanted, self._pixels // (size[0] * size[1])), 1)

    def in_parts(
        self, run: Callable[[Windows], list[Tensor]], batch: Windows, device: torch.device
    ) -> Iterator[list[Tensor]]:
        """`run` of the batch, in as many parts as memory asks for; a warning says when their size was lowered.

        Raises:
            InputError: a single window does not fit.
        """
        size = (batch.shape[1], batch.shape[2])
        done, tried = 0, 0
        while done < len(batch):
            count = self.windows(len(batch) - done, size)
            try:
                results = run(batch[done : done + count])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                results = None
            if results is None:  # after the handler, whose traceback keeps the tensors of the failed pass alive
                self._lower(count, size, device)
                tried = max(tried, count)
                continue
            if tried:
                _say(tried, count, size, device)
                tried = 0
            yield results
            done += count

    def _lower(self, failed: int, size: tuple[int, int], device: torch.device) -> None:
        if failed == 1:
            raise InputError(
                f"window: one of {size[0]}×{size[1]} pixels does not fit into the memory of {device}; use a smaller "
                f"window (--window), such as {max(min(size) // 2, 1)}"
            )
        self._pixels = failed // 2 * size[0] * size[1]
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _say(tried: int, count: int, size: tuple[int, int], device: torch.device) -> None:
    warnings.warn(
        f"{tried} windows of {size[0]}×{size[1]} pixels do not fit into the memory of {device}: {count} in a pass from "
        f"now on; --batch-size {count} begins so",
        stacklevel=3,
    )


@contextmanager
def enough_memory(height: int, width: int) -> Iterator[None]:
    """Says of which image it was that memory ran out outside the model's passes.

    Raises:
        InputError: memory ran out within.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise InputError(
            f"image: {height}×{width} pixels need more memory than there is; cut the image into tiles, or ask for "
            "fewer maps of scores"
        ) from error
