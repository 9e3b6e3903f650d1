"""The stream of training samples: a function of (seed, position) alone, so that a run resumes anywhere."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate, get_worker_info
from torch.utils.data import Dataset as TorchDataset

from meanshifter.data import balance
from meanshifter.data.augment import AugmentConfig, augment, draw_scale, resize_factor
from meanshifter.data.datasets import Dataset
from meanshifter.errors import InputError
from meanshifter.model.config import Triple
from meanshifter.training.workers import Noted, end_if_unsent, watched

Sampled = tuple[Tensor, Tensor, str]
Batch = tuple[Tensor, Tensor, list[str]]
Sent = Tensor | np.ndarray[Any, Any]
"""A tensor whose memory is shared, or an array that came through a pipe."""
Share = tuple[int, int]
"""Which of how many processes."""
ALONE: Share = (0, 1)
PR_SET_PDEATHSIG = 1
"""Of linux/prctl.h."""


class SampleStream(TorchDataset[Sampled | InputError]):
    """Sample number `position` of an endless stream: one shuffle of the data set after the other, augmented.

    The shuffle is keyed by (seed, epoch), the augmentation by (seed, position): neither by worker nor process.
    """

    def __init__(self, dataset: Dataset, config: AugmentConfig, seed: int, *, mean: Triple, std: Triple) -> None:
        self.dataset, self.config, self.seed = dataset, config, seed
        self.mean, self.std = mean, std

    def __getitem__(self, position: int) -> Sampled | InputError:
        try:
            return self.sample(position)
        except InputError as error:  # handed over whole: a worker's exceptions arrive as tracebacks in text
            return error

    def place(self, position: int) -> int:
        """Which sample of the data set stands at `position`."""
        epoch, turn = divmod(position, len(self.dataset))
        return _order(len(self.dataset), self.seed, epoch)[turn]

    def files(self, position: int) -> str:
        """What is read for the sample at `position`, for messages."""
        return self.dataset.files(self.place(position))

    def generator(self, position: int) -> np.random.Generator:
        """What the augmentation at `position` is drawn from."""
        return np.random.default_rng((self.seed, position, 1))

    def sample(self, position: int) -> Sampled:
        """Image (3, h, w) float32, labels (h, w) as the data set has them, uint8 or uint16, and name."""
        rng = self.generator(position)
        scale = draw_scale(self.config, rng)
        sample = self.dataset.read_reduced(
            self.place(position),
            lambda height, width: resize_factor(height, width, self.config, scale),
        )
        image, labels = augment(
            sample.image,
            sample.labels,
            self.config,
            rng,
            scale=scale,
            mean=self.mean,
            std=self.std,
            ignore=self.dataset.labels.ignore,
        )
        return torch.from_numpy(image), torch.from_numpy(labels), sample.name


@lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> list[int]:
    order: list[int] = np.random.default_rng((seed, epoch, 0)).permutation(length).tolist()
    return order


def positions(number: int, batch_size: int, share: Share) -> range:
    """The places in the stream of this process's part of batch number `number`, which all processes make together."""
    rank, count = share
    first = (number * count + rank) * batch_size
    return range(first, first + batch_size)


def batches(
    stream: SampleStream, *, batch_size: int, start: int, stop: int, workers: int, share: Share = ALONE
) -> Iterator[Batch]:
    """This process's part, of `batch_size` samples, of batches number `start` to `stop` of the stream.

    Raises:
        InputError: a sample that cannot be read, whichever process met it.
        RunError: a worker died; the line names the files that it was reading.
    """
    numbers = range(start, stop)
    workers = min(workers, len(numbers))
    noted = Noted(stream, workers)
    loader: DataLoader[Any] = DataLoader(
        noted,
        batch_sampler=[list(positions(n, batch_size, share)) for n in numbers],
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_prepare_worker,
        generator=torch.Generator(),  # else the loader draws from the global one, in the middle of the first step
    )
    told = False
    for batch in watched(loader, noted, stream.files):
        if isinstance(batch, InputError):
            raise batch
        images, labels, names = batch
        if not told and not (isinstance(images, Tensor) and isinstance(labels, Tensor)):
            warnings.warn(_no_room(), stacklevel=2)
            told = True
        labels = torch.as_tensor(labels)
        # few operations of torch take uint16
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
    """One tensor, in a worker at once in shared memory; where that has no room an array, which needs none."""
    try:
        stacked: Tensor = default_collate(list(parts))
    except (RuntimeError, OSError):
        if get_worker_info() is None:
            raise
        return torch.stack(parts).numpy()
    return stacked


def _no_room() -> str:
    return (
        f"{_shared_memory()} has no room for the batches of the data workers, which come through pipes instead; that "
        "is slower: give a container more, such as --shm-size 2g, or set data.workers 0"
    )


def _shared_memory() -> str:
    try:
        room = os.statvfs("/dev/shm")
    except (AttributeError, OSError):  # not on Linux
        return "shared memory"
    return f"/dev/shm of {room.f_frsize * room.f_blocks / 2**20:,.0f} MB"


def _prepare_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the main process decides
    end_if_unsent()
    _die_with_parent()


def _die_with_parent() -> None:
    """On Linux, end with the main process even if that is killed: a worker holds its connections open otherwise.

    The other processes of a run would wait on them in vain.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def class_weights(dataset: Dataset, power: float) -> Tensor | None:
    """The weights of `balance.class_weights` by the labelled pixels of a data set, (K,) float32; None for power 0."""
    if power == 0:
        return None
    K = dataset.labels.num_classes
    counts = np.zeros(K)
    for index in range(len(dataset)):
        labels = dataset.read_labels(index)
        counts += np.bincount(labels[labels != dataset.labels.ignore], minlength=K)[:K]
    return torch.from_numpy(balance.class_weights(counts, power)).float()
