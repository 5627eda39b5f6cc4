"""The command line: parses arguments and calls the API.

`lmsmith COMMAND ... --section.field value`. `grammar.py` builds the parsers, `console.py` prints,
`output.py` handles output that cannot be written. Each other file has some commands: their options,
and a short function for each that calls the library. Commands import torch only when they need it,
so that `--help` answers in a fraction of a second.

Exit status: 0 success; 1 failure; 2 wrong use; 130 or 143 stopped by a signal.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence

from lmsmith.cli import (
    bench,
    chat,
    data,
    inspection,
    models,
    plan,
    rl,
    runs,
    serve,
    study,
    tokenizer,
    tokenizer_measures,
    use,
    verify,
)
from lmsmith.cli.console import Printer, Warnings, names_as_typed, no_more_output, problem
from lmsmith.cli.grammar import Verbs
from lmsmith.cli.output import guarded
from lmsmith.errors import LmsmithError
from lmsmith.train.stop import Stopped, handle, stop_at_once


def run(arguments: Sequence[str], *, started: float) -> int:
    """Runs one command and returns its exit status. `started`: the time.monotonic() from which
    `--minutes` counts.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # replace characters that the terminal cannot encode
            stream.reconfigure(errors="replace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[Warnings()])
    with guarded():
        return _run(arguments, started)


def _run(arguments: Sequence[str], started: float) -> int:
    before = handle(signal.SIGTERM, stop_at_once)
    options = argparse.Namespace()
    try:
        try:
            options = parse(arguments)
            status = int(options.call(options, Printer(), started))
        except SystemExit as done:  # raised by argparse after --help and --version
            status = int(done.code or 0)
        sys.stdout.flush()  # report a failed write here, not while Python exits
        return status
    except LmsmithError as error:
        problem(f"lmsmith: {names_as_typed(str(error), options)}")
        return error.exit_status
    except KeyboardInterrupt as stop:
        number = stop.signal if isinstance(stop, Stopped) else signal.SIGINT
        problem(f"lmsmith: stopped by {number.name}")
        return 128 + number
    except BrokenPipeError:  # the reader of our output (`| head`) has exited
        no_more_output()
        return 0
    finally:
        handle(signal.SIGTERM, before)  # no message for a signal while Python exits


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Returns the options, with the command's function as `call`. Raises UsageError; SystemExit
    after --help and --version.
    """
    return verbs(arguments).parse(arguments)


def verbs(arguments: Sequence[str] = ()) -> Verbs:
    """Builds all commands, with the settings of the preset that the arguments name."""
    commands = Verbs(arguments)
    for module in (
        runs,
        chat,
        rl,
        use,
        serve,
        inspection,
        models,
        plan,
        study,
        tokenizer,
        tokenizer_measures,
        bench,
        data,
        verify,
    ):
        module.add(commands)
    return commands
