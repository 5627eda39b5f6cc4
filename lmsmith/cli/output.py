"""Standard output that cannot be written: a full disk, a closed pipe, a terminal that is gone.

`guarded` puts a stream in the place of sys.stdout that says so in one sentence, so that no code in
between takes the error for that of the file it is writing. Most commands then end: what they print
is what they are for. Training is not (`outliving`): it says so once on standard error, prints no
more, and goes on. It also survives the hang-up (SIGHUP) of a terminal that is closed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

from lmsmith.errors import LmsmithError

EXIT_STATUS = 1


class OutputError(LmsmithError):
    """Standard output cannot be written."""


class Output:
    """A text stream in the place of `stream`, whose failures it tells in words.

    `fatal`: raise OutputError when a write fails (BrokenPipeError where the reader is gone); else
    print one line on standard error and drop what follows. `stream`: None where it is closed.
    """

    def __init__(self, stream: Any, *, fatal: bool = True, tell: bool = True) -> None:
        self.stream, self.fatal, self.tell = stream, fatal, tell
        self.failed = False

    def write(self, text: str) -> int:
        if not self.failed:
            try:
                if self.stream is None:
                    raise OSError(errno.EBADF, "it is closed")
                self.stream.write(text)
            except OSError as error:
                self._fail(error)
        return len(text)

    def flush(self) -> None:
        if not self.failed and self.stream is not None:
            try:
                self.stream.flush()
            except OSError as error:
                self._fail(error)

    def isatty(self) -> bool:
        return not self.failed and self.stream is not None and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _fail(self, error: OSError) -> None:
        self.failed = True
        if self.stream is not None:
            discard(self.stream)
        why = error.strerror or str(error)
        if self.fatal:
            if isinstance(error, BrokenPipeError):
                raise error
            raise OutputError(
                f"standard output cannot be written: {why}. The command ends here; send its "
                f"output elsewhere."
            ) from error
        if self.tell:
            with contextlib.suppress(OSError):
                print(
                    f"lmsmith: standard output cannot be written ({why}). Training goes on "
                    f"without it; "
                    "the numbers are in the run's metrics.jsonl.",
                    file=sys.stderr,
                    flush=True,
                )


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Within: sys.stdout tells of its failures in words, and a standard error that fails is
    silent.
    """
    before = sys.stdout, sys.stderr
    if before[0] is None or before[1] is None:
        _occupy_closed()
    out, err = Output(sys.stdout), Output(sys.stderr, fatal=False, tell=False)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextlib.contextmanager
def outliving() -> Iterator[None]:
    """Within: the command goes on when its output cannot be written, or its terminal is closed."""
    out = sys.stdout
    if isinstance(out, Output):
        out.fatal = False
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    before = signal.signal(hangup, signal.SIG_IGN) if hangup else None
    try:
        yield
    finally:
        if hangup and before is not None:
            signal.signal(hangup, before)


def discard(stream: Any) -> None:
    """Sends what is still in the stream's buffer nowhere, so that Python does not fail on it
    when it exits.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _occupy_closed() -> None:
    """Opens the numbers of closed standard streams, so that no file gets one of them and is
    printed into.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
