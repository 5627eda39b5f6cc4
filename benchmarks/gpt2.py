"""Training speed of GPT-2 124M on a GPU: lmsmith, nanoGPT, and the rate of matrix products.

    python benchmarks/gpt2.py --nanogpt PATH_TO_A_CLONE_OF_NANOGPT [--batch 64] [--loss TEXT]

Both use the settings their authors recommend: bfloat16, compiled, fused AdamW, the same batch x
1024. Each runs in its own process, and they take turns for several rounds. Reports medians, ratios
within rounds, and the share of the rate of matrix products that lmsmith reaches (6 operations per
matrix parameter and token, plus causal attention).

`--loss TEXT` then trains two runs of lmsmith on that text, for the same number of tokens: the
faithful preset `gpt2`, and `modern` with the same layers and width. It reports how many tokens and
seconds `modern` needs to reach the last validation loss of `gpt2`.

Smaller sizes are for a trial on a CPU: --layers 2 --width 64 --context 64 --batch 2 --device cpu
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
    options.add_argument("--updates", type=int, default=20, help="steps per round")
    options.add_argument(
        "--loss",
        type=Path,
        metavar="TEXT",
        help="also compare `modern` and `gpt2`, trained on TEXT",
    )
    options.add_argument(
        "--tokens", type=int, default=200_000_000, help="tokens per run for --loss"
    )
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
        median, spread = (
            statistics.median(values),
            f"{1e3 * min(values):.1f} to {1e3 * max(values):.1f}",
        )
        print(
            f"{name:8} {1e3 * median:.1f} ms per step ({spread}), {tokens / median:,.0f} tokens/s"
        )
    rate = matmul_rate(device, torch.bfloat16)
    share = flops / statistics.median(seconds["lmsmith"]) / rate
    print(
        f"matrix products run at {rate / 1e12:.4g} TFLOP/s in bfloat16; lmsmith's steps reach "
        f"{share:.1%} of that rate"
    )
    if given.nanogpt:
        pairs = [b / a for a, b in zip(seconds["lmsmith"], seconds["nanogpt"], strict=True)]
        print(
            f"{statistics.median(pairs):.2f} times nanoGPT's tokens per second ({min(pairs):.2f} "
            f"to {max(pairs):.2f})"
        )
    if given.loss:
        _to_the_same_loss(given)


def _rounds(names: list[str], given: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds per step of each contestant in each round. All must fit into the device's memory at
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
    """Runs one contestant: for each input line, prints the mean seconds of a step. Warms up before
    the first.
    """
    with contextlib.redirect_stdout(sys.stderr):
        step = _ours(given) if given.worker == "lmsmith" else _nanogpt(given)
        for _ in range(3):
            step()
    for _ in sys.stdin:
        _synchronise(given.device)
        start = time.perf_counter()
        for _ in range(given.updates):
            step()
        _synchronise(given.device)
        print((time.perf_counter() - start) / given.updates, flush=True)


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _config(given: argparse.Namespace, name: str) -> RunConfig:
    """The preset with the sizes of GPT-2, dropout 0, and a padded vocabulary."""
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
    """Its model, optimizer and loop, as in its train.py."""
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
        starts = torch.randint(len(ids) - given.context, (given.batch,)).tolist()
        rows = [torch.stack([ids[i + k : i + k + given.context] for i in starts]) for k in (0, 1)]
        if given.device == "cuda":
            return [row.pin_memory().to("cuda", non_blocking=True) for row in rows]
        return rows

    next_batch = [batch()]

    def step() -> None:
        with context:
            _, loss = compiled(*next_batch[0])
        next_batch[0] = batch()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _to_the_same_loss(given: argparse.Namespace) -> None:
    """Reports the tokens and seconds that `modern` needs to reach the final loss of `gpt2`."""
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
            run_folder = Path(folder) / name
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
                [*command, "--steps", str(steps), "--out", str(run_folder)],
                check=True,
                stdout=sys.stderr,
            )
            return dict(json.loads((run_folder / "summary.json").read_text(encoding="utf-8")))

        gpt2 = run("gpt2")
        modern = run("modern", "--train.stop_at_val_loss", str(gpt2["best_val_loss"]))
        for name, summary in (("gpt2", gpt2), ("modern", modern)):
            print(
                f"{name:8} {summary['n_params']:,} parameters: loss {summary['best_val_loss']:.4f} "
                f"after {summary['tokens_seen']:,} tokens, {summary['train_seconds']:.0f} s"
            )
        for what in ("tokens_seen", "train_seconds"):
            print(
                f"modern needs {modern[what] / gpt2[what]:.2f} of gpt2's {what.replace('_', ' ')}"
            )


if __name__ == "__main__":
    main()
