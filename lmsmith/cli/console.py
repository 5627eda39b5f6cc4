"""What is printed, and how: the only place from which lmsmith writes to a terminal."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable

from rich.console import Console

from lmsmith.api.progress import Progress as Progress


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
