"""Times as medians of alternating rounds, and memory as the peak of the process or of CUDA above where it stood."""

from __future__ import annotations

import gc
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

Work = Callable[[], Any]
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """One way of doing a piece of work."""

    name: str
    seconds: float
    """Median over rounds."""
    low: float
    """Fastest round."""
    high: float
    """Slowest round."""
    peak_bytes: int | None
    """Memory above what was held before; None where the system does not tell."""


CPU = torch.device("cpu")


def compare(
    ways: Mapping[str, Work], *, rounds: int = 7, memory: bool = True, device: torch.device = CPU
) -> list[Measured]:
    """Time every way once per round, in an order that turns with the round, after one untimed call of each.

    Machines drift; ratios of medians taken in turn within one process drift far less. What CUDA is given to do is
    waited for, and memory there is what torch has allocated.
    """
    for work in ways.values():
        work()
    names = list(ways)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            _wait_for(device)
            began = time.perf_counter()
            ways[name]()
            _wait_for(device)
            seconds[name].append(time.perf_counter() - began)
    peak = partial(cuda_peak, device=device) if device.type == "cuda" else peak_memory
    peaks = {name: peak(ways[name]) if memory else None for name in names}
    return [
        Measured(name, statistics.median(times), min(times), max(times), peaks[name]) for name, times in seconds.items()
    ]


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cuda_peak(work: Work, device: torch.device) -> int:
    """Bytes of the device's memory at the peak of `work`, above what was allocated before."""
    gc.collect()
    _wait_for(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    _wait_for(device)
    return torch.cuda.max_memory_allocated(device) - before


def peak_memory(work: Work) -> int | None:
    """Bytes of resident memory at the peak of `work`, above where the process stood; None outside Linux."""
    if not _STATUS.is_file():
        return None
    gc.collect()
    _give_back()
    before = _resident("VmRSS")
    try:
        _RESET.write_text("5")
    except OSError:
        return _sampled_peak(work) - before
    work()
    return max(_resident("VmHWM") - before, 0)


def _sampled_peak(work: Work) -> int:
    """Where the kernel's own high-water mark cannot be reset: the largest of a sample each millisecond."""
    peak, done = _resident("VmRSS"), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, _resident("VmRSS"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return peak


def _resident(field: str) -> int:
    for line in _STATUS.read_text("ascii").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def _give_back() -> None:
    """Freed memory goes back to the system, where the C library can be told so."""
    import ctypes

    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return
