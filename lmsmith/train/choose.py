"""From what was asked, the text and the machine to a config with nothing left open.

What the user set stays. The rest is chosen for the lowest validation loss in the time there is: a model whose matrix
products fit the budget, a batch small enough for many updates, a learning rate for that size. `docs/performance.md` says
where the table comes from.
"""

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch

from lmsmith.accounting.predict import train_flops_per_token
from lmsmith.config import RunConfig
from lmsmith.data.batches import Batches
from lmsmith.data.prepare import Corpus
from lmsmith.errors import ConfigError
from lmsmith.models.gpt import GPT
from lmsmith.optim.groups import Optimisers
from lmsmith.presets import has_size
from lmsmith.train.machine import Machine
from lmsmith.train.step import update

DEFAULT_MINUTES = 10.0


@dataclass(frozen=True)
class Size:
    """A model and how to train it, good up to a budget of floating-point operations."""

    budget: float
    n_layer: int
    d_model: int
    n_head: int
    context_length: int
    batch_size: int


# By budget in matrix operations (forward and backward), found by trial on Shakespeare and novels.
SIZES = (
    Size(1.0e12, 1, 128, 2, 64, 32),
    Size(6.0e12, 2, 128, 2, 128, 16),
    Size(3.0e13, 3, 192, 3, 128, 16),
    Size(1.2e14, 4, 256, 4, 256, 16),
    Size(math.inf, 6, 384, 6, 256, 16),
)


def resolve(config: RunConfig, given: Collection[str], corpus: Corpus, machine: Machine, seconds: float) -> RunConfig:
    """The config with everything chosen. `given`: settings that the user set. `seconds`: for updates, if time rules.

    Raises ConfigError, DataError where the text does not suffice.
    """
    chosen: dict[str, Any] = {
        "model.vocab_size": corpus.tokenizer.vocab_size,
        "train.threads": machine.threads,
        "train.matmul": machine.matmul,
        "train.device": machine.device.type,
        "train.dtype": machine.dtype,
    }
    if config.model.vocab_size and config.model.vocab_size != corpus.tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size}, but the tokenizer has {corpus.tokenizer.vocab_size} ids: "
            "leave it out."
        )
    if not has_size(config.preset):
        chosen |= _size(config, given, corpus, machine, seconds)
    config = config.changed({k: v for k, v in chosen.items() if k not in given}, where="what was chosen")
    config = config.changed({"model.vocab_size": corpus.tokenizer.vocab_size}, where="the tokenizer")
    Batches(corpus.train, context_length=config.model.context_length, batch_size=1, seed=0)  # is there enough text?
    steps = config.train.steps
    if not steps:
        tokens_a_step = config.train.batch_size * config.model.context_length
        if config.train.tokens:
            steps = max(1, config.train.tokens // tokens_a_step)
        else:
            steps = max(10, int(seconds / seconds_a_step(config, corpus, machine)))
    every = max(1, steps // 10)
    chosen = {
        "train.steps": steps,
        "train.eval_every": config.train.eval_every or every,
        "train.log_every": config.train.log_every or max(1, steps // 200),
    }
    return config.changed(chosen, where="what was chosen")


def _size(
    config: RunConfig, given: Collection[str], corpus: Corpus, machine: Machine, seconds: float
) -> dict[str, Any]:
    budget = seconds * machine.flops * 0.4  # small models reach some 40% of the machine's rate
    size = next(size for size in SIZES if budget <= size.budget)
    T = size.context_length
    while T > 8 and len(corpus.train) < 4 * T:
        T //= 2
    n_head = size.n_head
    d_model = config.model.d_model if "model.d_model" in given else size.d_model
    if "model.n_head" not in given and d_model % n_head:
        n_head = max(h for h in range(1, n_head + 1) if d_model % h == 0 and d_model // h % 2 == 0)
    return {
        "model.n_layer": size.n_layer,
        "model.d_model": d_model,
        "model.n_head": n_head,
        "model.context_length": T,
        "train.batch_size": size.batch_size,
    }


def seconds_a_step(config: RunConfig, corpus: Corpus, machine: Machine, n: int = 5) -> float:
    """What an update takes here: the median of a few, of a model that is then thrown away."""
    config = replace(config, model=config.model)
    model = GPT(config.model)
    model.initialise(torch.Generator().manual_seed(config.train.seed))
    model.to(machine.device)
    optimisers = Optimisers(model, config.optim)
    batches = Batches(
        corpus.train,
        context_length=config.model.context_length,
        batch_size=config.train.batch_size,
        seed=config.train.seed,
    )
    times = []
    for step in range(n):
        began = time.perf_counter()
        update(model, optimisers, batches, config, step, 1000)
        times.append(time.perf_counter() - began)
        if sum(times) > 5:
            break
    return sorted(times[1:] or times)[len(times[1:]) // 2]


def describe(config: RunConfig, corpus: Corpus, machine: Machine) -> list[str]:
    """The plan in a few lines."""
    model, train = config.model, config.train
    n_params = sum(p.numel() for p in GPT(model).parameters())
    tokens = train.steps * train.batch_size * model.context_length
    counts = corpus.counts
    tables = f", n-gram tables {','.join(map(str, model.ngram_orders))}" if model.ngram_orders else ""
    unit = {"char": "characters", "byte": "bytes"}.get(corpus.tokenizer.kind, "tokens")
    return [
        f"text     {counts.n_train_tokens + counts.n_val_tokens:,} {unit} ({model.vocab_size} different); "
        f"{counts.n_val_tokens:,} held out",
        f"model    {config.preset}: {model.n_layer} layers, {model.n_head} heads, width {model.d_model}, context "
        f"{model.context_length}{tables}; {n_params:,} parameters",
        f"training {train.steps:,} steps of {train.batch_size} x {model.context_length} = {tokens:,} tokens "
        f"({tokens / counts.n_train_tokens:.1f} times the text), {config.optim.name}, {config.schedule.shape}",
        f"machine  {machine.device.type}, {machine.threads} threads, {train.dtype}, {machine.flops / 1e9:.0f} GFLOP/s in "
        f"matrix products ({machine.reason}); an update is {train_flops_per_token(model) * train.batch_size * model.context_length / 1e9:.1f} GFLOP",
    ]
