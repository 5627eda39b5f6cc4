"""Command inspect: what a model has learned, as an HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lmsmith import api
from lmsmith.cli.grammar import Verbs

if TYPE_CHECKING:
    from rich.console import Console


def add(verbs: Verbs) -> None:
    inspected = verbs.verb(
        "inspect",
        _inspect,
        "show what a model has learned: attention, logit lens, losses, embeddings",
        'lmsmith inspect demo/run-1 --prompt "Once upon a time"',
    )
    inspected.add_argument(
        "run", type=Path, metavar="RUN", help="folder that `lmsmith train` or `import` wrote"
    )
    inspected.add_argument(
        "--prompt",
        default="",
        metavar="TEXT",
        help="text to run the model on (the beginning of the validation text)",
    )
    inspected.add_argument(
        "--text",
        nargs="+",
        metavar="FILE",
        help="text to compute losses on (the run's validation text)",
    )
    inspected.add_argument(
        "--out", type=Path, metavar="FILE", help="the HTML file (RUN/inspect.html)"
    )


def _inspect(options: argparse.Namespace, console: Console, started: float) -> int:
    out = options.out or options.run / "inspect.html"
    lm = api.load(options.run)
    found = lm.inspect(options.prompt, text=options.text, out=out)
    for note in found.notes:
        console.print(f"note: {note}")
    console.print(str(out))
    return 0
