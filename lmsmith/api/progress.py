"""Progress of long calls: whether to show it, and a bar or lines that show it."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_SECONDS = 5.0  # between two plain lines

Shown = bool | Console | None
"""The argument `progress`: True or False; None: if the output is a terminal or a notebook; or the
console to print on.
"""

logging.getLogger("lmsmith").addHandler(logging.NullHandler())  # nothing is printed unless asked


@contextlib.contextmanager
def showing(progress: Shown) -> Iterator[Console]:
    """Yields the console for one call. If it prints progress, it also prints lmsmith's warnings."""
    console = console_for(progress)
    log = logging.getLogger("lmsmith")
    if isinstance(progress, Console) or console.quiet or logging.getLogger().handlers:
        yield console
        return
    handler = _ToConsole(console)
    log.addHandler(handler)
    try:
        yield console
    finally:
        log.removeHandler(handler)


def console_for(progress: Shown) -> Console:
    """Returns a console that prints, or a quiet one."""
    if isinstance(progress, Console):
        return progress
    if progress is None:
        progress = sys.stdout.isatty() or Console().is_jupyter
    if not progress:
        return Console(quiet=True, file=io.StringIO(), force_terminal=False)
    # In notebooks plain lines are enough: a live display in HTML needs more packages.
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=True, force_jupyter=False)


class _ToConsole(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(self.format(record))


class Progress:
    """Shows progress: a live bar on a terminal, elsewhere a plain line every five seconds.

        with Progress(console) as tell:
            tell("reading", 3_000_000, 20_000_000)

    The arguments: what is being done, how much is done, and the total, in bytes or in `unit`. A
    total of 0 means that it is unknown.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Bar | None = None
        self._task = ""
        self._began = self._printed = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[status]}"),
            )
            self._bar = Bar(*columns, console=self.console, transient=True)
            self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, task: str, done: int, total: int = 0, unit: str = "B") -> None:
        now = time.monotonic()
        if task != self._task:
            self._task, self._began, self._printed = task, now, now
            if self._bar is not None:
                for old in self._bar.task_ids:
                    self._bar.remove_task(old)
                self._bar.add_task(task, total=total or None, status="")
        status = self._status(done, total, unit, now - self._began)
        if self._bar is not None:
            bar_task = self._bar.task_ids[0]
            self._bar.update(bar_task, completed=done, total=total or None, status=status)
        elif now - self._printed >= LINE_SECONDS:
            self._printed = now
            self.console.print(f"{task} {status}")

    @staticmethod
    def _status(done: int, total: int, unit: str, seconds: float) -> str:
        """Amount, rate and remaining time: "3 of 20 MB, 1.5 MB/s, 0:11 left"."""
        scale, name = (1e6, "MB") if unit == "B" else (1, unit)
        status = f"{done / scale:,.0f}{f' of {total / scale:,.0f}' if total else ''} {name}"
        if done and seconds > 1:
            rate = done / seconds
            status += f", {rate / scale:,.{1 if rate < 100 * scale else 0}f} {name}/s"
            if total:
                left = round(max(0, total - done) / rate)
                status += f", {left // 60}:{left % 60:02} left"
        return status
