"""Time until commands do something useful.

    python benchmarks/startup.py train tinyshakespeare.txt [--rounds 3]
    python benchmarks/startup.py generate RUN [--rounds 7]
    python benchmarks/startup.py first RUN

`train`: Shakespeare by characters to a validation loss of 1.88, from start to exit, by phase (the
recipe of `shakespeare.py`, without nanoGPT). `generate`: the time to the first token beyond
importing torch (`first_token.py`). `first`: each command with an empty cache of compiled code, and
again with what the first run has written there.

Each measurement is a process of its own, one after the other. Reports medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import first_token
import phases

RECIPE = Path(__file__).parent.parent / "recipes" / "shakespeare-char.toml"
PORT = 18473
SETTLE_SECONDS = 6.0


def train(text: Path, rounds: int) -> None:
    """Prints the median seconds of each phase and of the whole command."""
    times: dict[str, list[float]] = {}
    for seed in range(1, rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder) / "phases"
            command = phases.command(
                log,
                *("train", str(RECIPE), str(text), "--stop-at-val-loss", "1.88"),
                *("--seed", str(seed), "--out", f"{folder}/run"),
            )
            began = time.monotonic()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            total = time.monotonic() - began
            found = {name: sum(b - a for a, b in calls) for name, calls in phases.read(log).items()}
        found["everything else"] = total - sum(found.values())
        for name, seconds in (found | {"the whole command": total}).items():
            times.setdefault(name, []).append(seconds)
    for name, seconds_of in times.items():
        low, high = min(seconds_of), max(seconds_of)
        print(f"{name:22} {statistics.median(seconds_of):5.2f} s ({low:.2f} to {high:.2f})")


def generate(run: Path, rounds: int) -> None:
    """Prints the time to the first token beyond torch's import."""
    beyond = []
    for number in range(rounds + 1):
        alone = first_token.import_torch()
        seconds = first_token.first_token(run)
        if number:  # the first round compiles and reads files into the page cache
            beyond.append(seconds - alone)
    print(
        f"first token {statistics.median(beyond):.2f} s beyond importing torch "
        f"({min(beyond):.2f} to {max(beyond):.2f})"
    )


def first(run: Path) -> None:
    """Prints the time of each command with an empty and with a filled cache."""
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text("Once upon a time there was a little dog. " * 2000, encoding="utf-8")
        learn = ["tokenizer", "train", str(text), "--vocab-size", "400", "--out"]
        commands: dict[str, Callable[[int], float]] = {
            "tokenizer train": lambda n: _whole([*learn, f"{folder}/tokens-{n}"]),
            "generate, first token": lambda n: first_token.first_token(run),
            "serve, ready": lambda n: _ready(run),
        }
        for name, measure in commands.items():
            # Its own folder: processes that compile for later may outlive the command.
            os.environ["NUMBA_CACHE_DIR"] = str(Path(folder) / "cache" / name)
            cold = measure(1)
            time.sleep(SETTLE_SECONDS)
            warm = measure(2)
            print(f"{name:22} {cold:5.1f} s with an empty cache, {warm:4.1f} s later")


def _whole(arguments: list[str]) -> float:
    began = time.monotonic()
    command = [sys.executable, "-m", "lmsmith", *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.monotonic() - began


def _ready(run: Path) -> float:
    """Seconds until the server answers."""
    command = [sys.executable, "-m", "lmsmith", "serve", str(run), "--port", str(PORT)]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/v1/models", timeout=5):
                        return time.monotonic() - began
                except OSError:
                    time.sleep(0.05)
        finally:
            process.terminate()
    sys.exit("the server has ended")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("train", "generate", "first"))
    parser.add_argument("path", type=Path, help="the text, or a run")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "train":
        train(options.path, options.rounds)
    elif options.what == "generate":
        generate(options.path, options.rounds)
    else:
        first(options.path)


if __name__ == "__main__":
    main()
