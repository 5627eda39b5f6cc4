"""Runs a command of lmsmith and notes when each of its phases begins and ends.

    python benchmarks/phases.py LOG COMMAND ARGUMENT...

Each line of LOG is a JSON list: the phase, its begin and its end as time.monotonic(), which all
processes share. `memory.py` and `startup.py` use it.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

PHASES = {
    # name: function, as "module:function" or "module:Class.method", where it is looked up
    "stories": "lmsmith.demo:write_stories",
    "measure products": "lmsmith.train.start:survey",
    "tokenize": "lmsmith.train.start:prepare_run",
    "choose sizes": "lmsmith.train.start:resolve",
    "build model": "lmsmith.train.start:new_training",
    "start hooks": "lmsmith.train.hooks.order:Hooks.start",
    "step": "lmsmith.train.loop:Training._step",
    "evaluate": "lmsmith.train.hooks.evaluate:Evaluate.score",
    "save": "lmsmith.train.hooks.checkpoint:Checkpoints.save",
    "sample": "lmsmith.train.hooks.sample:Sample._sample",
    "compressors": "lmsmith.train.finish:compressed_bits_per_byte",
    "entropy of the stories": "lmsmith.demo:source_bits_per_byte",
    "report": "lmsmith.report.runs:write_report",
}
STEPS = "LMSMITH_BENCHMARK_STEPS"
"""With this variable, runs choose sizes as on a fast machine and end after so many steps."""
# With these, `lmsmith demo` chooses three layers of width 192, as on a quiet machine with bfloat16.
SECONDS, FLOPS = 80.0, 6e11


def command(log: Path, *arguments: str) -> list[str]:
    """The command line that runs `lmsmith ARGUMENTS` and writes `log`."""
    return [sys.executable, __file__, str(log), *arguments]


def read(log: Path) -> dict[str, list[tuple[float, float]]]:
    """Begin and end of each call of each phase, in the order in which phases first begin."""
    phases: dict[str, list[tuple[float, float]]] = {}
    for name, began, ended in sorted(
        map(json.loads, log.read_text().splitlines()), key=lambda line: line[1]
    ):
        phases.setdefault(name, []).append((began, ended))
    return phases


def main() -> None:
    from lmsmith.__main__ import spin_briefly

    spin_briefly()
    log, *arguments = sys.argv[1:]
    began = time.monotonic()
    with Path(log).open("w", buffering=1) as file:
        for name, where in PHASES.items():
            module, _, path = where.partition(":")
            *parents, attribute = path.split(".")
            owner = functools.reduce(getattr, parents, importlib.import_module(module))
            setattr(owner, attribute, _noted(getattr(owner, attribute), name, file))
        file.write(json.dumps(["import", began, time.monotonic()]) + "\n")
        if STEPS in os.environ:
            _limit_steps(int(os.environ[STEPS]))
        from lmsmith.cli import run

        status = run(arguments, started=began)
    sys.exit(status)


def _limit_steps(n: int) -> None:
    from lmsmith.train import start

    resolve = start.resolve

    def resolved(config: Any, given: Any, corpus: Any, machine: Any, *_: Any) -> Any:
        found = resolve(config, given, corpus, replace(machine, flops=FLOPS), SECONDS)
        changes = {"train.steps": n, "train.eval_every": max(1, n // 3), "train.minutes": 0}
        return found.changed(changes, where="the benchmark")

    start.resolve = resolved  # type: ignore[assignment]


def _noted(function: Callable[..., Any], name: str, file: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        began = time.monotonic()
        try:
            return function(*arguments, **options)
        finally:
            file.write(json.dumps([name, began, time.monotonic()]) + "\n")

    return call


if __name__ == "__main__":
    main()
