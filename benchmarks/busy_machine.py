"""Tokens per second of a run while 0, 1 or 2 other processes keep cores busy.

    python benchmarks/busy_machine.py tinyshakespeare.txt

Each contestant is the complete command `lmsmith train` with default settings. While it trains,
other processes keep cores busy; they end by themselves. The contestants take turns:

- `before`: two threads at all times, with libgomp's own spin count;
- `spins`: two threads at all times, with lmsmith's lower spin count;
- `now`: lmsmith's defaults.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

FIXED = ["--train.yield_cores", "no"]
CONTESTANTS: dict[str, tuple[dict[str, str], list[str]]] = {
    "before": ({"GOMP_SPINCOUNT": "300000"}, FIXED),
    "spins": ({}, FIXED),
    "now": ({}, []),
}
SETTLE_SECONDS = 2.0  # wait after a change of load
BUSY = "import sys, time\nend = time.time() + float(sys.argv[1])\nwhile time.time() < end: pass"


@contextmanager
def busy(n: int, seconds: float) -> Iterator[None]:
    """Runs `n` processes that each keep a core busy, for at most `seconds`."""
    others = [subprocess.Popen([sys.executable, "-c", BUSY, str(seconds)]) for _ in range(n)]
    try:
        yield
    finally:
        for other in others:
            other.terminate()
            other.wait()


class Run:
    """A run of `lmsmith train`, with the number of tokens it has seen."""

    def __init__(self, text: Path, folder: Path, contestant: str, extra: list[str]) -> None:
        environment, options = CONTESTANTS[contestant]
        project = str(Path(__file__).resolve().parent.parent)
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP_", "OMP_"))}
        command = [
            sys.executable,
            "-m",
            "lmsmith",
            "train",
            str(text),
            "--out",
            str(folder / "run"),
        ]
        command += ["--steps", "1000000", "--train.eval_every", "1000000", "--train.log_every", "1"]
        self.process = subprocess.Popen(
            [*command, *options, *extra],
            env=clean | {"PYTHONPATH": project} | environment,
            stdout=subprocess.DEVNULL,
        )
        metrics = folder / "run" / "metrics.jsonl"
        while not metrics.exists():
            if self.process.poll() is not None:
                raise SystemExit(f"the run ended with exit status {self.process.returncode}")
            time.sleep(0.05)
        self._file, self._partial = metrics.open(encoding="utf-8"), ""

    def _lines(self) -> list[str]:
        """New complete lines; keeps an incomplete last line for later."""
        *lines, self._partial = (self._partial + self._file.read()).split("\n")
        return lines

    def tokens_per_second(self, seconds: float) -> float:
        """Measured by wall time between log lines, after SETTLE_SECONDS."""
        seen: list[tuple[float, int]] = []
        end = time.monotonic() + SETTLE_SECONDS + seconds
        while time.monotonic() < end:
            for line in self._lines():
                record = json.loads(line)
                if record["kind"] != "train":
                    print(f"         step {record['step']}: {record['message']}")
                elif time.monotonic() > end - seconds:
                    seen.append((time.monotonic(), record["tokens"]))
            time.sleep(0.01)
        return (seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0]) if len(seen) > 1 else 0.0

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="seconds per measurement")
    parser.add_argument(
        "--loads", type=int, nargs="+", default=[0, 1, 2], help="numbers of busy processes"
    )
    parser.add_argument("--contestants", nargs="+", default=["before", "now"], choices=CONTESTANTS)
    options, extra = parser.parse_known_args()
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(options.rounds):
        for contestant in options.contestants:
            with tempfile.TemporaryDirectory() as folder:
                run = Run(options.text, Path(folder), contestant, extra)
                try:
                    for load in options.loads:
                        with busy(load, options.seconds + 10 * SETTLE_SECONDS):
                            rate = run.tokens_per_second(options.seconds)
                        rates.setdefault((contestant, load), []).append(rate)
                        print(f"{contestant:8} {load} busy {rate:10,.0f} tokens/s", flush=True)
                finally:
                    run.stop()
    report(rates, options.contestants, options.loads)


def report(
    rates: dict[tuple[str, int], list[float]], contestants: list[str], loads: list[int]
) -> None:
    first = contestants[0]
    print(f"\n| busy processes | {' | '.join(contestants)} | times |")
    print("|---" * (len(contestants) + 2) + "|")
    for load in loads:
        medians = [statistics.median(rates[contestant, load]) for contestant in contestants]
        pairs = zip(rates[first, load], rates[contestants[-1], load], strict=True)
        ratios = sorted(after / max(before, 1e-9) for before, after in pairs)
        cells = [f"{median:,.0f}" for median in medians]
        times = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        print(f"| {load} | {' | '.join(cells)} | {times} |")


if __name__ == "__main__":
    main()
