"""Training speed of babyGPT: lmsmith, nanoGPT, and the machine's matrix products alone.

    python benchmarks/babygpt.py --nanogpt PATH_TO_A_CLONE_OF_NANOGPT [--dtype float32]

The model is nanoGPT's for Shakespeare by characters: 6 layers, 6 heads, width 384, 10.65M
parameters, dropout 0, batch 8, context 256. A round times two steps of lmsmith, in the precision it
chooses on this machine or --dtype; two steps of nanoGPT (its model, optimizer and clipping,
uncompiled, as its README says for CPUs); and twice the matrix products of a step alone, in
lmsmith's shapes, precision and library. Each runs in its own process and rounds alternate, so a
change of machine speed affects all three. Reports medians, and ratios within rounds.
"""

import argparse
import contextlib
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.data.batches.windows import Batches
from lmsmith.machine.limits import n_cores
from lmsmith.models.gpt import GPT
from lmsmith.train.device import set_up_process, survey
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step

B, T, V, D, L, F, H = 8, 256, 65, 384, 6, 1536, 6


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    options.add_argument("--rounds", type=int, default=9)
    options.add_argument("--threads", type=int, default=n_cores())
    options.add_argument(
        "--dtype",
        choices=["auto", "float32", "bfloat16"],
        default="auto",
        help="lmsmith's precision",
    )
    options.add_argument(
        "--worker", choices=["lmsmith", "nanogpt", "products"], help=argparse.SUPPRESS
    )
    given = options.parse_args()
    if given.worker:
        _work(given)
        return
    names = ["lmsmith", "products"] + (["nanogpt"] if given.nanogpt else [])
    workers = {name: _start(name) for name in names}
    for name, worker in workers.items():
        print(f"{name:9} {worker.stdout.readline().strip()}")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for round_ in range(given.rounds + 1):
        for name, worker in workers.items():
            worker.stdin.write("go\n")
            worker.stdin.flush()
            elapsed = float(worker.stdout.readline())
            if round_:  # the first round is a warm-up
                seconds[name].append(elapsed)
    for worker in workers.values():
        worker.stdin.close()
    flops = _config(given.dtype).neural.train_flops_per_token() * B * T
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        spread = f"{min(seconds[name]):.3f} to {max(seconds[name]):.3f}"
        print(f"{name:9} {value:.3f} s per step ({spread}), {B * T / value:,.0f} tokens/s")
    rate = _product_flops() / medians["products"]
    print(
        f"the matrix products alone run at {rate / 1e9:.0f} GFLOP/s; a step takes "
        f"{flops / 1e9:.0f} GFLOP"
    )
    shares = [
        flops / a / (_product_flops() / b)
        for a, b in zip(seconds["lmsmith"], seconds["products"], strict=True)
    ]
    print(
        f"lmsmith reaches {statistics.median(shares):.1%} of that rate ({min(shares):.1%} to "
        f"{max(shares):.1%})"
    )
    if given.nanogpt:
        pairs = [b / a for a, b in zip(seconds["lmsmith"], seconds["nanogpt"], strict=True)]
        spread = f"{min(pairs):.2f} to {max(pairs):.2f}"
        print(f"{statistics.median(pairs):.2f} times nanoGPT's tokens per second ({spread})")


def _start(name: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, *sys.argv[1:], "--worker", name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _work(given: argparse.Namespace) -> None:
    """Runs one contestant in this process: for each input line, prints the mean seconds
    of a step.
    """
    if given.worker == "nanogpt":
        torch.set_num_threads(given.threads)
        with contextlib.redirect_stdout(sys.stderr):
            work, how = _nanogpt(given.nanogpt), "its own settings"
    else:
        config = _config(given.dtype)
        machine = survey(config)
        set_up_process(machine)
        config = config.changed({"train.dtype": machine.dtype}, where="benchmark")
        work = _ours(config) if given.worker == "lmsmith" else _products(machine.dtype)
        how = f"{machine.dtype}; {machine.reason}"
    print(f"{given.threads} threads; {how}", flush=True)
    for _ in sys.stdin:
        print(_time(work), flush=True)


def _config(dtype: str) -> RunConfig:
    return preset("babygpt").changed(
        {
            "model.vocab_size": V,
            "model.dropout": 0.0,
            "model.attention_dropout": 0.0,
            "train.batch_size": B,
            "train.dtype": dtype,
        },
        where="benchmark",
    )


def _ours(config: RunConfig):
    model = GPT(config.model)
    model.initialise(torch.Generator().manual_seed(1))
    replica = Replica(model, config)
    ids = np.random.default_rng(0).integers(0, V, 100_000).astype(np.uint16)
    batches = Batches(ids, context_length=T, batch_size=B, seed=1)
    steps = iter(range(10**9))
    return lambda: train_step(replica, batches, next(steps), 10**6)


def _nanogpt(folder: Path):
    sys.path.insert(0, str(folder))
    from model import GPT as NanoGPT
    from model import GPTConfig

    model = NanoGPT(
        GPTConfig(
            block_size=T, vocab_size=V, n_layer=L, n_head=H, n_embd=D, dropout=0.0, bias=False
        )
    )
    optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.99), "cpu")
    ids = torch.randint(V, (100_000,))

    def step() -> None:
        starts = torch.randint(len(ids) - T, (B,))
        x = torch.stack([ids[i : i + T] for i in starts])
        y = torch.stack([ids[i + 1 : i + 1 + T] for i in starts])
        _, loss = model(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _shapes() -> list[tuple[int, int, int, int]]:
    """(m, k, n, count): the linear maps of a forward pass over B T tokens."""
    n = B * T
    return [(n, D, 3 * D, L), (n, D, D, L), (n, D, F, L), (n, F, D, L), (n, D, V, 1)]


def _product_flops() -> float:
    return sum(3 * 2 * m * k * n * count for m, k, n, count in _shapes())


def _products(dtype: str):
    """The matrix products of all linear maps of a step, forward and backward, into preallocated
    memory.
    """
    work = []
    for m, k, n, count in _shapes():
        x, w, y = (
            torch.randn(shape).to(getattr(torch, dtype)) for shape in ((m, k), (n, k), (m, n))
        )
        work.append((x, w, y, torch.empty_like(x), torch.empty_like(w), count))

    def step() -> None:
        for x, w, y, dx, dw, count in work:
            for _ in range(count):
                torch.mm(x, w.T, out=y)
                torch.mm(y, w, out=dx)
                torch.mm(y.T, x, out=dw)

    return step


def _time(work, n: int = 2) -> float:
    start = time.perf_counter()
    for _ in range(n):
        work()
    return (time.perf_counter() - start) / n


if __name__ == "__main__":
    main()
