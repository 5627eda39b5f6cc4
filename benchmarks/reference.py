"""Training speed of the reference engine, PyTorch, and llm.c's CPU program.

    python benchmarks/reference.py [--llmc PATH_TO_TRAIN_GPT2] [--rounds 5]

The model is babyGPT (6 layers, 6 heads, width 384, context 256, 65 characters, dropout 0) with a
batch of 8, in float32. A round times two steps of the NumPy reference engine; two of PyTorch
(`models/gpt.py`, uncompiled, with fused AdamW); and two of llm.c. Each runs in its own process with
the same number of threads, and rounds alternate, so a change of machine speed affects all. Reports
medians, ratios within rounds, and the memory that the reference engine used.

llm.c has its batch size in its source. To build the program:

    sed -i 's/int B = 4;/int B = 8;/; s/int T = 64;/int T = 256;/' train_gpt2.c && make train_gpt2

It starts from the reference engine's checkpoint and trains on the same batch repeatedly, as the
reference engine does, so the losses must be equal.
"""

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lmsmith.data.shards import write_shard
from lmsmith.reference.gpt2 import GPT2, Sizes
from lmsmith.reference.llmc import write_llmc

B, T = 8, 256
SIZES = Sizes(
    n_layer=6, n_head=6, d_model=384, vocab_size=65, padded_vocab_size=65, context_length=T
)
LEARNING_RATE = 1e-4  # llm.c's, with betas 0.9 and 0.999 and no weight decay
UPDATES = 2  # per round


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--llmc", type=Path, help="llm.c's train_gpt2, built as described in this file"
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--worker", choices=["numpy", "torch"], help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        _work(given.worker, given.threads)
        return
    threads = str(given.threads)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "OMP_NUM_THREADS": threads}
    workers = {name: _start(name, environment) for name in ("numpy", "torch")}
    rounds = []
    for _ in range(given.rounds + 1):
        results = {name: _ask(worker) for name, worker in workers.items()}
        if given.llmc:
            results["llm.c"] = _llmc(given.llmc.resolve(), environment)
        rounds.append(results)
    for worker in workers.values():
        worker.stdin.close()
    _report(rounds)


def _report(rounds: list[dict[str, dict]]) -> None:
    first, *rounds = rounds  # the first round is a warm-up
    for name in first:
        seconds = [found[name]["seconds"] for found in rounds]
        median, spread = statistics.median(seconds), f"{min(seconds):.3f} to {max(seconds):.3f}"
        print(f"{name:6} {median:.3f} s per step ({spread}), {B * T / median:,.0f} tokens/s")
    for name in list(first)[1:]:
        ratios = [found[name]["seconds"] / found["numpy"]["seconds"] for found in rounds]
        print(
            f"numpy is {statistics.median(ratios):.2f} times as fast as {name} ({min(ratios):.2f} "
            f"to {max(ratios):.2f})"
        )
    print(f"numpy used at most {rounds[-1]['numpy']['bytes'] / 1e9:.2f} GB of memory")
    if "llm.c" in first:
        pairs = list(zip(first["numpy"]["losses"], first["llm.c"]["losses"], strict=False))
        print(
            "losses of numpy and llm.c: "
            + ", ".join(f"{ours:.6f} {theirs:.6f}" for ours, theirs in pairs)
        )


def _start(name: str, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def _ask(worker: subprocess.Popen[str]) -> dict:
    worker.stdin.write("go\n")
    worker.stdin.flush()
    return json.loads(worker.stdout.readline())


def _work(name: str, threads: int) -> None:
    """Runs one contestant: for each input line, prints the time, losses and memory of a round."""
    step = _numpy(threads) if name == "numpy" else _torch(threads)
    for _ in sys.stdin:
        start = time.perf_counter()
        losses = [step() for _ in range(UPDATES)]
        seconds = (time.perf_counter() - start) / UPDATES
        n_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )
        print(json.dumps({"seconds": seconds, "losses": losses, "bytes": n_bytes}), flush=True)


def _ids() -> np.ndarray:
    return np.random.default_rng(1).integers(0, SIZES.vocab_size, B * T + 1)


def _batch() -> tuple[np.ndarray, np.ndarray]:
    return _ids()[:-1].reshape(B, T), _ids()[1:].reshape(B, T)


def _model(threads: int = 1) -> GPT2:
    model = GPT2(SIZES, threads=threads)
    model.initialise(np.random.default_rng(0))
    return model


def _numpy(threads: int):
    model, (inputs, targets) = _model(threads), _batch()

    def step() -> float:
        loss = model.forward(inputs, targets)
        model.zero_grad()
        model.backward()
        model.update(LEARNING_RATE)
        return loss

    return step


def _torch(threads: int):
    import torch
    from torch.nn.functional import cross_entropy

    from lmsmith.config.presets import preset
    from lmsmith.machine.heap import keep_freed_memory
    from lmsmith.models.gpt import GPT

    torch.set_num_threads(threads)
    keep_freed_memory()
    sizes = {
        "model.vocab_size": SIZES.vocab_size,
        "model.dropout": 0.0,
        "model.attention_dropout": 0.0,
    }
    model = GPT(preset("babygpt").changed(sizes, where="benchmark").model)
    model.initialise(torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.0, fused=True
    )
    inputs, targets = (torch.from_numpy(ids) for ids in _batch())

    def step() -> float:
        loss = cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def _llmc(program: Path, environment: dict[str, str]) -> dict:
    """Starts the program again in each round; excludes the first step, which allocates memory."""
    with tempfile.TemporaryDirectory() as folder:
        write_llmc(Path(folder, "gpt2_124M.bin"), SIZES, _model().params)
        tokens = Path(folder, "dev/data/tinyshakespeare")
        tokens.mkdir(parents=True)
        for split in (
            "train",
            "val",
        ):  # one batch and the token after it, so that shuffling has no effect
            write_shard(
                tokens / f"tiny_shakespeare_{split}.bin", _ids().astype(np.uint16), SIZES.vocab_size
            )
        command = ["stdbuf", "-oL", str(program)]  # line-buffered output
        running = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        losses, seconds = [], []
        for line in running.stdout:
            if match := re.match(r"step \d+: train loss ([\d.]+) \(took ([\d.]+) ms", line):
                losses.append(float(match[1]))
                seconds.append(float(match[2]) / 1000)
            if len(seconds) > UPDATES:
                break
        running.kill()
        running.wait()
    if len(seconds) <= UPDATES:
        raise SystemExit(f"{program} ended early: is it built for {B} x {T} tokens?")
    return {"seconds": statistics.mean(seconds[1:]), "losses": losses}


if __name__ == "__main__":
    main()
