"""Speed of reading batches: lmsmith, nanoGPT's method, and what training a model consumes.

    python benchmarks/loader.py [--tokens 100000000]

Writes random tokens of a vocabulary of 50,257 as four shards into a temporary folder and reads them
once, so that they are in the page cache. The contestants take turns; each makes batches as fast as
it can and discards them:

    windows       lmsmith's batches from the four shards: an epoch without repeats, every id checked
                  against the vocabulary
    read ahead    the same through the thread that training uses
    mixed         the same from two sources, with weights 0.7 and 0.3
    nanoGPT's     windows at random positions of one file, memory-mapped again for each batch and
                  assembled row by row

Then trains babyGPT (6 layers, 384 wide, batch 8, context 256) for some steps on all cores, and
compares its tokens per second with the reading speed of batches of the same shape.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from lmsmith.config.presets import preset
from lmsmith.data.batches.read_ahead import ReadAhead
from lmsmith.data.batches.windows import AnyBatches, Batches, Sources
from lmsmith.data.shards import HEADER_BYTES, Shards, write_shard
from lmsmith.machine.limits import n_cores
from lmsmith.models.gpt import GPT
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step

V = 50257
SECONDS = 0.3  # per contestant and round


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--tokens", type=int, default=100_000_000)
    options.add_argument("--rounds", type=int, default=9)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        paths = _write(Path(place), given.tokens)
        for B, T in ((32, 1024), (8, 256)):
            contestants = _contestants(paths, B, T, stack)
            rates = {name: [] for name in contestants}
            for round_ in range(given.rounds + 1):
                for name, batches in contestants.items():
                    found = _rate(batches, B * T)
                    if round_:  # the first round is a warm-up
                        rates[name].append(found)
            print(f"batch {B} x {T}")
            for name, found in rates.items():
                print(f"  {name:12} {_spread(found, 1e6)} million tokens/s")
            ratios = [a / b for a, b in zip(rates["read ahead"], rates["nanoGPT's"], strict=True)]
            print(f"read ahead is {_spread(ratios)} times as fast as nanoGPT's")
    consumed = _babygpt()
    print(f"babyGPT trains on {consumed:,.0f} tokens/s with {n_cores()} threads")
    print(
        f"  its batches are read {statistics.median(rates['read ahead']) / consumed:,.0f} times "
        "as fast"
    )


def _write(folder: Path, n_tokens: int) -> list[Path]:
    paths = [folder / f"x_train_{number:06}.bin" for number in range(4)]
    for path, n in zip(paths, np.full(4, n_tokens // 4), strict=True):
        write_shard(path, np.random.default_rng(n).integers(0, V, n, dtype=np.uint16), V)
        path.read_bytes()
    return paths


def _contestants(
    paths: list[Path], B: int, T: int, stack: ExitStack
) -> dict[str, Iterator[object]]:
    windows = Batches(Shards.open(paths, V), context_length=T, batch_size=B, seed=1)
    two = Sources([Shards.open(paths[:2], V), Shards.open(paths[2:], V)], [0.7, 0.3])
    return {
        "windows": _in_order(windows, B),
        "read ahead": _in_order(stack.enter_context(ReadAhead(windows, lambda step: [(0, B)])), B),
        "mixed": _in_order(Batches(two, context_length=T, batch_size=B, seed=1), B),
        "nanoGPT's": _at_random(paths[0], B, T),
    }


def _in_order(batches: AnyBatches, B: int) -> Iterator[object]:
    step = 0
    while True:
        batch = batches.rows(step, 0, B)
        yield torch.from_numpy(batch.inputs), torch.from_numpy(batch.targets)
        step += 1


def _at_random(path: Path, B: int, T: int) -> Iterator[object]:
    """What nanoGPT's training script does for each batch."""
    while True:
        ids = np.memmap(path, np.uint16, "r", offset=HEADER_BYTES)
        starts = torch.randint(len(ids) - T, (B,)).tolist()
        inputs = [torch.from_numpy(ids[start : start + T].astype(np.int64)) for start in starts]
        targets = [
            torch.from_numpy(ids[start + 1 : start + 1 + T].astype(np.int64)) for start in starts
        ]
        yield torch.stack(inputs), torch.stack(targets)


def _rate(batches: Iterator[object], n_tokens: int) -> float:
    """Tokens per second."""
    n, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < SECONDS:
        next(batches)
        n += n_tokens
    return n / seconds


def _babygpt() -> float:
    """Tokens per second of a training step: the median of several."""
    torch.set_num_threads(n_cores())
    config = preset("babygpt").changed(
        {"model.vocab_size": 65, "train.batch_size": 8, "train.dtype": "float32"}, where=""
    )
    model = GPT(config.model)
    model.initialise(torch.Generator().manual_seed(1))
    ids = np.random.default_rng(0).integers(0, 65, 100_000).astype(np.uint16)
    batches = Batches(ids, context_length=config.model.context_length, batch_size=8, seed=1)
    replica, times = Replica(model, config), []
    for step in range(8):
        began = time.perf_counter()
        train_step(replica, batches, step, 1000)
        times.append(time.perf_counter() - began)
    return batches.tokens_per_batch / statistics.median(times[1:])


def _spread(values: list[float], unit: float = 1.0) -> str:
    return (
        f"{statistics.median(values) / unit:,.1f} ({min(values) / unit:,.1f} to "
        f"{max(values) / unit:,.1f})"
    )


if __name__ == "__main__":
    main()
