"""Signals, raised in this process."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from lmsmith.train.stop import Stopped, handle, noted, stop_at_once

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in BOTH]
    yield
    for number, handler in before:
        assert signal.getsignal(number) == handler, "handlers are put back"
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_is_noted_and_work_goes_on(number: signal.Signals) -> None:
    with noted() as stop:
        assert stop.signal is None
        signal.raise_signal(number)
        assert stop.signal == number


@pytest.mark.parametrize("number", BOTH)
def test_work_that_only_reads_ends_at_once(number: signal.Signals) -> None:
    with noted() as stop:
        with pytest.raises(Stopped) as raised, stop.at_once():
            signal.raise_signal(number)
        assert raised.value.signal == stop.signal == number
        signal.raise_signal(signal.SIGTERM)  # behind the block it is only noted again
        with (
            pytest.raises(Stopped),
            stop.at_once(),
        ):  # and what was noted before ends the next one before it begins
            pytest.fail("it went on")


def test_a_second_interrupt_ends_anything_and_a_second_sigterm_nothing() -> None:
    with noted() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # whoever sends them is waiting for the save
        assert stop.signal == signal.SIGTERM
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGTERM


def test_a_stop_is_an_interrupt_to_all_who_know_those() -> None:
    assert issubclass(Stopped, KeyboardInterrupt)
    before = handle(signal.SIGTERM, stop_at_once)
    try:
        with pytest.raises(KeyboardInterrupt) as raised:
            signal.raise_signal(signal.SIGTERM)
    finally:
        handle(signal.SIGTERM, before)
    assert isinstance(raised.value, Stopped)
    assert raised.value.signal == signal.SIGTERM


def test_an_ignored_signal_stays_ignored() -> None:
    """A shell starts what stands before an & with SIGINT ignored, so that Ctrl-C reaches the
    foreground alone.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with noted() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signal is None
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_another_thread_has_no_handlers_and_needs_none() -> None:
    found: list[object] = []

    def work() -> None:
        with noted() as stop, stop.at_once():
            found.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def test_it_is_there_without_torch() -> None:
    """The command line imports it, and `lmsmith --help` is quick."""
    program = "import sys, lmsmith.train.stop\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
