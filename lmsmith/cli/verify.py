"""The command that checks lmsmith's correctness on this machine."""

from __future__ import annotations

import argparse
import math

from rich.console import Console

from lmsmith.cli.console import table
from lmsmith.cli.grammar import Verbs
from lmsmith.strict_json import to_json


def add(verbs: Verbs) -> None:
    verify = verbs.verb(
        "verify",
        _verify,
        "check that gradients are right on this machine",
        "lmsmith verify --gradients",
    )
    verify.add_argument(
        "--gradients",
        action="store_true",
        help="compare GPT-2's gradients from four implementations and from finite differences",
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object")


def _verify(options: argparse.Namespace, console: Console, started: float) -> int:
    """Checks gradients, with or without `--gradients`: there is no other check yet."""
    from lmsmith.verify import SIZES, compare_gradients

    results = compare_gradients()
    agree = all(engine.agrees for engine in results)
    if options.json:
        engines = {
            engine.engine: {
                "loss": _finite(engine.loss),
                "gradients": {
                    name: _finite(difference) for name, difference in engine.gradients.items()
                },
                "tolerance": engine.tolerance,
                "agrees": engine.agrees,
            }
            for engine in results
        }
        print(to_json({"gradients": engines, "agree": agree}))
        return 0 if agree else 1
    console.print(
        f"GPT-2 with {SIZES.n_layer} layers, {SIZES.n_head} heads, width {SIZES.d_model}, "
        f"vocabulary {SIZES.vocab_size} (padded to {SIZES.padded_vocab_size}), in float64.\n"
        "Relative difference of the loss, and the largest one of each tensor's gradient, from "
        "lmsmith/reference/gpt2.py,\nwhere each gradient is written out by hand in NumPy."
    )
    rows = [
        ["loss", *(_cell(engine.loss, engine.tolerance) for engine in results)],
        *(
            [name, *(_cell(engine.gradients[name], engine.tolerance) for engine in results)]
            for name in results[0].gradients
        ),
        ["tolerance", *(f"{engine.tolerance:.0e} " for engine in results)],
    ]
    table(console, ("", *(engine.engine + " " for engine in results)), rows)
    if agree:
        console.print("All differences are within tolerance.")
        return 0
    wrong = [engine.engine for engine in results if not engine.agrees]
    console.print(
        f"Above the tolerance (!): {', '.join(wrong)}. This is a bug in lmsmith or in a library "
        f"it uses: please report it with this output."
    )
    return 1


def _finite(difference: float) -> float | None:
    return difference if math.isfinite(difference) else None  # JSON has no NaN


def _cell(difference: float, tolerance: float) -> str:
    return f"{difference:.1e}{' ' if difference <= tolerance else '!'}"
