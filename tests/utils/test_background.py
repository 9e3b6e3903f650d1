"""Threads that read ahead and write behind."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from threading import Event, Timer

import pytest

from meanshifter.utils.background import ReadAhead, WriteBehind


def test_items_come_in_order_and_no_more_are_read_than_may_wait() -> None:
    read: list[int] = []

    def source() -> Iterator[int]:
        for number in itertools.count():
            read.append(number)
            yield number

    with ReadAhead(source(), 3) as items:
        for number in range(10):
            assert next(items) == number
            time.sleep(0.002)
            assert len(read) <= number + 1 + 3 + 1  # used, waiting, and the one in hand
    before = len(read)
    time.sleep(0.01)
    assert len(read) == before, "reading ends with the context"


def test_an_error_of_the_source_comes_after_the_items_before_it() -> None:
    def source() -> Iterator[int]:
        yield 1
        raise ValueError("broken")

    with ReadAhead(source(), 3) as items:
        assert next(items) == 1
        with pytest.raises(ValueError, match="broken"):
            next(items)


def test_a_source_that_does_not_wait_loses_items_that_are_counted() -> None:
    read = Event()

    def source() -> Iterator[int]:
        yield from range(10)
        read.set()

    reader = ReadAhead(source(), 3, drop=True)
    with reader as items:
        read.wait(10)
        assert list(items) == [0, 1, 2]
    assert reader.dropped == 7


def test_all_that_was_put_is_written_in_order() -> None:
    written: list[int] = []
    writer = WriteBehind(written.append, 2)
    for number in range(20):
        writer.put(number)
    writer.finish()
    assert written == list(range(20))


def test_an_error_in_writing_ends_it_and_is_raised_where_items_are_put() -> None:
    written: list[int] = []

    def write(number: int) -> None:
        if number == 3:
            raise OSError("full")
        written.append(number)

    writer = WriteBehind(write, 2)

    def put_all() -> None:
        for number in range(100):
            writer.put(number)

    with pytest.raises(OSError, match="full"):
        put_all()
    with pytest.raises(OSError, match="full"):
        writer.finish()
    assert written == [0, 1, 2]


def test_what_waits_is_not_written_after_abort() -> None:
    started, go, written = Event(), Event(), list[int]()

    def write(number: int) -> None:
        started.set()
        go.wait(10)
        written.append(number)

    writer = WriteBehind(write, 5)
    for number in range(4):
        writer.put(number)
    started.wait(10)
    Timer(0.05, go.set).start()
    writer.abort()
    assert written == [0]
