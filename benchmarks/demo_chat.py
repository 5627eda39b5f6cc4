"""`lmsmith demo --chat` seed by seed: right answers to held-out questions after each stage.

    python benchmarks/demo_chat.py [--seeds 5] [--sft] [--minutes 1.8] [--out FOLDER]

For each seed: the base model trains for `--minutes`, as `lmsmith demo --chat` does, with this seed;
then the stages of `lmsmith.demo_chat` follow, with their own time. Prints the table of each
seed, and how many seeds answer at least 80% of the questions after SFT. A seed takes about four
minutes; `--sft` stops after SFT, which gets its usual time, and takes less than three.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

from rich.console import Console

from lmsmith import demo_chat
from lmsmith.demo import demo

GOAL = 0.8


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--seeds", type=int, default=5, help="number of seeds (5)")
    options.add_argument("--minutes", type=float, default=1.8, help="of the base model (1.8)")
    options.add_argument("--sft", action="store_true", help="only SFT, without DPO and RL")
    options.add_argument("--first", type=int, default=1, help="the first seed")
    options.add_argument("--out", type=Path, default=Path("demo_chat"))
    given = options.parse_args()
    quiet, good, minutes = Console(quiet=True), 0, demo_chat.MINUTES
    if given.sft:
        stage = demo_chat.STAGES[0]
        minutes *= stage.share
        demo_chat.STAGES = (dataclasses.replace(stage, share=1.0),)
    for seed in range(given.first, given.first + given.seeds):
        folder = given.out / f"seed-{seed}"
        demo_chat.SEED = seed
        base, _ = demo(
            folder, given.minutes, console=quiet, started=time.monotonic(), chat=True, seed=seed
        )
        began, cpu = time.monotonic(), time.process_time()
        _, _, ladder = demo_chat.climb(base, folder, console=quiet, minutes=minutes)
        wall, cpu = time.monotonic() - began, time.process_time() - cpu
        steps = json.loads((folder / "chat" / "summary.json").read_text("utf-8"))["steps"]
        print(
            f"seed {seed}: after the base {wall:.0f} s, {cpu:.0f} CPU seconds, {steps:,} SFT steps"
        )
        print(demo_chat.shown(ladder), flush=True)
        good += next(one for one in ladder if one.stage == "SFT").accuracy["all"] >= GOAL
    print(f"at least {GOAL:.0%} after SFT: {good} seeds of {given.seeds}")


if __name__ == "__main__":
    main()
