"""Signals, raised in this process."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from lmsmith.train.stop import Stopped, handle, noted, signal_in_words, stop_at_once

BOTH = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = [(number, signal.getsignal(number)) for number in BOTH]
    yield
    for number, handler in before:
        assert signal.getsignal(number) == handler, "handlers are restored"
        signal.signal(number, handler)


@pytest.mark.parametrize("number", BOTH)
def test_a_signal_is_noted_and_work_continues(number: signal.Signals) -> None:
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
        signal.raise_signal(signal.SIGTERM)  # after the block it is only noted
        with (
            pytest.raises(Stopped),
            stop.at_once(),
        ):  # a noted signal ends the next block before it starts
            pytest.fail("the block was entered")


def test_a_second_interrupt_stops_at_once_but_a_second_sigterm_does_not() -> None:
    with noted() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # its sender waits for the save
        assert stop.signal == signal.SIGTERM
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGTERM


def test_a_stop_is_a_keyboard_interrupt() -> None:
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
    """A shell starts background commands (`&`) with SIGINT ignored, so that Ctrl-C reaches only the
    foreground.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with noted() as stop:
            signal.raise_signal(signal.SIGINT)
            assert stop.signal is None
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_set_no_handlers() -> None:
    found: list[object] = []

    def work() -> None:
        with noted() as stop, stop.at_once():
            found.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [None]


def test_sigint_is_named_as_users_know_it() -> None:
    assert [signal_in_words(number.name) for number in BOTH] == ["Ctrl-C", "SIGTERM"]


def test_it_does_not_import_torch() -> None:
    """The command line imports it, and `lmsmith --help` must stay fast."""
    program = "import sys, lmsmith.train.stop\nsys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
