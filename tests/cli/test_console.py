"""What reaches a terminal, a pipe and a file: colours, tables, warnings."""

import io
import logging
import os
import re
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from conftest import LINUX, TINY, Lmsmith
from rich.console import Console

from lmsmith.cli.console import Warnings, names_as_typed, table

HEAD = ("model", "what it is", "bits per byte", "parameters", "trained for", "MB/s")
ROWS = [
    ["run-1", "Transformer, 3 layers of 192, tables", "0.927", "6.83M", "1 min 16 s", "0.00412"],
    ["uniform", "every byte equally likely", "8.000", "—", "—", "—"],
]
ESCAPE = "\x1b["
STYLE = re.compile(r"\x1b\[[\d;]*[1-9]\d*m")  # colour, bold; not the reset ESC[0m


def printed(width: int, *, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    table(console, HEAD, ROWS)
    return file.getvalue()


@pytest.mark.parametrize("width", [40, 50, 80, 140])
def test_a_table_on_a_terminal_loses_no_number(width: int) -> None:
    shown = printed(width, terminal=True)
    assert "…" not in shown
    for row in ROWS:
        for cell in (row[0], *row[2:]):
            assert cell in shown
    words = {word for text in (*HEAD, *(row[1] for row in ROWS)) for word in text.split()}
    assert words <= set(shown.split())
    if width >= 80:
        assert max(map(len, shown.splitlines())) <= width


def test_a_row_of_a_table_in_a_pipe_is_one_line() -> None:
    lines = printed(50, terminal=False).splitlines()
    assert len(lines) == 1 + len(ROWS)
    assert re.split(r"\s{2,}", lines[0].strip()) == list(HEAD)
    assert re.split(r"\s{2,}", lines[1].strip()) == ROWS[0]


def test_a_warning_in_a_pipe_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    message = "a word and " * 40 + "`lmsmith resume 'a run'`"
    Warnings().emit(logging.LogRecord("lmsmith", logging.WARNING, "", 0, message, (), None))
    assert capsys.readouterr().err == message + "\n"


def test_a_warning_on_a_terminal_breaks_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", screen := Terminal())
    message = "a word and " * 40 + "`lmsmith resume 'a run'`"
    Warnings().emit(logging.LogRecord("lmsmith", logging.WARNING, "", 0, message, (), None))
    lines = screen.getvalue().splitlines()
    assert max(map(len, lines)) <= 30
    assert " ".join(lines) == message


def test_there_are_no_colours_in_a_pipe(lmsmith: Lmsmith, run: Path) -> None:
    for words in (
        ["train", "book.txt", "--steps", 2, *TINY, "--out", "new"],
        ["eval", "run"],
        ["compare", "run", "--text", "book.txt"],
        ["data", "inspect", "run/tokens"],
        ["data", "list"],
        ["generate", "run", "The", "--max-tokens", 2],
        ["resume", "nowhere"],
        ["--help"],
        ["train", "--help"],
    ):
        done = lmsmith(*words, environment={"TERM": "xterm-256color", "COLORTERM": "truecolor"})
        assert ESCAPE not in done.out + done.err, words


@pytest.mark.skipif(not LINUX, reason="pseudo-terminals")
@pytest.mark.parametrize("no_color", [False, True])
def test_no_color_is_obeyed_on_a_terminal(lmsmith: Lmsmith, run: Path, no_color: bool) -> None:
    """Bold headers and the live bar may stay: NO_COLOR asks for no colour."""
    master, terminal = os.openpty()
    name = Path(os.ttyname(terminal))
    environment = {"TERM": "xterm-256color", **({"NO_COLOR": "1"} if no_color else {})}
    for words in (
        ["resume", "nowhere"],
        ["train", "book.txt", "--steps", 30, *TINY, "--out", "new"],
        ["data", "inspect", "run/tokens"],
    ):
        lmsmith(*words, stdin=name, stdout=name, stderr=name, environment=environment)
    os.set_blocking(master, False)
    shown = b""
    while True:
        try:
            if not (block := os.read(master, 65536)):
                break
        except OSError:
            break
        shown += block
    os.close(terminal)
    os.close(master)
    colours = re.findall(rb"\x1b\[(?:\d+;)*(?:3[0-7]|9[0-7]|38;5;\d+|38;2;[\d;]+)m", shown)
    assert bool(colours) != no_color, shown[-2000:]


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("top_k = -1: expected 0.", "--top-k -1: expected 0."),
        ("weights = 'int8' is for X.", "--weights int8 is for X."),
        ("weights = '': expected X.", "--weights '': expected X."),
        ("top_k = 1 in r.toml: expected 0.", "top_k = 1 in r.toml: expected 0."),
        ("n_head = 5 does not divide 64.", "n_head = 5 does not divide 64."),
        ("train.top_k = 5: expected 0.", "train.top_k = 5: expected 0."),
    ],
)
def test_an_error_names_the_option_that_was_typed(message: str, shown: str) -> None:
    assert names_as_typed(message, Namespace(top_k=-1, weights="")) == shown
