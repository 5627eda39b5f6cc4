"""The command that checks lmsmith's correctness on this machine."""

from __future__ import annotations

import argparse
import difflib
import math
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from lmsmith import __version__
from lmsmith.cli.console import table
from lmsmith.cli.grammar import Verbs
from lmsmith.errors import UsageError
from lmsmith.strict_json import to_json

if TYPE_CHECKING:
    from lmsmith.verify import Outcome


def add(verbs: Verbs) -> None:
    verify = verbs.verb(
        "verify",
        _verify,
        "check on this machine that different ways to compute the same thing agree",
        "lmsmith verify",
    )
    verify.add_argument(
        "names", nargs="*", metavar="NAME", help='only these, such as "resume" (default: all)'
    )
    verify.add_argument(
        "--full",
        action="store_true",
        help="more sizes, seeds, texts and places to stop; about twice as long",
    )
    verify.add_argument(
        "--gradients",
        action="store_true",
        help="print a table of GPT-2's gradients, tensor by tensor, from four implementations and "
        "from finite differences",
    )
    verify.add_argument(
        "--device",
        choices=("cpu", "cuda"),
        default="cpu",
        help="where models compute (default: cpu). On cuda the bounds are its own, and programs "
        "that exist only for the CPU run there as well",
    )
    verify.add_argument("--json", action="store_true", help="print one JSON object")


def _verify(options: argparse.Namespace, console: Console, started: float) -> int:
    """Prints each outcome as soon as it is measured. Status 1 if one is above its bound."""
    if options.gradients:
        return _gradients(options, console)
    import torch

    from lmsmith import verified
    from lmsmith.verify import EQUIVALENCES, run

    for name in options.names:
        if name not in EQUIVALENCES:
            near = difflib.get_close_matches(name, EQUIVALENCES, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise UsageError(
                f"there is no equivalence {name!r}. {hint}The names are {', '.join(EQUIVALENCES)}."
            )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: PyTorch finds no CUDA device on this machine.")
    if not options.json:
        console.print("Two ways to compute the same thing, and their largest difference (bound):")
    outcomes = []
    for outcome in run(options.names or None, full=options.full, device=options.device):
        outcomes.append(outcome)
        if not options.json:
            console.print(_line(outcome), soft_wrap=True)
    result = verified.receipt(__version__, [outcome.as_dict() for outcome in outcomes])
    if not options.names:
        verified.keep(result)  # reports show the latest one
    if options.json:
        print(to_json(result))
        return 0 if result["agree"] else 1
    wrong = [outcome for outcome in outcomes if not outcome.agrees]
    n_skipped = sum(outcome.skipped for outcome in outcomes)
    seconds = sum(outcome.seconds for outcome in outcomes)
    skipped = f", {n_skipped} skipped" if n_skipped else ""
    console.print(
        f"{len(outcomes) - len(wrong) - n_skipped} of {len(outcomes)} hold{skipped}, in "
        f"{seconds:.0f} s.\nHash {result['hash']} of version, machine and results.",
        highlight=False,
    )
    for outcome in wrong:
        if outcome.problem:
            console.print(f"{outcome.name}: {outcome.problem}", highlight=False, markup=False)
    ended = [outcome.name for outcome in wrong if outcome.problem]
    above = [outcome.name for outcome in wrong if not outcome.problem]
    if ended:
        console.print(
            f"Ended by an error: {', '.join(ended)}. If the error is about this machine, such as a "
            "full disk, correct that and try again. Otherwise please report it with this output.",
            highlight=False,
        )
    if above:
        console.print(
            f"Above the bound: {', '.join(above)}. This is a bug in lmsmith or in a library it "
            "uses: please report it with this output.",
            highlight=False,
        )
    return 1 if wrong else 0


def _line(outcome: Outcome) -> Text:
    """Verdict, name, measured difference and what was compared."""
    if outcome.skipped:
        return Text.assemble(("skip", "dim"), f"  {outcome.name:<20} {outcome.problem}")
    measured = f"{outcome.difference:.1e} ({outcome.bound:.0e})"
    if outcome.problem:
        measured = "an error"  # which is printed below all lines
    elif outcome.bound == 0:
        measured = "equal" if outcome.agrees else "not equal"
    verdict = ("  ok", "green") if outcome.agrees else ("FAIL", "red")
    return Text.assemble(verdict, f"  {outcome.name:<20} {measured:<15}  {outcome.what}")


def _gradients(options: argparse.Namespace, console: Console) -> int:
    """Prints a table of the gradients of GPT-2, tensor by tensor."""
    from lmsmith.verify.gradients import SIZES, compare_gradients

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
