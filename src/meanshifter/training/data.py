"""Training samples: the sample stream, the data loader workers, and datasets cached on the device."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from ctypes import c_char, c_int64
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import RawArray
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from meanshifter.data import masks
from meanshifter.data.augment import normalization
from meanshifter.data.augment_device import augment_batch
from meanshifter.data.class_pixels import class_pixels
from meanshifter.data.crop_plan import draw
from meanshifter.data.datasets import Dataset
from meanshifter.data.labels import Labels, LabelSpace
from meanshifter.errors import InputError, RunError, did_you_mean, one_line
from meanshifter.training.sections import LossConfig
from meanshifter.training.stream import Sampled, SampleStream

Batch = tuple[Tensor, Tensor, list[str]]
Sent = Tensor | np.ndarray[Any, Any]
"""A tensor in shared memory, or an array sent through a pipe."""
Share = tuple[int, int]
"""Rank and number of processes."""
ALONE: Share = (0, 1)
PR_SET_PDEATHSIG = 1
"""From linux/prctl.h."""


def positions(number: int, batch_size: int, share: Share) -> range:
    """Stream positions of this process's part of batch `number`, which all processes form together."""
    rank, count = share
    first = (number * count + rank) * batch_size
    return range(first, first + batch_size)


def batches(
    stream: SampleStream, *, batch_size: int, start: int, stop: int, workers: int, share: Share = ALONE
) -> Iterator[Batch]:
    """This process's parts, of `batch_size` samples, of batches `start` to `stop` of the stream.

    Raises:
        InputError: a sample cannot be read, by any process.
        RunError: a worker died; the message names the files it was reading.
    """
    numbers = range(start, stop)
    workers = min(workers, len(numbers))
    tracked = TrackedDataset(stream, workers)
    loader: DataLoader[Any] = DataLoader(
        tracked,
        batch_sampler=[list(positions(n, batch_size, share)) for n in numbers],
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_prepare_worker,
        generator=torch.Generator(),  # else the loader draws from the global generator during the first step
    )
    warned = False
    for batch in watch_workers(loader, tracked, stream.files):
        if isinstance(batch, InputError):
            raise batch
        images, labels, names = batch
        if not warned and not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
            warnings.warn(
                f"{_shared_memory()} is too small for the batches of the data loader workers, which are sent through "
                "pipes instead. This is slower: give a container more, such as --shm-size 2g, or set data.workers 0",
                stacklevel=2,
            )
            warned = True
        labels = torch.as_tensor(labels)
        # few torch operations support uint16
        yield torch.as_tensor(images), labels.int() if labels.dtype == torch.uint16 else labels, names


def _collate(samples: list[Sampled | InputError]) -> tuple[Sent, Sent, list[str]] | InputError:
    read: list[Sampled] = []
    for sample in samples:
        if isinstance(sample, InputError):
            return sample
        read.append(sample)
    images, labels, names = zip(*read, strict=True)
    return _stack(images), _stack(labels), list(names)


def _stack(parts: tuple[Tensor, ...]) -> Sent:
    """One tensor, in shared memory if in a worker, or an array if shared memory is full."""
    try:
        stacked: Tensor = default_collate(list(parts))
    except (RuntimeError, OSError):
        if get_worker_info() is None:
            raise
        return torch.stack(parts).numpy()
    return stacked


def _shared_memory() -> str:
    try:
        room = os.statvfs("/dev/shm")
    except (AttributeError, OSError):  # not on Linux
        return "shared memory"
    return f"/dev/shm of {room.f_frsize * room.f_blocks / 2**20:,.0f} MB"


def _prepare_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the process group; the main process decides
    exit_if_unsent()
    if sys.platform == "linux":
        # End with the main process even if that is killed: a live worker keeps its connections open, and the other
        # processes of the run would wait forever.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def class_weights(dataset: Dataset, config: LossConfig) -> Tensor | None:
    """The weight of each class in the loss, (K,) float32; None: equal weights.

    Raises:
        InputError: the weights of `loss.class_weights` do not fit the classes.
    """
    space, given = dataset.label_space, config.class_weights
    if isinstance(given, list | dict):
        return torch.tensor(_given_weights(space, given))
    power = config.class_weight_power if given is None else given
    if power == 0:
        return None
    counts = class_pixels(dataset).sum(0).astype(np.float64)
    return torch.from_numpy(masks.class_weights(counts, power)).float()


def _given_weights(space: LabelSpace, given: list[float] | dict[str, float]) -> list[float]:
    """One weight per class; classes that a mapping does not name have weight 1."""
    if isinstance(given, dict):
        if unknown := [name for name in given if name not in space.names]:
            hint = did_you_mean(unknown[0], space.names, f"classes are {', '.join(space.names):.200}")
            raise InputError(f"loss.class_weights: unknown class {unknown[0]!r}; {hint}")
        given = [given.get(name, 1.0) for name in space.names]
    if len(given) != space.num_classes:
        raise InputError(
            f"loss.class_weights: {len(given)} numbers, but the data have {space.num_classes} classes; give one each"
        )
    if not any(given):
        raise InputError("loss.class_weights: all are 0; give at least one class a weight above 0")
    return given


Read = TypeVar("Read")
_NONE = -1
_LONGEST_REASON = 400


class TrackedDataset(TorchDataset[Read], Generic[Read]):
    """A dataset that records, in memory shared with the main process, which position each worker is reading."""

    def __init__(self, inner: TorchDataset[Read], workers: int) -> None:
        self._inner = inner
        self._notes: Any = RawArray(c_int64, [0, _NONE] * workers)  # process id and position of each worker
        self._reason: Any = RawArray(c_char, _LONGEST_REASON)

    def __getitem__(self, position: int) -> Read:
        info = get_worker_info()
        if info is None:
            return self._inner[position]
        pid, place = 2 * info.id, 2 * info.id + 1
        self._notes[pid], self._notes[place] = os.getpid(), position
        read = self._inner[position]
        self._notes[place] = _NONE
        return read

    def current_position(self, process: int | None) -> int | None:
        """The position that a worker process was reading; None if it was idle."""
        for pid, position in zip(self._notes[::2], self._notes[1::2], strict=True):
            if pid == process and position != _NONE:
                return int(position)
        return None

    @property
    def unsent(self) -> str:
        """Why a worker could not send a batch; empty if none failed."""
        reason: bytes = self._reason.value
        return reason.decode("utf-8", "replace")

    @unsent.setter
    def unsent(self, reason: str) -> None:
        self._reason.value = reason.encode()[: _LONGEST_REASON - 1]


def exit_if_unsent() -> None:
    """In a worker: record the reason and exit if a batch cannot be sent; the main process would wait forever."""
    info = get_worker_info()
    assert info is not None  # only called in a worker
    tracked = info.dataset

    def end(error: BaseException, _batch: object) -> None:
        if isinstance(tracked, TrackedDataset):
            tracked.unsent = one_line(f"{type(error).__name__}: {error}")
        os._exit(1)

    Queue._on_queue_feeder_error = staticmethod(end)  # type: ignore[attr-defined]


def watch_workers(loader: Iterable[Any], tracked: TrackedDataset[Any], describe: Callable[[int], str]) -> Iterator[Any]:
    """Iterate over the batches of `loader`, a `DataLoader` of `tracked`; `describe` names the files of a position.

    Raises:
        RunError: a worker died, for example in a crash of a decoder, or killed when the system ran out of memory.
    """
    before = set(multiprocessing.active_children())
    with _keep_sigchld_handler():
        batches = _start(loader)
    workers = [child for child in multiprocessing.active_children() if child not in before]
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except Exception as error:  # from the loader, or from the connection that sends tensors
            for worker in workers:
                worker.join(0.1)  # one that is exiting
            dead = [worker for worker in workers if worker.exitcode not in (None, 0)]
            if not dead:
                raise
            raise RunError(_dead_worker_message(dead, tracked, describe)) from error
        yield batch


def _start(loader: Iterable[Any]) -> Iterator[Any]:
    """The loader's iterator.

    If files or processes run out, torch leaves a half-built iterator whose deletion prints a second traceback. It is
    deleted here silently.
    """
    try:
        return iter(loader)
    except OSError as error:
        hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
        try:
            traceback.clear_frames(error.__traceback__)
        finally:
            sys.unraisablehook = hook
        raise


@contextmanager
def _keep_sigchld_handler() -> Iterator[None]:
    """Restore the SIGCHLD handler afterwards: torch's handler raises wherever the main process happens to be.

    Without it, the loader itself notices a dead worker when the next batch does not arrive.
    """
    number = getattr(signal, "SIGCHLD", None)  # missing on Windows
    handler = None if number is None else signal.getsignal(number)
    yield
    if number is not None and handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _dead_worker_message(dead: list[BaseProcess], tracked: TrackedDataset[Any], describe: Callable[[int], str]) -> str:
    causes = []
    for worker in dead:
        position = tracked.current_position(worker.pid)
        activity = "idle" if position is None else f"reading {describe(position)}"
        causes.append(f"{_cause(worker.exitcode)} while {activity}")
    if tracked.unsent:
        causes = [f"unable to send a batch ({tracked.unsent})"]
        remedy = "set data.workers 0, or raise the limit that the error names"
    elif any(worker.exitcode == -getattr(signal, "SIGBUS", 0) for worker in dead):
        remedy = "shared memory is full: give a container more, such as --shm-size 2g, or set data.workers 0"
    else:
        remedy = "if memory ran out, lower data.workers or data.cache; otherwise check the files"
    return (
        f"a data loader worker was {'; another was '.join(causes)}; {remedy}; resume from the last checkpoint with "
        "--resume"
    )


def _cause(status: int | None) -> str:
    if status is None or status >= 0:
        return f"ended with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def _load_to(device: torch.device, dataset: Dataset) -> list[tuple[Tensor, Tensor, Labels, str]]:
    """Image (3, H, W) uint8 and labels (H, W) on the device, labels on the host to draw crops, and name per sample."""
    loaded: list[tuple[Tensor, Tensor, Labels, str]] = []
    try:
        with ThreadPoolExecutor() as pool:
            for sample in pool.map(dataset.__getitem__, range(len(dataset))):
                image = torch.from_numpy(sample.image).to(device).permute(2, 0, 1).contiguous()
                loaded.append((image, torch.from_numpy(sample.labels).to(device), sample.labels, sample.name))
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"data.gpu_cache: true, but {device} only has memory for {len(loaded)} of {len(dataset)} images; set it to "
            "false"
        ) from error
    return loaded


def gpu_cached_batches(
    stream: SampleStream, device: torch.device, *, batch_size: int, start: int, stop: int, share: Share = ALONE
) -> Iterator[Batch]:
    """This process's part of batches `start` to `stop` of the stream, made on `device`; the same as from `batches`."""
    samples = _load_to(device, stream.dataset)
    factor, offset = (torch.from_numpy(part).to(device) for part in normalization(stream.mean, stream.std))
    ignore = stream.dataset.label_space.ignore
    for number in range(start, stop):
        chosen, plans = [], []
        for position in positions(number, batch_size, share):
            (place, rare_class), rng = stream.chosen(position), stream.generator(position)
            chosen.append(samples[place])
            plans.append(draw(samples[place][2], stream.config, rng, ignore=ignore, rare_class=rare_class))
        images, labels = [sample[0] for sample in chosen], [sample[1] for sample in chosen]
        crops = augment_batch(images, labels, plans, stream.config.crop, factor=factor, offset=offset, ignore=ignore)
        yield *crops, [sample[3] for sample in chosen]
