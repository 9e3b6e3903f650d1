"""Reading ahead, and label maps as PNG."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TypeVar

from PIL import Image

from meanshifter.files import write_beside

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def save_png(path: str | Path, picture: Image.Image) -> None:
    """Write `picture` as PNG, beside and renamed into place.

    Raises:
        InputError: the file cannot be written.
    """
    write_beside(path, lambda file: picture.save(file, format="PNG"))


def read_ahead(
    load: Callable[[Item], Loaded], items: Iterable[Item], *, workers: int = 2, ahead: int = 4
) -> Iterator[tuple[Item, Future[Loaded]]]:
    """Each item with the future of ``load(item)``, in order; at most `ahead` of them are loaded or in work.

    An error in `load` comes out of the item's own `Future.result`, so one bad item does not end the rest. Leaving early
    does not wait for what is being loaded.
    """
    source = iter(items)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="meanshifter-read")
    waiting: deque[tuple[Item, Future[Loaded]]] = deque()
    try:
        for item in islice(source, ahead):
            waiting.append((item, pool.submit(load, item)))
        while waiting:
            yield waiting.popleft()
            for item in islice(source, 1):
                waiting.append((item, pool.submit(load, item)))
        pool.shutdown()
    finally:
        # not waited for: who ends it early may be the garbage collector, in a thread that is just being started and
        # holds the lock that joining another one asks for
        pool.shutdown(wait=False, cancel_futures=True)
