"""Peak memory of commands and of their phases.

    python benchmarks/memory.py demo [--minutes 0.7]    the demo, phase by phase
    python benchmarks/memory.py train [--preset gpt2]   training steps beside the plan's prediction
    python benchmarks/memory.py load [--preset gpt2]    a model for use beside the size of its file

Linux only. Each measurement is a process of its own. Its resident memory (RSS) is read every five
milliseconds, with the part that belongs to mapped files: libraries, and weights that are read from
a file. The kernel can drop these pages at any time. The rest is called anonymous: the heap. Child
processes are watched, too, and the largest process is named.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

MB = 1e6
STEPS = "LMSMITH_BENCHMARK_STEPS"
SECONDS, FLOPS = 80.0, 3.5e11  # time and speed for which a run with --steps chooses its sizes

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


@dataclass
class Watched:
    """Memory of a process over time. Times are those of time.monotonic()."""

    command: str
    times: list[float] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    anonymous: list[int] = field(default_factory=list)

    @property
    def peak(self) -> int:
        return max(self.resident, default=0)

    @property
    def peak_anonymous(self) -> int:
        return max(self.anonymous, default=0)


def watch(command: list[str], **options: Any) -> list[Watched]:
    """Runs a command; returns its processes, the largest first. Exits if the command fails."""
    process = subprocess.Popen(command, **options)
    found: dict[int, Watched] = {}

    def look() -> None:
        while process.poll() is None:
            for pid in _tree(process.pid):
                with contextlib.suppress(OSError, ValueError, IndexError):
                    _add(found, pid)
            time.sleep(0.005)

    watcher = threading.Thread(target=look)
    watcher.start()
    if process.wait():
        sys.exit(f"{' '.join(command)} failed")
    watcher.join()
    return sorted(found.values(), key=lambda one: -one.peak)


def _tree(pid: int) -> Iterator[int]:
    yield pid
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from _tree(int(child))


def _add(found: dict[int, Watched], pid: int) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    _, resident, of_files, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    if pid not in found:
        words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
        found[pid] = Watched(" ".join(words)[:60])
    found[pid].times.append(time.monotonic())
    found[pid].resident.append(page * resident)
    found[pid].anonymous.append(page * (resident - of_files))


def traced(log: str, arguments: list[str]) -> None:
    """Runs `lmsmith ARGUMENTS` and writes when each phase begins and ends to the file `log`."""
    from lmsmith.__main__ import spin_briefly

    spin_briefly()
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
    """Makes runs choose their sizes as in 80 s on a fast machine, and end after n steps."""
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


def by_phase(process: Watched, log: Path) -> None:
    """Prints the peak of each phase, in the order in which they first begin."""
    phases: dict[str, list[tuple[float, float]]] = {}
    for line in sorted(map(json.loads, log.read_text().splitlines()), key=lambda one: one[1]):
        phases.setdefault(line[0], []).append((line[1], line[2]))
    print(f"{'phase':24} {'calls':>6} {'s':>7} {'before':>8} {'peak':>8} {'after':>8}  MB")
    samples = list(zip(process.times, process.resident, strict=True))
    for name, times in phases.items():
        inside = [size for at, size in samples if any(a <= at <= b for a, b in times)]
        before = [size for at, size in samples if at < times[0][0]]
        seconds = sum(b - a for a, b in times)
        first, peak = before[-1] if before else 0, max(inside, default=0)
        last = inside[-1] if inside else 0
        sizes = "".join(f" {size / MB:8.0f}" for size in (first, peak, last))
        print(f"{name:24} {len(times):6} {seconds:7.2f}{sizes}")


def demo(minutes: float, steps: int) -> None:
    """The peak of `lmsmith demo`. `steps`: its length; 0: what `minutes` allow."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "phases"
        arguments = ["demo", "--out", f"{folder}/demo", "--minutes", str(minutes)]
        command = [sys.executable, __file__, "traced", str(log), *arguments]
        limit = {STEPS: str(steps)} if steps else {}
        processes = watch(command, stdout=subprocess.DEVNULL, env=os.environ | limit)
        by_phase(processes[0], log)
        for one in processes[:3]:
            print(
                f"peak {one.peak / MB:.0f} MB, anonymous {one.peak_anonymous / MB:.0f} MB: "
                f"{one.command}"
            )


def main() -> None:
    if sys.argv[1:2] == ["traced"]:
        traced(sys.argv[2], sys.argv[3:])
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("demo", "train", "load"))
    parser.add_argument("--minutes", type=float, default=1.8)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--preset", default="gpt2")
    options = parser.parse_args()
    if options.what == "demo":
        demo(options.minutes, options.steps)


if __name__ == "__main__":
    main()
