"""Mutation testing: does a test fail if one line of the numeric core is wrong?

    python tests/mutation/run.py --sample 20                    20 mutants, chosen by --seed
    python tests/mutation/run.py lmsmith/loss.py                all mutants of a file
    python tests/mutation/run.py lmsmith/loss.py --line 40      those of a line

Each mutant changes one line in a copy of the project (`mutants.py` lists the kinds of changes) and
runs the tests beside that file; with `--suite`, survivors also face the whole default suite. A
survivor is either a missing test or a change that makes no difference, which a person must decide.
Prints one line per mutant, the survivors at the end, and the share that was detected.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mutants import Mutant, mutants

ROOT = Path(__file__).resolve().parent.parent.parent
CORE: dict[str, tuple[str, ...]] = {
    "lmsmith/loss.py": ("tests/test_loss.py", "tests/train/test_step.py"),
    "lmsmith/optim/*.py": ("tests/optim", "tests/train/test_step.py"),
    "lmsmith/models/*.py": ("tests/models", "tests/test_loss.py", "tests/generate"),
    "lmsmith/data/batches/*.py": ("tests/data/batches", "tests/train/test_document_modes.py"),
    "lmsmith/checkpoint.py": ("tests/test_checkpoint.py", "tests/train"),
    "lmsmith/train/step.py": ("tests/train",),
    "lmsmith/train/state.py": ("tests/train",),
    "lmsmith/train/guard.py": ("tests/train",),
    "lmsmith/generate/*.py": ("tests/generate", "tests/models"),
    "lmsmith/evaluate/*.py": ("tests/evaluate",),
    "lmsmith/tokens/bpe.py": ("tests/tokens",),
    "lmsmith/tokens/bpe_train.py": ("tests/tokens",),
    "lmsmith/tokens/merge.py": ("tests/tokens",),
}
"""The numeric core: patterns of files -> the tests beside them, run first."""

SECONDS = 400.0  # a mutant that runs longer than this is detected: it does not end


@dataclass(frozen=True)
class Result:
    """A mutant and the test that detected it; empty if none did."""

    file: str
    mutant: Mutant
    text: str  # the line before the change
    detected: str
    seconds: float

    def __str__(self) -> str:
        change = f"{self.mutant.old} -> {self.mutant.new}"
        verdict = f"detected by {self.detected}" if self.detected else "SURVIVED"
        place = f"{self.file}:{self.mutant.line}:{self.mutant.start}"
        return f"{place}  {change}  {verdict} ({self.seconds:.0f} s)   | {self.text.strip()[:90]}"


def core_files() -> dict[str, tuple[str, ...]]:
    """The files of the numeric core and their tests."""
    return {
        str(path.relative_to(ROOT)): tests
        for pattern, tests in CORE.items()
        for path in sorted(ROOT.glob(pattern))
        if path.name not in ("__init__.py", "bench.py", "subject.py")
    }


def chosen(files: Sequence[str], line: int, n: int, seed: int) -> list[tuple[str, Mutant]]:
    """The mutants to try: all of `files` (default: of the core), or a sample of `n` of them.

    A sample takes a file first and a mutant of it second, so that long files do not fill it.
    """
    by_file = {
        name: [one for one in mutants((ROOT / name).read_text("utf-8")) if line in (0, one.line)]
        for name in files or core_files()
    }
    if not n:
        return [(name, one) for name, found in by_file.items() for one in found]
    rng = random.Random(seed)
    names = [name for name, found in by_file.items() if found]
    return [(name, rng.choice(by_file[name])) for name in rng.choices(names, k=n)]


def tried(file: str, mutant: Mutant, tests: Sequence[str], suite: bool) -> Result:
    """Runs the tests on a copy of the project with the mutant."""
    source, began = (ROOT / file).read_text("utf-8"), time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "project"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "__pycache__"))
        (copy / file).write_text(mutant.applied(source), "utf-8")
        detected = ""
        for group in [tests, *([("tests",)] if suite else [])]:
            detected = detected or _first_failure(copy, group)
    line = source.splitlines()[mutant.line - 1]
    return Result(file, mutant, line, detected, time.monotonic() - began)


def _first_failure(copy: Path, tests: Sequence[str]) -> str:
    """The first test that fails, or "" if none does."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    data = os.environ.get("LMSMITH_TEST_DATA", str(ROOT.parent / "shared" / "data"))
    environment = {**os.environ, "PYTHONPATH": str(copy), "LMSMITH_TEST_DATA": data}
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        return "a test that does not end"
    if done.returncode == 0:
        return ""
    lines = done.stdout.splitlines()
    failed = [line.split(" ")[1] for line in lines if line.startswith(("FAILED", "ERROR"))]
    return failed[0] if failed else f"exit status {done.returncode}"


def results(found: Sequence[tuple[str, Mutant]], *, suite: bool, at_once: int) -> Iterator[Result]:
    """Tries mutants in parallel; yields their results in order."""
    tests = core_files()
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(
            lambda pair: tried(pair[0], pair[1], tests.get(pair[0], ("tests",)), suite), found
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", help="files to mutate (default: the numeric core)")
    parser.add_argument("--line", type=int, default=0, help="only this line")
    parser.add_argument("--sample", type=int, default=0, help="try this many mutants")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--suite", action="store_true", help="survivors face all default tests")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    found = chosen(options.files, options.line, options.sample, options.seed)
    survivors, n = [], 0
    for result in results(found, suite=options.suite, at_once=options.at_once):
        print(result, flush=True)
        n += 1
        survivors += [] if result.detected else [result]
    print(f"\n{n - len(survivors)} of {n} detected ({1 - len(survivors) / max(1, n):.1%})")
    for result in survivors:
        print(result)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
