"""Batches of data workers where there is little shared memory, or none."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.catalog.shapes import Shapes
from meanshifter.data.datasets import Sample
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import RunError
from meanshifter.training import data as batches_module
from meanshifter.training.data import Batch, batches
from meanshifter.training.stream import SampleStream

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "faults" / "small_shm.py"


class Many(Shapes):
    """Shapes among 300 classes."""

    def __init__(self) -> None:
        super().__init__(split="train", length=6)
        self.labels = LabelSpace.unnamed(300)

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return Sample(sample.image, sample.labels.astype(np.uint16), sample.name)


def read(workers: int, dataset: Shapes | None = None) -> list[Batch]:
    config = AugmentConfig(crop=(64, 64), resize_base=None)
    shapes = Shapes(split="train", length=6) if dataset is None else dataset
    stream = SampleStream(shapes, config, 0, mean=(0.5,) * 3, std=(0.5,) * 3)
    return list(batches(stream, batch_size=2, start=0, stop=5, workers=workers))


def assert_equal(ours: list[Batch], theirs: list[Batch]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])
        assert one[2] == other[2]


def test_workers_share_batches_and_labels_take_a_byte() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shared = read(2)
    assert all(images.is_shared() and labels.is_shared() for images, labels, _ in shared)
    assert {labels.dtype for _, labels, _ in shared} == {torch.uint8}
    assert_equal(shared, read(0))


def test_above_255_classes_labels_are_whole_numbers_of_torch() -> None:
    assert {labels.dtype for _, labels, _ in read(1, Many())} == {torch.int32}


def test_without_room_batches_come_all_the_same_and_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read(0)

    def full(_parts: list[torch.Tensor]) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(batches_module, "default_collate", full)
    with pytest.warns(UserWarning, match=r"shm.*--shm-size .*data\.workers 0") as notices:
        piped = read(2)
    assert len(notices) == 1
    assert_equal(piped, whole)


def test_a_batch_that_cannot_be_sent_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsendable(_samples: list[Any]) -> Any:
        return lambda: None

    monkeypatch.setattr(batches_module, "_collate", unsendable)
    with pytest.raises(RunError, match=r"unable to send a batch \(.*lambda.*\); set data\.workers 0"):
        read(1)


def test_the_default_batch_trains_in_the_shared_memory_of_a_container() -> None:
    probe = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/dev/shm"]
    try:
        allowed = subprocess.run(probe, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("a /dev/shm of its own needs Linux with unshare and mount namespaces")
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
