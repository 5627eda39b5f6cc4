"""Handles standard output that cannot be written: a full disk, a closed pipe, a closed terminal.

`guarded` replaces sys.stdout with a stream that reports a failed write in one sentence, so that no
caller mistakes the error for one of the file it writes. Most commands then end, because their
output is their purpose. Training continues (`outliving`): it reports the failure once on standard
error and stops printing. It also survives the hang-up signal (SIGHUP) of a closed terminal.
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
    """A text stream that wraps `stream` and reports failed writes.

    `stream`: None if it is closed. `fatal`: raise OutputError when a write fails (BrokenPipeError
    if the reader has exited). Otherwise drop all further output, and with `tell` print one line on
    standard error.
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
                f"standard output cannot be written: {why}. The command stops here; redirect its "
                f"output to another place."
            ) from error
        if self.tell:
            with contextlib.suppress(OSError):
                print(
                    f"lmsmith: standard output cannot be written ({why}). Training continues "
                    "without it; the metrics are in the run's metrics.jsonl.",
                    file=sys.stderr,
                    flush=True,
                )


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """In the block, failed writes to sys.stdout raise OutputError, and failed writes to sys.stderr
    are ignored.
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
    """In the block, the command continues when its output cannot be written or its terminal is
    closed.
    """
    out = sys.stdout
    if isinstance(out, Output):
        out.fatal = False
    hangup = getattr(signal, "SIGHUP", None)  # absent on Windows
    before = signal.signal(hangup, signal.SIG_IGN) if hangup else None
    try:
        yield
    finally:
        if hangup and before is not None:
            signal.signal(hangup, before)


def discard(stream: Any) -> None:
    """Points the stream at the null device, so that Python does not fail at exit when it flushes
    the stream's buffer.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


def _occupy_closed() -> None:
    """Opens the null device on the descriptors of closed standard streams. Otherwise the next file
    that is opened gets one of them, and output is printed into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
