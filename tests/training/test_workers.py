"""Data workers that die in the middle of a training."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from meanshifter.data import images, reading
from meanshifter.data.augment_config import AugmentConfig
from meanshifter.data.datasets import Cached, Folder, Subset
from meanshifter.errors import RunError
from meanshifter.training.data import batches
from meanshifter.training.stream import SampleStream


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SampleStream:
    """Six pairs, one of which ends whoever reads it as the environment says."""
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for k in range(6):
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / f"images/{k}.png")
        Image.fromarray(np.full((20, 20), k % 2, np.uint8)).save(tmp_path / f"masks/{k}.png")
    decode = images.decode_image

    def deadly(path: Path, *args: Any, **options: Any) -> Any:
        if path.parts[-2:] == ("images", "3.png"):
            ending = os.environ.get("ENDING")
            if ending == "exit":
                os._exit(7)
            elif ending is not None:
                os.kill(os.getpid(), int(ending))
        return decode(path, *args, **options)

    folder = Subset(Folder(tmp_path, "all"), "5", matching=False)
    monkeypatch.setattr(reading, "decode_image", deadly)
    config = AugmentConfig(crop=(16, 16), resize_base=None)
    return SampleStream(Cached(folder, 10_000), config, 0, mean=(0.5,) * 3, std=(0.5,) * 3)


def run(stream: SampleStream, workers: int = 2) -> Iterator[Any]:
    return batches(stream, batch_size=2, start=0, stop=20, workers=workers)


@pytest.mark.parametrize(
    ("ending", "said"),
    [(str(int(signal.SIGKILL)), "killed by SIGKILL"), ("exit", "ended with status 7")],
)
def test_a_dead_worker_names_the_files_it_held(
    stream: SampleStream, monkeypatch: pytest.MonkeyPatch, ending: str, said: str
) -> None:
    monkeypatch.setenv("ENDING", ending)
    before, began = signal.getsignal(signal.SIGCHLD), time.monotonic()
    with pytest.raises(RunError, match=f"worker was {said} while reading .*images/3.png and .*masks/3.png;.*--resume"):
        list(run(stream))
    assert signal.getsignal(signal.SIGCHLD) is before
    assert time.monotonic() - began < 30


def test_a_worker_killed_while_idle_accuses_no_file(stream: SampleStream) -> None:
    feed = run(stream)
    next(feed)
    time.sleep(0.5)  # until all that is fetched ahead has been
    for child in multiprocessing.active_children():
        os.kill(child.pid or 0, signal.SIGKILL)
    with pytest.raises(RunError, match="killed by SIGKILL while idle"):
        list(feed)


@pytest.mark.parametrize("spare", range(2, 11, 2))
def test_running_out_of_files_ends_without_a_second_complaint(stream: SampleStream, spare: int) -> None:
    resource = pytest.importorskip("resource", reason="limits of this kind are Unix's")
    limits, held = resource.getrlimit(resource.RLIMIT_NOFILE), len(list(Path("/proc/self/fd").iterdir()))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + spare, limits[1]))
    try:
        with pytest.raises((OSError, RunError), match="Too many open files"):  # pytest fails on what a deletion raises
            list(run(stream))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
