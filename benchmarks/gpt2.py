"""GPT-2 124M beside nanoGPT and the device's own rate of matrix products, in one run: for a GPU.

    python benchmarks/gpt2.py --nanogpt PATH_TO_A_CLONE_OF_NANOGPT [--batch 64] [--loss TEXT]

Both as their makers would have them there: bfloat16, compiled, fused AdamW, the same batch x 1024.
Each is a process of its own; they take turns for some rounds. Reported are medians, ratios within
rounds, and at which share of the rate of products ours runs (6 operations a matrix parameter and
token, and causal attention).

With `--loss TEXT` two runs of lmsmith on that text follow: the faithful preset `gpt2`, and `modern`
with the same layers and width, of the same number of tokens; how many of these and how long
`modern` takes to come to the last validation loss of `gpt2`.

Smaller sizes are for trying it on a CPU: --layers 2 --width 64 --context 64 --batch 2 --device cpu
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.machine.products import matmul_rate
from lmsmith.train.ladder import machine_in_words

V = 50257


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    options.add_argument("--device", default="cuda")
    options.add_argument("--layers", type=int, default=12)
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--context", type=int, default=1024)
    options.add_argument("--batch", type=int, default=64)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--updates", type=int, default=20, help="a round")
    options.add_argument(
        "--loss", type=Path, metavar="TEXT", help="also: how soon `modern` is where `gpt2` ends"
    )
    options.add_argument("--tokens", type=int, default=200_000_000, help="of each run for --loss")
    options.add_argument("--worker", choices=["lmsmith", "nanogpt"], help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.worker:
        _work(given)
        return
    device = torch.device(given.device)
    print(machine_in_words(device))
    print(
        f"{given.layers} layers, width {given.width}, {given.batch} x {given.context} tokens, "
        f"bfloat16"
    )
    names = ["lmsmith"] + (["nanogpt"] if given.nanogpt else [])
    seconds = _rounds(names, given)
    tokens = given.batch * given.context
    flops = _config(given, "gpt2").neural.train_flops_per_token() * tokens
    for name, values in seconds.items():
        middle, ends = (
            statistics.median(values),
            f"{1e3 * min(values):.1f} to {1e3 * max(values):.1f}",
        )
        print(f"{name:8} {1e3 * middle:.1f} ms an update ({ends}), {tokens / middle:,.0f} tokens/s")
    rate = matmul_rate(device, torch.bfloat16)
    share = flops / statistics.median(seconds["lmsmith"]) / rate
    print(
        f"products run at {rate / 1e12:.4g} TFLOP/s in bfloat16; lmsmith's updates reach "
        f"{share:.1%} of it"
    )
    if given.nanogpt:
        pairs = [b / a for a, b in zip(seconds["lmsmith"], seconds["nanogpt"], strict=True)]
        print(
            f"{statistics.median(pairs):.2f} times nanoGPT's tokens a second ({min(pairs):.2f} to "
            f"{max(pairs):.2f})"
        )
    if given.loss:
        _to_the_same_loss(given)


def _rounds(names: list[str], given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds an update, of each in each round. The memory of all must fit on the device at
    once.
    """
    command = [sys.executable, __file__, *sys.argv[1:], "--worker"]
    workers = {
        name: subprocess.Popen(
            [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in names
    }
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(given.rounds):
        for name, worker in workers.items():
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
            seconds[name].append(float(worker.stdout.readline()))
    for worker in workers.values():
        worker.communicate()
    return seconds


def _work(given: argparse.Namespace) -> None:
    """One contestant: a line in, an update's mean seconds out. It is warm before the first."""
    with contextlib.redirect_stdout(sys.stderr):
        update = _ours(given) if given.worker == "lmsmith" else _nanogpt(given)
        for _ in range(3):
            update()
    for _ in sys.stdin:
        _synchronise(given.device)
        began = time.perf_counter()
        for _ in range(given.updates):
            update()
        _synchronise(given.device)
        print((time.perf_counter() - began) / given.updates, flush=True)


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _config(given: argparse.Namespace, name: str) -> RunConfig:
    """That preset at the sizes of GPT-2, dropout 0, its vocabulary padded."""
    changes = {
        "model.n_layer": given.layers,
        "model.d_model": given.width,
        "model.n_head": given.width // 64,
        "model.context_length": given.context,
        "model.vocab_size": V,
        "model.vocab_multiple": 128,
        "model.dropout": 0.0,
        "model.attention_dropout": 0.0,
        "train.batch_size": given.batch,
        "train.device": given.device,
        "train.dtype": "bfloat16",
        "train.matmul": "default",
        "train.compile": "yes",
    }
    return preset(name).changed(changes, where="benchmark")


def _ours(given: argparse.Namespace) -> Callable[[], object]:
    import numpy as np

    from lmsmith.data.batches.read_ahead import ReadAhead
    from lmsmith.data.batches.windows import Batches
    from lmsmith.models.gpt import GPT
    from lmsmith.train.replica import Replica
    from lmsmith.train.step import train_step

    config = _config(given, "gpt2")
    model = GPT(config.model)
    model.initialise(torch.Generator().manual_seed(1))
    replica = Replica(model.to(given.device).train(), config)
    ids = (
        np.random.default_rng(0)
        .integers(0, V, 100 * given.batch * given.context // 10)
        .astype(np.uint16)
    )
    batches = ReadAhead(
        Batches(ids, context_length=given.context, batch_size=given.batch, seed=1),
        replica.micro_batches,
    )
    steps = iter(range(10**9))
    return lambda: train_step(replica, batches, next(steps), 10**6)


def _nanogpt(given: argparse.Namespace) -> Callable[[], object]:
    """Its model, optimizer and loop, as its train.py has them."""
    sys.path.insert(0, str(given.nanogpt))
    from model import GPT as NanoGPT
    from model import GPTConfig

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    shape = {
        "n_layer": given.layers,
        "n_head": given.width // 64,
        "n_embd": given.width,
        "vocab_size": 50304,
    }
    model = NanoGPT(GPTConfig(block_size=given.context, dropout=0.0, bias=True, **shape)).to(
        given.device
    )
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), given.device)
    compiled = torch.compile(model)
    ids = torch.randint(V, (100 * given.batch * given.context // 10,))
    context = torch.autocast(given.device, torch.bfloat16)

    def batch() -> list[torch.Tensor]:
        at = torch.randint(len(ids) - given.context, (given.batch,)).tolist()
        rows = [torch.stack([ids[i + k : i + k + given.context] for i in at]) for k in (0, 1)]
        if given.device == "cuda":
            return [row.pin_memory().to("cuda", non_blocking=True) for row in rows]
        return rows

    following = [batch()]

    def step() -> None:
        with context:
            _, loss = compiled(*following[0])
        following[0] = batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _to_the_same_loss(given: argparse.Namespace) -> None:
    """Tokens and seconds of updates in which `modern` comes to where `gpt2` ends."""
    tokens = given.batch * given.context
    steps = max(20, given.tokens // tokens)
    sizes = {
        "--model.n_layer": given.layers,
        "--model.d_model": given.width,
        "--model.n_head": given.width // 64,
        "--model.context_length": given.context,
        "--train.batch_size": given.batch,
        "--train.device": given.device,
        "--train.eval_every": max(1, steps // 40),
        "--tokenizer": "bpe:16384",
    }
    with tempfile.TemporaryDirectory() as folder:

        def run(name: str, *more: str) -> dict[str, float]:
            place = Path(folder) / name
            words = [str(word) for pair in sizes.items() for word in pair]
            command = [
                sys.executable,
                "-m",
                "lmsmith",
                "train",
                str(given.loss),
                "--preset",
                name,
                *words,
                *more,
            ]
            subprocess.run(
                [*command, "--steps", str(steps), "--out", str(place)],
                check=True,
                stdout=sys.stderr,
            )
            return dict(json.loads((place / "summary.json").read_text(encoding="utf-8")))

        gpt2 = run("gpt2")
        modern = run("modern", "--train.stop_at_val_loss", str(gpt2["best_val_loss"]))
        for name, found in (("gpt2", gpt2), ("modern", modern)):
            print(
                f"{name:8} {found['n_params']:,} parameters: loss {found['best_val_loss']:.4f} "
                f"after "
                f"{found['tokens_seen']:,} tokens, {found['train_seconds']:.0f} s"
            )
        for what in ("tokens_seen", "train_seconds"):
            print(
                f"modern takes {modern[what] / gpt2[what]:.2f} of gpt2's {what.replace('_', ' ')}"
            )


if __name__ == "__main__":
    main()
