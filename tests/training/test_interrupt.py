"""What Ctrl-C and SIGTERM do while a run is on its way."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from meanshifter.training.display import Interrupt, Stopped


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Those of a command in a terminal: one started in the background ignores SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_first_signal_is_noted_and_the_second_acts_immediately() -> None:
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        assert interrupt.requested == signal.SIGINT
        with pytest.raises(KeyboardInterrupt) as caught:
            signal.raise_signal(signal.SIGINT)
        assert not isinstance(caught.value, Stopped), "as Python does without a run"


@pytest.mark.parametrize("within", [True, False])
def test_where_everything_is_saved_the_first_signal_ends_the_run(within: bool) -> None:
    with Interrupt(is_main=False) as interrupt:
        if not within:
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped, match="saved") as caught, interrupt.immediately("saved"):
            signal.raise_signal(signal.SIGTERM)
        assert (caught.value.signal, caught.value.said) == (signal.SIGTERM, True)
    with Interrupt() as interrupt:
        with interrupt.immediately("saved"):
            pass
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.requested == signal.SIGTERM


def test_a_signal_where_exceptions_are_dropped_ends_the_run_all_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    class Fork:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def begin_workers() -> None:
        Fork()
        time.sleep(10)

    with Interrupt() as interrupt, pytest.raises(Stopped, match="saved"), interrupt.immediately("saved"):
        begin_workers()
    assert interrupt.requested == signal.SIGINT
    assert capfd.readouterr().err == "", "no traceback of what was dropped"
