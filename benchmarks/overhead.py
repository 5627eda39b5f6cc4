"""Overhead of a training step beyond its arithmetic: data, schedule, clipping, guards, logging, the
loop itself.

    python benchmarks/overhead.py [--blocks 12] [--updates 10] [--threads 0]

Trains babyGPT (6 layers, 384 wide, batch 8 x 256, no dropout) with the loop of `lmsmith train`.
Between blocks of its steps, a hook makes the same number of bare steps on one batch in memory:
forward, backward and the optimizer, without even the gradient norm. Each block is compared with the
bare one before it, so that a change of machine speed affects both.

Then reports the time within each part, as a share of the blocks. The time that the reading thread
takes from the other cores is part of the difference, not of the parts.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

import lmsmith.train.step as step_module
from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.data.batches.read_ahead import ReadAhead
from lmsmith.data.corpus import Corpus, Counts
from lmsmith.tokens.tokenizer import CharTokenizer
from lmsmith.train.device import set_up_process, survey
from lmsmith.train.guard import Guard
from lmsmith.train.hooks import Context, Hook
from lmsmith.train.log import MetricsFile, Progress
from lmsmith.train.loop import Training

PARTS: tuple[tuple[str, Any, str], ...] = (
    ("data: rows", ReadAhead, "rows"),
    ("data: arrays to tensors", step_module, "to_device"),
    ("schedule", step_module, "learning_rate_share"),
    ("gradient norm", step_module, "norm_of"),
    ("clipping", step_module, "clip"),
    ("guard", Guard, "judge"),
    ("logging: metrics.jsonl", MetricsFile, "write"),
    ("logging: progress", Progress, "update"),
)


class Timed(Hook):
    """Makes bare steps between blocks of the loop's steps, and records the seconds of
    each block.
    """

    def __init__(self, n_steps: int) -> None:
        self.every = n_steps
        self.ours: list[float] = []
        self.bare: list[float] = []
        self.within: Counter[str] = Counter()
        self._began = 0.0
        for name, owner, function in PARTS:
            setattr(owner, function, self._timed(name, getattr(owner, function)))

    def on_start(self, context: Context) -> None:
        batch = context.batches.rows(0)
        self.inputs, self.targets = torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
        self._bare_block(context)

    def after_step(self, context: Context) -> None:
        self.ours.append(time.perf_counter() - self._began)
        self._bare_block(context)

    def _bare_block(self, context: Context) -> None:
        replica, began = context.replica, time.perf_counter()
        for _ in range(self.every):
            with replica.autocast():
                loss = replica.summed_loss(self.inputs, self.targets)
            (loss / self.targets.numel()).backward()
            replica.optimizers.step(0.1)
        self.bare.append(time.perf_counter() - began)
        self._began = time.perf_counter()

    def _timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.within[name] += time.perf_counter() - began

        return timed


def corpus() -> Corpus:
    """A million random characters from 65; their values do not affect the time."""
    letters = "".join(map(chr, range(48, 113)))
    tokenizer = CharTokenizer.learn([letters], False)
    ids = np.random.default_rng(0).integers(0, len(letters), 1_000_000).astype(np.uint16)
    return Corpus(ids, ids[:1000], tokenizer, Counts(len(ids), 1000, 1000, 0, 0, ()))


def babygpt(n_steps: int, threads: int, clip_norm: float) -> RunConfig:
    changes = {
        "model.vocab_size": 65,
        "model.dropout": 0.0,
        "model.attention_dropout": 0.0,
        "train.batch_size": 8,
        "train.steps": n_steps,
        "train.threads": threads,
        "train.device": "cpu",
        "train.on_spike": "skip",
        "train.spike_z": 1e9,
        "optim.clip_norm": clip_norm,
        # As often as in a run of two thousand steps; nothing else happens between steps.
        "train.log_every": 10,
        "train.eval_every": 10**9,
        "train.save_every": 10**9,
    }
    return preset("babygpt").changed(changes, where="the benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--updates", type=int, default=10, help="steps per block")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    # This clip_norm clips every step.
    config = babygpt(options.blocks * options.updates + 1, options.threads, clip_norm=1e-3)
    machine = survey(config)
    chosen = {
        "train.threads": machine.threads,
        "train.matmul": machine.matmul,
        "train.dtype": machine.dtype,
    }
    config = config.changed(chosen, where="the machine's settings")
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w", encoding="utf-8") as nowhere,
    ):
        run = Path(folder) / "run"
        run.mkdir()
        # With a live progress bar, as in a terminal.
        terminal = Console(file=nowhere, force_terminal=True, width=120)
        set_up_process(machine)
        timed = Timed(options.updates)
        Training(
            config,
            corpus(),
            run,
            terminal,
            device=machine.device,
            peak_flops=machine.flops,
            hooks=[timed],
        ).go()
    report(config, timed)


def report(config: RunConfig, timed: Timed) -> None:
    ours, bare = timed.ours[1:], timed.bare[1 : len(timed.ours)]  # the first blocks allocate memory
    ratios = sorted(one / other for one, other in zip(ours, bare, strict=True))
    n = timed.every
    print(
        f"babyGPT, {config.train.batch_size} x {config.model.context_length}, "
        f"{config.train.dtype}, ",
        end="",
    )
    print(f"{config.train.threads} threads, {len(ours)} blocks of {n} steps")
    print(f"training step     {1000 * statistics.median(ours) / n:8.2f} ms")
    print(f"bare step         {1000 * statistics.median(bare) / n:8.2f} ms")
    ends = f"{ratios[0] - 1:.2%} to {ratios[-1] - 1:.2%}"
    print(f"overhead          {statistics.median(ratios) - 1:8.2%}   (blocks: {ends})")
    total = sum(timed.ours)
    for name, _, _ in PARTS:
        print(f"  {name:<26}{timed.within[name] / total:8.3%}")
    print(f"  {'all parts':<26}{sum(timed.within.values()) / total:8.3%}")


if __name__ == "__main__":
    main()
