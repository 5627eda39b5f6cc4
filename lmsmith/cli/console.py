"""What is printed, and how: the only place from which lmsmith writes to a terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_SECONDS = 5.0  # between two plain lines


class Printer(Console):
    """Prints text as it is, in lines as long as they are."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """A reader that goes away (`| head`) does not end a run."""
        self.quiet = True
        no_more_output()


def problem(message: str) -> None:
    from lmsmith.train.log import say

    say(Printer(stderr=True), message, style="red")


def no_more_output() -> None:
    """So that Python, flushing at its exit, does not complain of the pipe that is gone."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """How far a long work is: a live bar on a terminal, elsewhere a plain line every five seconds.

    with Progress(console) as tell:
        tell("reading", 3_000_000, 20_000_000)

    A total of 0: not known. What is counted are bytes, or `unit`.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Bar | None = None
        self._task = ""
        self._began = self._told = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=30),
                TextColumn("{task.fields[said]}"),
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
            self._task, self._began, self._told = task, now, now
            if self._bar is not None:
                for old in self._bar.task_ids:
                    self._bar.remove_task(old)
                self._bar.add_task(task, total=total or None, said="")
        said = self._said(done, total, unit, now - self._began)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total or None, said=said)
        elif now - self._told >= LINE_SECONDS:
            self._told = now
            self.console.print(f"{task} {said}")

    @staticmethod
    def _said(done: int, total: int, unit: str, seconds: float) -> str:
        scale, name = (1e6, "MB") if unit == "B" else (1, unit)
        said = f"{done / scale:,.0f}{f' of {total / scale:,.0f}' if total else ''} {name}"
        if done and seconds > 1:
            rate = done / seconds
            said += f", {rate / scale:,.{1 if rate < 100 * scale else 0}f} {name}/s"
            if total:
                left = round(max(0, total - done) / rate)
                said += f", {left // 60}:{left % 60:02} left"
        return said


def table(console: Console, head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Words to the left, numbers to the right; cut to a terminal's width, and to nothing else's."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, name in enumerate(head):
        table.add_column(name, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    wide = console if console.is_terminal else Console(file=console.file, width=1000)
    wide.print(table, soft_wrap=False)


class Warnings(logging.Handler):
    """To what is standard error at that moment: while a live bar is on, rich stands there and
    keeps the bar below.
    """

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)
