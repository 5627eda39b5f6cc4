"""How fast lmsmith generates. Each option is one measurement; rounds alternate, medians are printed.

    python benchmarks/generate.py --peer 10M,30M,124M        beside transformers, batch 1, float32
    python benchmarks/generate.py --peer 124M --samples 8    the same with a batch of 8
    python benchmarks/generate.py --peer 124M --weights fp32,bf16,int8
    python benchmarks/generate.py --batch 124M               batches of 1, 8 and 16
    python benchmarks/generate.py --busy 124M                beside one busy process
    python benchmarks/generate.py --prefill 10M,124M         reading a prompt beside training's forward
    python benchmarks/generate.py --memory 10M               memory while 10,000 tokens are generated
    python benchmarks/generate.py --draft RUN NGRAM_RUN      with and without a draft model

Shapes are GPT-2's architecture with random weights (`lmsmith bench generate --shape`). Measure on a
machine with nothing else to do. `--device cuda` times the batched decoder; --peer needs
transformers.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lmsmith.__main__ import spin_briefly

spin_briefly()  # as the command does; it has no effect after torch is imported

import torch  # noqa: E402

from lmsmith.generate.bench import decode_speed, shape  # noqa: E402
from lmsmith.generate.decode import generate  # noqa: E402
from lmsmith.generate.decoders import decoder_for  # noqa: E402
from lmsmith.generate.sampling import Sampling  # noqa: E402
from lmsmith.generate.text_model import TextModel  # noqa: E402
from lmsmith.generate.weights import pack  # noqa: E402
from lmsmith.models.gpt import GPT  # noqa: E402

PROMPT = 32  # tokens
BUSY = "import sys, time\nend = time.time() + float(sys.argv[1])\nwhile time.time() < end: pass"


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("peer", "batch", "busy", "prefill", "memory"):
        options.add_argument(f"--{name}", metavar="SHAPES", type=lambda names: names.split(","))
    options.add_argument("--draft", nargs=2, type=Path, metavar=("RUN", "NGRAM_RUN"))
    options.add_argument("--prompt", default="Once upon a time", help="of --draft")
    options.add_argument("--samples", type=int, default=1, help="of --peer, in one batch")
    options.add_argument("--weights", default="fp32", help="of --peer: fp32,bf16,int8")
    options.add_argument("--tokens", type=int, default=64)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--device", default="cpu")
    given = options.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {given.device}")
    for name in given.peer or ():
        peer(name, given)
    for name in given.batch or ():
        for speed in decode_speed(shape(name).to(given.device), n=given.rounds):
            print(f"{name}, batch {speed.batch}: {speed.tokens_per_second:,.1f} tokens/s")
    for name in given.busy or ():
        beside_a_busy_process(name, given)
    for name in given.prefill or ():
        prefill(name, given)
    for name in given.memory or ():
        memory(name, given)
    if given.draft:
        draft(*given.draft, given)


def peer(name: str, given: argparse.Namespace) -> None:
    """`generate` of both, greedy, without the time for the prompt. Theirs has float32 weights."""
    model = shape(name).to(given.device)
    theirs = transformers_model(model).to(given.device)
    contestants = {
        weights: partial(generated, packed(model, weights), given.tokens, n=given.samples)
        for weights in given.weights.split(",")
    }
    contestants["transformers"] = partial(
        generated_by_transformers, theirs, given.tokens, given.samples
    )
    show(f"{name}, batch {given.samples}", rounds(contestants, given.rounds))


def packed(model: GPT, weights: str) -> GPT:
    """A copy whose weights have another format."""
    if weights == "fp32":
        return model
    copied = copy.deepcopy(model)
    pack(copied, weights)
    return copied


def generated(model: GPT, max_tokens: int, **options: Any) -> float:
    """Tokens per second of decode steps, sampling included."""
    steps = generate(
        model,
        list(range(PROMPT)),
        max_tokens=max_tokens,
        sampling=Sampling(temperature=0),
        **options,
    )
    next(steps)
    began = time.perf_counter()
    done = sum(len(step) for step in steps)
    return done / (time.perf_counter() - began)


def transformers_model(model: GPT) -> Any:
    """GPT-2 of the same shape, with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = model.config
    sizes = GPT2Config(
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.d_model,
        vocab_size=config.vocab_size,
        n_positions=config.context_length,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(sizes).eval()


def generated_by_transformers(model: Any, n: int, samples: int = 1) -> float:
    """Tokens per second between the second token of each sample and the last."""
    ids = torch.arange(PROMPT, device=model.device).expand(samples, -1)
    with torch.inference_mode():
        times = []
        for new in (1, n):
            began = time.perf_counter()
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
            )
            times.append(time.perf_counter() - began)
    return samples * (n - 1) / (times[1] - times[0])


@contextmanager
def busy(seconds: float) -> Iterator[None]:
    """Runs a process that keeps a core busy, for at most `seconds`."""
    other = subprocess.Popen([sys.executable, "-c", BUSY, str(seconds)])
    time.sleep(0.5)
    try:
        yield
    finally:
        other.terminate()
        other.wait()


def beside_a_busy_process(name: str, given: argparse.Namespace) -> None:
    model = shape(name).to(given.device)

    def beside() -> float:
        with busy(120):
            return generated(model, given.tokens)

    quiet = lambda: generated(model, given.tokens)  # noqa: E731
    show(f"{name}, batch 1", rounds({"quiet": quiet, "beside a process": beside}, given.rounds))


def prefill(name: str, given: argparse.Namespace) -> None:
    """Tokens per second of a prompt that fills the context, and of a training step's forward pass
    on one such row, with its activations kept for the backward pass.
    """
    model = shape(name).to(given.device)
    T = model.config.context_length
    ids = torch.randint(0, model.vocab_size, (1, T), generator=torch.Generator().manual_seed(0))
    row, text = ids.to(given.device), ids[0].tolist()
    decoder = decoder_for(model, 1)

    def prompt() -> float:
        began = time.perf_counter()
        decoder.prefill(0, text)[0].item()
        return T / (time.perf_counter() - began)

    def forward() -> float:
        began = time.perf_counter()
        hidden = model.train().hidden(row)
        model.eval()
        hidden[0, -1, 0].item()
        return T / (time.perf_counter() - began)

    contestants = {"prefill": prompt, "training's forward": forward}
    show(f"{name}, {T} tokens", rounds(contestants, given.rounds))


def memory(name: str, given: argparse.Namespace) -> None:
    """Memory of the process, or of the GPU, after 2,000 and 10,000 tokens."""
    model = shape(name).to(given.device)
    used = {}
    for n, _ in enumerate(generate(model, [0], max_tokens=10_000), start=1):
        if n in (2_000, 10_000):
            used[n] = memory_used(given.device)
    print(f"{name}: {', '.join(f'{size:.1f} MB after {n:,} tokens' for n, size in used.items())}")


def memory_used(device: str) -> float:
    """In MB."""
    if device == "cuda":
        return torch.cuda.memory_allocated() / 1e6
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def draft(run: Path, ngram_run: Path, given: argparse.Namespace) -> None:
    """The same text with and without a draft model: greedy, at temperature 0.8, and at 1."""
    lm, _ = TextModel.load(run)
    proposing, _ = TextModel.load(run, draft=ngram_run)
    ids = lm.encode(given.prompt)
    for temperature in (0.0, 0.8, 1.0):
        texts: dict[str, list[list[int]]] = {}

        def timed(name: str, draft: Any, sampling: Sampling, texts: Any = texts) -> float:
            steps = generate(
                lm.model, ids, max_tokens=given.tokens, sampling=sampling, draft=draft, seed=1
            )
            next(steps)
            began = time.perf_counter()
            texts[name] = list(steps)
            return len(texts[name]) / (time.perf_counter() - began)

        sampling = Sampling(temperature=temperature)
        contestants = {
            "without": lambda s=sampling, t=timed: t("without", None, s),
            "with": lambda s=sampling, t=timed: t("with", proposing.draft, s),
        }
        show(f"drafts, temperature {temperature}", rounds(contestants, given.rounds))
        assert texts["with"] == texts["without"]


def rounds(contestants: dict[str, Callable[[], float]], n: int) -> dict[str, list[float]]:
    """Rates of each contestant in n rounds, after one that warms up."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(n + 1):
        for name, run in contestants.items():
            rate = run()
            if number:
                rates[name].append(rate)
    return rates


def show(title: str, rates: dict[str, list[float]]) -> None:
    """Medians, ranges, and the ratio of each to the last."""
    print(title)
    last = statistics.median(list(rates.values())[-1])
    for name, found in rates.items():
        middle = statistics.median(found)
        spread = f"({min(found):,.1f} to {max(found):,.1f})"
        print(f"  {name:20} {middle:10,.1f} tokens/s {spread}  ratio {middle / last:.2f}")


if __name__ == "__main__":
    main()
