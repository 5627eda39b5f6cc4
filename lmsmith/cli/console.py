"""Printing: the command line's console, error messages, tables and warnings."""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterable

from rich.console import Console

from lmsmith.api.progress import Progress as Progress

WRAPPED = 20  # characters; only longer cells of a table wrap
GAP = 2  # spaces between the columns of a table


class Printer(Console):
    """Prints text unchanged: no markup, no emoji codes, no line breaks added."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def on_broken_pipe(self) -> None:
        """Keeps a run going when the reader of its output exits (`| head`)."""
        self.quiet = True
        no_more_output()


def problem(message: str) -> None:
    """Prints an error or a note on standard error, in red on a terminal."""
    from lmsmith.train.log import say

    say(Printer(stderr=True), message, style="red")


def names_as_typed(message: str, options: argparse.Namespace) -> str:
    """An error of the API begins with an argument, as in "top_k = -1: expected ...". If the command
    has an option for it, the message names that instead: "--top-k -1: expected ...". A setting in a
    file, as in "tokenizer = 'x' in r.toml: ...", stays as it is.
    """
    found = re.match(r"([a-z][a-z_-]*) = ('[^']*'|\[[^]]*\]|[^\s:]+)(?=:? )(?! in )", message)
    if not found or found[1].replace("-", "_") not in options:
        return message
    value = shlex.quote(found[2].strip("'")) if found[2].startswith("'") else found[2]
    return f"--{found[1].replace('_', '-')} {value}{message[found.end() :]}"


def no_more_output() -> None:
    """Points stdout at the null device: Python flushes it at exit and must not fail on a closed
    pipe.
    """
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def table(console: Console, head: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Prints a table: first column left-aligned, others right-aligned.

    On a terminal, headers and long texts wrap to fit its width. No column is cut or dropped: if the
    terminal is still too narrow, it breaks the lines. In a pipe or file each row is one line.
    """
    from rich.cells import cell_len
    from rich.table import Table

    lines = [tuple(row) for row in rows]
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold")
    needed = 0
    for index, name in enumerate(head):
        longest = max((cell_len(line[index]) for line in lines), default=0)
        width = max(*map(len, name.split(" ")), min(WRAPPED, longest))
        needed += width + GAP
        table.add_column(name, justify="left" if index == 0 else "right", min_width=width)
    for line in lines:
        table.add_row(*line)
    wide = Console(file=console.file, width=1000)
    fits = console if console.is_terminal else wide
    fits.print(table, width=max(fits.width, needed), soft_wrap=False, crop=False)


class Warnings(logging.Handler):
    """Prints warnings on the current sys.stderr, wrapped at words on a terminal.

    A live progress bar replaces sys.stderr with its own stream, which keeps the bar below the
    message. So the text goes through that stream, not through a console on the original one.
    """

    def emit(self, record: logging.LogRecord) -> None:
        from lmsmith.train.log import say

        terminal = Printer(stderr=True)
        text = io.StringIO()
        wrapped = Console(
            file=text,
            width=terminal.width,
            force_terminal=terminal.is_terminal,
            color_system=None,
        )
        say(wrapped, self.format(record))
        print(text.getvalue(), end="", file=sys.stderr)
