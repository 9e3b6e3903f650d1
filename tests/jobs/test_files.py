from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from meanshifter.errors import InputError
from meanshifter.inference.segmentation import read_ahead
from meanshifter.utils.files import write_atomically


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(28, "No space left on device"), InputError), (KeyError(), KeyError)]
)
def test_failed_write_keeps_the_old_file(tmp_path: Path, error: Exception, raised: type[Exception]) -> None:
    def write(file: IO[bytes]) -> None:
        file.write(b"half")
        raise error

    (tmp_path / "file").write_text("old")
    with pytest.raises(raised):
        write_atomically(tmp_path / "file", write)
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_order_is_kept_and_an_error_belongs_to_its_item() -> None:
    def load(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item * item

    loaded = {}
    for item, future in read_ahead(load, range(7)):
        if item == 3:
            with pytest.raises(ValueError, match="three"):
                future.result()
        else:
            loaded[item] = future.result()
    assert list(loaded.items()) == [(k, k * k) for k in range(7) if k != 3]


def test_no_more_than_ahead_items_are_taken() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for k in range(100):
            taken.append(k)
            yield k

    stream = read_ahead(lambda k: k, items(), ahead=3)
    for k in range(5):
        assert next(stream)[0] == k
        assert len(taken) <= k + 4


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("meanshifter-read")]


def test_leaving_early_ends_the_threads_without_waiting_for_them() -> None:
    """The garbage collector may be who leaves, in the midst of anything."""
    go_on = threading.Event()

    def load(k: int) -> int:
        if k > 0:
            go_on.wait(60)
        return k

    stream = read_ahead(load, range(1000))
    assert next(stream)[1].result() == 0
    leaving = threading.Thread(target=stream.close)  # type: ignore[attr-defined]
    leaving.start()
    leaving.join(30)
    waited = leaving.is_alive()
    go_on.set()
    assert not waited
    for thread in reading_threads():
        thread.join(30)
    assert not reading_threads()


def test_all_threads_have_ended_with_the_last_item() -> None:
    for thread in reading_threads():
        thread.join(30)
    assert [future.result() for _, future in read_ahead(lambda k: k, range(9))] == list(range(9))
    assert not reading_threads()
