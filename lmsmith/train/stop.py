"""Handles SIGINT (Ctrl-C) and SIGTERM: at once if nothing would be lost, else after a save.

A command that only reads ends at once: the signal raises `Stopped`. A training run notes the signal
(`noted`), reaches a point where it can be saved, and saves. Within `Noted.at_once` it only reads,
so the signal ends that work at once. A second Ctrl-C does not wait: the files on disk are complete
at all times.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class Stopped(KeyboardInterrupt):
    """A signal ended the command."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.signal = signal.Signals(number)


class RunStopped(Stopped):
    """A signal ended a training run, which has been saved."""

    def __init__(self, name: str, run: Path, steps: int) -> None:
        super().__init__(signal.Signals[name])
        self.run, self.steps = run, steps

    def __str__(self) -> str:
        return (
            f"stopped by {signal_in_words(self.signal.name)}: {self.run} is saved at step "
            f"{self.steps:,}. lmsmith.resume({str(self.run)!r}) continues it."
        )


def signal_in_words(name: str) -> str:
    """ "SIGINT" -> "Ctrl-C"; other names stay."""
    return "Ctrl-C" if name == signal.SIGINT.name else name


def stop_at_once(number: int, frame: FrameType | None) -> None:
    """A handler for commands that have nothing to save: raises Stopped."""
    raise Stopped(number)


def handle(number: signal.Signals, handler: Any) -> Any:
    """Sets a handler and returns the previous one. An ignored signal (as after `&` in a script)
    stays ignored.
    """
    before = signal.getsignal(number)
    if before not in (signal.SIG_IGN, None):  # None: set by a program that embeds this Python
        signal.signal(number, handler)
    return before


class Noted:
    """Holds the signal that asked the run to end, if any."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._at_once = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside this block, which only reads, a signal raises Stopped at once; so does one that
        was noted before.
        """
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def check(self) -> None:
        """Raises Stopped if a signal was noted."""
        if self.signal is not None:
            raise Stopped(self.signal)

    def _handler(self, number: int, frame: FrameType | None) -> None:
        impatient = self.signal is not None and number == signal.SIGINT
        self.signal = self.signal or signal.Signals(number)
        if self._at_once or impatient:
            raise Stopped(number)


@contextmanager
def noted() -> Iterator[Noted]:
    """Notes SIGINT and SIGTERM inside the block; a second signal raises Stopped if it is a SIGINT.
    Restores the handlers afterwards.
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
