"""SIGINT (Ctrl-C) and SIGTERM: at once where nothing would be lost, after the work at hand where
something would.

A command that is only reading ends where it stands: the signal raises `Stopped`. A run that is
changing or writing its weights notes the signal (`noted`), comes to where it can be saved, and
saves; within `Noted.at_once` it is only reading again. A second Ctrl-C does not wait for anything:
what is on disk is whole at every moment.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class Stopped(KeyboardInterrupt):
    """A signal ends the command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


class RunStopped(Stopped):
    """A signal ended a run, which is saved."""

    def __init__(self, name: str, run: Path, steps: int) -> None:
        super().__init__(signal.Signals[name])
        self.run, self.steps = run, steps

    def __str__(self) -> str:
        return (
            f"{self.signal.name} stopped {self.run}, which is saved at step {self.steps:,}. "
            f"lmsmith.resume({str(self.run)!r}) continues it."
        )


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """The handler of a command that holds nothing that could be lost."""
    raise Stopped(number)


def handle(number: signal.Signals, handler: Any) -> Any:
    """Sets a handler and returns the one before. A signal that is ignored (`&` in a script does
    it) stays ignored.
    """
    before = signal.getsignal(number)
    if before not in (signal.SIG_IGN, None):  # None: set by whatever embeds this Python
        signal.signal(number, handler)
    return before


class Noted:
    """The signal that has asked for an end, if one has."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._at_once = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Around work that only reads: a signal, also one that was noted before, raises Stopped
        there.
        """
        self._at_once = True
        try:
            if self.signal is not None:
                raise Stopped(self.signal)
            yield
        finally:
            self._at_once = False

    def _handler(self, number: int, frame: FrameType | None) -> None:
        impatient = self.signal is not None and number == signal.SIGINT
        self.signal = self.signal or signal.Signals(number)
        if self._at_once or impatient:
            raise Stopped(number)


@contextmanager
def noted() -> Iterator[Noted]:
    """SIGINT and SIGTERM are noted within; a second one that is a SIGINT raises Stopped.
    Handlers are put back.
    """
    found = Noted()
    if (
        threading.current_thread() is not threading.main_thread()
    ):  # only the main thread may have handlers
        yield found
        return
    before = {number: handle(number, found._handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            handle(number, handler)
