"""Mutation testing: does a test fail if one line of the numeric core is wrong?

    python -m pytest -p reach --reach build/reach.json       which tests execute which lines, once
    python tests/mutation/run.py --sample 72 --reach build/reach.json
    python tests/mutation/run.py lmsmith/loss.py --line 40   all mutants of a file, or of a line

(`-p reach` needs the package coverage, and tests/mutation on PYTHONPATH.) Each mutant changes one
line in a copy of the project (`mutants.py` lists the kinds of changes). With --reach, the tests that
execute the line run, the quickest first, until one fails; without, the tests beside the file do.
--sample takes as many mutants from each part of the core (`core.py`), chosen by --seed.

A survivor is either a missing test or a change that makes no difference. A person decides which:
`equivalents.py` lists the latter with their reasons, and the score leaves them out. Status 1 if a
mutant survives that is not listed there.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from core import PARTS, Change, changes, files_of, sample
from nearest import Reach, beside, in_processes
from trial import Trial, Workbench

FIRST = 40  # tests of the first group; most mutants need no second one
SECONDS, CPU_SECONDS = 3600.0, 90  # a mutant whose tests take more is detected: they do not end


def interval(n_detected: int, n: int) -> tuple[float, float]:
    """The 95% interval of Wilson (1927) for a share."""
    z, share = 1.959964, n_detected / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def groups_for(change: Change, reach: Reach | None, limit: float) -> list[list[str]]:
    """Groups of tests, the most promising first."""
    if reach is None:
        return beside(change.file)
    tests = reach.within(reach.tests(change), limit)
    groups = (tests[:FIRST], tests[FIRST:], in_processes(change.file))
    return [group for group in groups if group]


def report(trials: Sequence[Trial]) -> list[Trial]:
    """Prints the score and the survivors, and returns those that are not known equivalents."""
    known = [one for one in trials if one.change.equivalent and not one.detected]
    decided = [one for one in trials if one not in known]
    survivors = [one for one in decided if not one.detected]
    n = len(decided)
    if n:
        low, high = interval(n - len(survivors), n)
        print(
            f"\n{n - len(survivors)} of {n} detected: {1 - len(survivors) / n:.1%} "
            f"(95% interval {low:.1%} to {high:.1%}); {len(known)} more make no difference"
        )
    for one in survivors:
        print(f"SURVIVED    {one.change}")
    for one in known:
        print(f"equivalent  {one.change}: {one.change.equivalent}")
    return survivors


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="files to mutate (default: the numeric core)")
    parser.add_argument("--line", type=int, default=0, help="only this line")
    parser.add_argument("--sample", type=int, default=0, help="try this many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=PARTS, action="append", help="sample from this part only")
    parser.add_argument("--reach", type=Path, nargs="+", help="what reach.py recorded")
    parser.add_argument("--limit", type=float, default=20.0, help="CPU seconds of tests a mutant")
    parser.add_argument("--list", action="store_true", help="print the mutants, run no tests")
    options = parser.parse_args()
    parts = options.part or list(PARTS)
    if options.sample:
        found = sample(options.sample, options.seed, parts)
    else:
        files = options.files or [file for part in parts for file in files_of(part)]
        found = [one for file in files for one in changes(file, options.line)]
    if options.list:
        print(*found, sep="\n")
        return 0
    reach = Reach(options.reach) if options.reach else None
    trials = []
    with Workbench(SECONDS, CPU_SECONDS) as bench:
        for change in found:
            groups = [] if change.equivalent else groups_for(change, reach, options.limit)
            trials.append(bench.tried(change, groups))
            verdict = trials[-1].detected or ("equivalent" if change.equivalent else "SURVIVED")
            print(f"{change}\n    {verdict} ({trials[-1].seconds:.0f} s)", flush=True)
        detecting = {one.detected for one in trials if "::" in one.detected}
        wrong = bench.unchanged(sorted(detecting)) if detecting else ""
    if wrong:
        print(f"{wrong} fails without any mutant, so the results do not count")
        return 2
    return 1 if report(trials) else 0


if __name__ == "__main__":
    sys.exit(main())
