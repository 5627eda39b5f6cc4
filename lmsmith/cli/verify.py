"""The verb that checks lmsmith's promises on this machine."""

from __future__ import annotations

import argparse
import math

from rich.console import Console

from lmsmith.cli.console import table
from lmsmith.cli.grammar import Verbs
from lmsmith.strict_json import to_json


def add(verbs: Verbs) -> None:
    verify = verbs.verb(
        "verify", _verify, "check lmsmith's promises on this machine", "lmsmith verify --gradients"
    )
    verify.add_argument(
        "--gradients",
        action="store_true",
        help="GPT-2's gradients by four engines and by finite differences",
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object")


def _verify(options: argparse.Namespace, console: Console, started: float) -> int:
    """Gradients are all there is to check as yet, so they are checked without `--gradients` as
    well.
    """
    from lmsmith.verify import SIZES, compare_gradients

    found = compare_gradients()
    agree = all(engine.agrees for engine in found)
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
            for engine in found
        }
        print(to_json({"gradients": engines, "agree": agree}))
        return 0 if agree else 1
    console.print(
        f"GPT-2 with {SIZES.n_layer} layers, {SIZES.n_head} heads, width {SIZES.d_model}, "
        f"vocabulary "
        f"{SIZES.vocab_size} (padded to {SIZES.padded_vocab_size}), in float64.\n"
        "Loss and largest gradients of each tensor: relative difference from GPT-2 by hand "
        "(lmsmith/reference/gpt2.py)."
    )
    rows = [
        ["loss", *(_cell(engine.loss, engine.tolerance) for engine in found)],
        *(
            [name, *(_cell(engine.gradients[name], engine.tolerance) for engine in found)]
            for name in found[0].gradients
        ),
        ["allowed", *(f"{engine.tolerance:.0e} " for engine in found)],
    ]
    table(console, ("", *(engine.engine + " " for engine in found)), rows)
    if agree:
        console.print("All agree.")
        return 0
    wrong = [engine.engine for engine in found if not engine.agrees]
    console.print(
        f"Beyond what is allowed (!): {', '.join(wrong)}. That is a bug in lmsmith or in a "
        f"library it uses."
    )
    return 1


def _finite(difference: float) -> float | None:
    return difference if math.isfinite(difference) else None  # JSON has no NaN


def _cell(difference: float, tolerance: float) -> str:
    return f"{difference:.1e}{' ' if difference <= tolerance else '!'}"
