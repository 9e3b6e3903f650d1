"""Writing beside and renaming into place, and reading ahead."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import IO, TypeVar

from PIL import Image

from meanshifter.errors import InputError

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")


def write_beside(path: str | Path, write: Callable[[IO[bytes]], object]) -> None:
    """Let `write` fill a file beside `path` and rename it into place, over an old one; folders are made.

    Raises:
        InputError: the file cannot be written; nothing is left behind then.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: cannot be written ({reason}); choose a place with space and write access") from error
    finally:
        with suppress(OSError):  # gone after a success, and where the folder could not be made
            temporary.unlink()


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

    An error in `load` comes out of the item's own `Future.result`, so one bad item does not end the rest.
    """
    source = iter(items)
    with ThreadPoolExecutor(workers, thread_name_prefix="meanshifter-read") as pool:
        waiting: deque[tuple[Item, Future[Loaded]]] = deque()
        try:
            for item in islice(source, ahead):
                waiting.append((item, pool.submit(load, item)))
            while waiting:
                yield waiting.popleft()
                for item in islice(source, 1):
                    waiting.append((item, pool.submit(load, item)))
        finally:
            for _, future in waiting:
                future.cancel()
