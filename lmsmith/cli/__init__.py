"""The command line: parse, build, call.

`lmsmith VERB ... --section.field value`. `grammar.py` makes the parsers, `console.py` prints; every
other file here holds some verbs: their options, and a short function each that calls the library.
torch is imported by the verbs that need it, not here: `--help` must answer in a fraction of a
second.

Exit status: 0 done; 1 failed; 2 wrong use; 130 or 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from lmsmith.cli import bench, data, models, runs, tokenizer, use, verify
from lmsmith.cli.console import Printer, Warnings, no_more_output, problem
from lmsmith.cli.grammar import Verbs
from lmsmith.cli.output import guarded
from lmsmith.errors import LmsmithError
from lmsmith.train.stop import Stopped, handle, stop_at_once


def run(arguments: Sequence[str], *, started: float) -> int:
    """Runs one command and returns its exit status. `started`: the time.monotonic() from which
    `--minutes` counts.
    """
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # a terminal that lacks a character shows another, and no traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[Warnings()])
    with guarded():
        return _run(arguments, started)


def _run(arguments: Sequence[str], started: float) -> int:
    before = handle(signal.SIGTERM, stop_at_once)
    try:
        try:
            options = parse(arguments)
            status = int(options.call(options, Printer(), started))
        except SystemExit as done:  # argparse, after --help and --version
            status = int(done.code or 0)
        sys.stdout.flush()  # what cannot be written is to be told of here
        return status
    except LmsmithError as error:
        problem(f"lmsmith: {error}")
        return error.exit_status
    except KeyboardInterrupt as stop:
        number = stop.signal if isinstance(stop, Stopped) else signal.SIGINT
        problem(f"lmsmith: stopped by {number.name}")
        return 128 + number
    except BrokenPipeError:  # whoever read our output has seen enough
        no_more_output()
        return 0
    finally:
        handle(signal.SIGTERM, before)  # while Python leaves there is nothing to be said any more


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with the verb's function as `call`. Raises UsageError; SystemExit after
    --help and --version.
    """
    return verbs(arguments).parse(arguments)


def verbs(arguments: Sequence[str] = ()) -> Verbs:
    """The whole grammar, with the settings of the preset that the arguments name."""
    found = Verbs(arguments)
    for group in (runs, use, models, tokenizer, bench, data, verify):
        group.add(found)
    return found
