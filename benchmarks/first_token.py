"""Time from the start of `lmsmith generate` to its first token, beside the time to import torch.

    python benchmarks/first_token.py RUN [--rounds 7]

Each is a process of its own; they take turns. The first round compiles and reads files into the
page cache, and is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

PROMPT = "Once"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("run", type=Path)
    options.add_argument("--rounds", type=int, default=7)
    given = options.parse_args()
    times: dict[str, list[float]] = {"import torch": [], "first token": []}
    for number in range(given.rounds + 1):
        for name, seconds in (
            ("import torch", import_torch()),
            ("first token", first_token(given.run)),
        ):
            if number:
                times[name].append(seconds)
    for name, found in times.items():
        print(f"{name:14} {statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f})")
    beyond = [b - a for a, b in zip(*times.values(), strict=True)]
    print(f"beyond torch   {statistics.median(beyond):.2f} s")


def import_torch() -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - began


def first_token(run: Path) -> float:
    """Seconds until the process has written something after the prompt."""
    command = [sys.executable, "-m", "lmsmith", "generate", str(run), PROMPT, "--max-tokens", "20"]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        written = b""
        while len(written) <= len(PROMPT):
            more = os.read(process.stdout.fileno(), 1 << 16)
            assert more, "the run generated no text"
            written += more
        seconds = time.perf_counter() - began
        process.stdout.read()
    return seconds


if __name__ == "__main__":
    main()
