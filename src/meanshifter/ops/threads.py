"""Threads for kernels that release the interpreter's lock; as many as torch uses."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

import torch

Result = TypeVar("Result")


def in_parallel(function: Callable[..., Result], pieces: Iterable[tuple[int, ...]]) -> list[Result]:
    """The results of ``function(*piece)``, in the order of the pieces."""
    work = list(pieces)
    threads = torch.get_num_threads()
    if threads == 1 or len(work) == 1:
        return [function(*piece) for piece in work]
    futures = [_pool(os.getpid(), threads).submit(function, *piece) for piece in work]
    return [future.result() for future in futures]


def spans(length: int, pieces: int) -> list[tuple[int, int]]:
    """0..length cut into at most `pieces` parts of nearly equal size."""
    count = max(min(pieces, length), 1)
    edges = [length * i // count for i in range(count + 1)]
    return list(pairwise(edges))


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """The process is part of the key because a forked one inherits the pool without its threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix="meanshifter-ops")
