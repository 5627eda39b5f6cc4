"""From what was asked, the text and the machine to a config with nothing left open.

What the user set stays. The rest is chosen for the lowest validation loss in the time there is: a model whose matrix
products fit the budget, a small batch for many steps, and n-gram tables that are left out the more often the more
often the text is seen. `docs/performance.md` says where the numbers come from.
"""

import math
import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import torch

from lmsmith.accounting.predict import train_flops_per_token
from lmsmith.config import RunConfig
from lmsmith.data.packing import batches_of
from lmsmith.data.prepare import Corpus
from lmsmith.data.rows import Rows
from lmsmith.data.shards import Shards
from lmsmith.errors import ConfigError
from lmsmith.models.kinds import build
from lmsmith.presets import NOTES, has_size
from lmsmith.train.by_hand import check_memory
from lmsmith.train.machine import Machine
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step

DEFAULT_MINUTES = 10.0
NOMINAL_BUDGET = 3e13  # operations: the size of a run whose length is said in steps or tokens
MOST_EVALUATIONS, LEAST_EVALUATIONS = 10, 3
EVALUATION_SHARE = 0.06  # of a run's time, at most, as long as there are more than the least
MOST_EVALUATION = 0.25  # of a run's time for a single one
N_LOG_LINES = 200
GOOD_MULTIPLE = 128  # of the vocabulary's size, for GPUs
COMPILE_SECONDS = 180.0  # shorter runs end sooner without: compiling takes up to a minute
USUAL_SHARE = 0.4  # of the rate of matrix products, that training comes to


@dataclass(frozen=True)
class Size:
    """A model and its batch, for runs of up to `budget` operations at the machine's full rate of matrix products."""

    budget: float
    n_layer: int
    d_model: int
    n_head: int
    context_length: int
    batch_size: int


SIZES = (
    Size(2.5e12, 1, 128, 2, 64, 32),
    Size(4e13, 2, 128, 2, 256, 8),
    Size(4e14, 3, 192, 3, 256, 8),
    Size(2e15, 4, 256, 4, 256, 8),
    Size(1e16, 6, 384, 6, 256, 16),
    Size(1e17, 8, 512, 8, 512, 32),
    Size(math.inf, 12, 768, 12, 1024, 64),
)
# Recurrent networks: no heads; more sequences, for their positions are read one after the other.
RNN_SIZES = (
    Size(4e12, 1, 128, 0, 64, 16),
    Size(4e14, 1, 256, 0, 64, 16),
    Size(2e15, 2, 384, 0, 128, 32),
    Size(1e16, 2, 640, 0, 128, 64),
    Size(math.inf, 2, 1024, 0, 256, 128),
)


def resolve(
    config: RunConfig, given: Collection[str], corpus: Corpus, machine: Machine, seconds: float, world: int = 1
) -> RunConfig:
    """The config with everything chosen. `given`: settings that the user set. `seconds`: for steps, if time rules.
    `world`: how many ranks share a batch.

    Raises ConfigError; DataError where the text does not suffice.
    """
    config = _with_machine_and_size(config, given, corpus, machine, seconds, world)
    if config.train.batch_tokens:
        rows = {"train.batch_size": n_rows(config, world), "train.batch_tokens": 0}
        config = config.changed(rows, where="what was chosen")
    if config.train.batch_start:
        _check_growing(config, world)
    if config.train.engine == "reference":
        check_memory(config)
    tokens_a_step = batches_of(config, corpus.train, corpus.tokenizer).tokens_per_batch  # DataError for too little text
    if config.data.documents == "rows" and "train.batch_size" not in given:
        # Rows may be shorter than the context: so many of them that a batch has as many tokens as windows would.
        enough = config.train.batch_size**2 * config.model.context_length / tokens_a_step
        config = config.changed({"train.batch_size": math.ceil(enough / world) * world}, where="what was chosen")
        tokens_a_step = batches_of(config, corpus.train, corpus.tokenizer).tokens_per_batch
    if config.train.steps or config.train.tokens:
        steps = config.train.steps or int(config.train.tokens / tokens_a_step / _mean_share(config))
        n_evaluations = MOST_EVALUATIONS
    else:
        steps, n_evaluations = _steps_in(seconds, config, corpus, machine, tokens_a_step, world)
    steps = max(1, steps)
    chosen: dict[str, Any] = {
        "train.steps": steps,
        "train.tokens": 0,  # the steps say it
        "train.eval_every": config.train.eval_every or max(1, steps // max(LEAST_EVALUATIONS, n_evaluations)),
        "train.log_every": config.train.log_every or max(1, steps // N_LOG_LINES),
    }
    if config.train.compile == "auto":
        lasting = _expected_seconds(config, steps * tokens_a_step, machine, world) > COMPILE_SECONDS
        chosen["train.compile"] = "yes" if lasting and can_compile(config, machine) else "no"
    if config.model.ngram_orders and "model.ngram_dropout" not in given:
        chosen["model.ngram_dropout"] = ngram_dropout(steps * tokens_a_step / len(corpus.train))
    return config.changed(chosen, where="what was chosen")


def _with_machine_and_size(
    config: RunConfig, given: Collection[str], corpus: Corpus, machine: Machine, seconds: float, world: int
) -> RunConfig:
    """The config with the vocabulary's size, what `machine` chose, and the size of model and batch."""
    vocab_size = corpus.tokenizer.vocab_size
    if config.model.vocab_size not in (0, vocab_size):
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size}, but the tokenizer has {vocab_size} ids: set it to 0."
        )
    fixed: dict[str, Any] = {
        "model.vocab_size": vocab_size,
        "train.threads": machine.threads,
        "train.matmul": machine.matmul,
        "train.device": str(machine.device) if world == 1 else machine.device.type,  # each rank has one of its own
        "train.dtype": machine.dtype,
    }
    chosen: dict[str, Any] = {}
    if not has_size(config.preset) and not config.model.size:
        # Without a clock the size must not depend on how fast the machine happens to be.
        budget = NOMINAL_BUDGET if config.train.steps or config.train.tokens else seconds * machine.flops
        chosen |= _size(config, given, corpus, budget)
    if machine.device.type == "cuda":  # products of odd sizes take longer; what is added is never predicted
        chosen["model.vocab_multiple"] = GOOD_MULTIPLE
    if "train.batch_size" in chosen:
        chosen["train.batch_size"] = -(-chosen["train.batch_size"] // world) * world
    open_ones = {name: value for name, value in chosen.items() if name not in given}
    return config.changed(fixed | open_ones, where="what was chosen")


def _steps_in(
    seconds: float, config: RunConfig, corpus: Corpus, machine: Machine, tokens_a_step: int, world: int
) -> tuple[int, int]:
    """How many steps and evaluations fit into `seconds`, measured. Raises ConfigError where too few do."""
    a_step = seconds_a_step(_share_of(config, world), corpus, machine)
    if a_step > seconds:
        raise ConfigError(
            f"one step of this model takes {a_step:.1f} s here, and there are {max(0.0, seconds):.0f} s for steps. "
            "Allow more --minutes, or set a smaller model or --train.batch_size."
        )
    an_evaluation = len(corpus.validation) / tokens_a_step * a_step / 3  # forward alone
    # Of a text no more than needed is held out; of shards it may be a hundred million tokens.
    if isinstance(corpus.validation, Shards) and an_evaluation > MOST_EVALUATION * seconds:
        fewer = float(f"{0.02 * seconds / an_evaluation * len(corpus.validation):.1g}")
        raise ConfigError(
            f"to score the {len(corpus.validation):,} validation tokens once takes about {an_evaluation:,.0f} s "
            f"here, and there are {seconds:,.0f} s for steps. Allow more --minutes, or validate on less: of "
            f"shards --data.validation_tokens {fewer:.0f}, of text a smaller --data.validation_fraction."
        )
    return int(seconds / a_step), min(MOST_EVALUATIONS, int(EVALUATION_SHARE * seconds / an_evaluation))


def _expected_seconds(config: RunConfig, n_tokens: int, machine: Machine, world: int) -> float:
    """About how long a run is: as the user says, or else its operations at a usual share of what the machine can do."""
    if config.train.minutes:
        return 60 * config.train.minutes
    return n_tokens * train_flops_per_token(config.model) / (USUAL_SHARE * machine.flops * world)


def can_compile(config: RunConfig, machine: Machine) -> bool:
    """Whether compiling makes steps faster here: for GPUs, of Transformers, where Triton is installed."""
    from torch.utils._triton import has_triton

    return machine.device.type == "cuda" and config.model.kind == "gpt" and has_triton()


def _compilation(config: RunConfig, n_tokens: int, machine: Machine, world: int) -> str:
    """Whether blocks are compiled and why, in a phrase."""
    seconds = _expected_seconds(config, n_tokens, machine, world)
    length = f"it takes a minute or so, and the run about {seconds:,.0f} s"
    if config.train.compile == "yes":
        return f"blocks are compiled: {length}"
    reason = "on CPUs it gains nothing" if machine.device.type == "cpu" else length
    if machine.device.type == "cuda" and not can_compile(config, machine):
        reason = "it is there for Transformers alone, and needs Triton"
    return f"blocks are not compiled: {reason}"


def _share_of(config: RunConfig, world: int) -> RunConfig:
    """What one of several ranks does of a step."""
    rows = max(1, config.train.batch_size // world)
    return config.changed({"train.batch_size": rows}, where="the share of a process") if world > 1 else config


def _check_growing(config: RunConfig, world: int) -> None:
    """Raises ConfigError where a batch cannot grow from `train.batch_start`."""
    train = config.train
    problems = {
        "its length must be known: set --steps or --tokens, not --minutes": not (train.steps or train.tokens),
        "train.carry_state has as many sequences in each": train.carry_state,
        "data.documents = 'rows' makes batches of one size": config.data.documents == "rows",
        f"it ends at train.batch_size = {train.batch_size}": train.batch_start > train.batch_size,
        f"{world} processes cannot share it evenly": bool(train.batch_start % world),
    }
    for problem, there in problems.items():
        if there:
            raise ConfigError(f"train.batch_start = {train.batch_start} lets the batch of a run grow, and {problem}.")


def _mean_share(config: RunConfig) -> float:
    """A batch's mean size over a run whose number of steps is yet to be found, as a share of `train.batch_size`."""
    train = replace(config.train, steps=1000)  # of any number it is about the same
    return sum(map(train.rows_of, range(train.steps))) / (train.steps * train.batch_size)


def n_rows(config: RunConfig, world: int = 1) -> int:
    """The sequences of a batch: as many as `train.batch_tokens`, where set, come nearest to and all processes share."""
    if not config.train.batch_tokens:
        return config.train.batch_size
    return max(1, round(config.train.batch_tokens / (config.model.context_length * world))) * world


def ngram_dropout(n_epochs: float) -> float:
    """How often a position goes without its n-grams: tables that see a text several times learn it by heart."""
    return 0.0 if n_epochs < 0.5 else round(min(0.5, 0.15 + 0.05 * n_epochs), 2)


def _size(config: RunConfig, given: Collection[str], corpus: Corpus, budget: float) -> dict[str, Any]:
    recurrent = config.model.kind == "rnn"
    size = next(size for size in (RNN_SIZES if recurrent else SIZES) if budget <= size.budget)
    T = size.context_length
    while T > 8 and len(corpus.train) < 4 * T:
        T //= 2
    if recurrent:
        n_rows = (
            max(1, min(size.batch_size, len(corpus.train) // T - 1)) if config.train.carry_state else size.batch_size
        )
        sizes = {"n_layer": size.n_layer, "d_model": size.d_model, "context_length": T}
        return {f"model.{name}": value for name, value in sizes.items()} | {"train.batch_size": n_rows}
    d_model = config.model.d_model if "model.d_model" in given else size.d_model
    n_head = size.n_head
    while n_head > 1 and (d_model % n_head or d_model // n_head % 2):
        n_head -= 1
    if "model.n_head" in given and "model.d_model" not in given:
        n_head = config.model.n_head
        d_model = max(1, round(d_model / (2 * n_head))) * 2 * n_head
    return {
        "model.n_layer": size.n_layer,
        "model.d_model": d_model,
        "model.n_head": n_head,
        "model.context_length": T,
        "train.batch_size": size.batch_size,
    }


def seconds_a_step(config: RunConfig, corpus: Corpus, machine: Machine, n: int = 6) -> float:
    """What a step takes here: the median of a few, of a model that is then thrown away."""
    model = build(config.model)
    model.initialise(torch.Generator().manual_seed(config.train.seed))
    model.to(machine.device)
    replica = Replica(model, config)
    batches = batches_of(config, corpus.train, corpus.tokenizer)
    times: list[float] = []
    while len(times) < 3 or (len(times) < n and sum(times[1:]) < 5):
        began = time.perf_counter()
        train_step(replica, batches, len(times), n_steps=1000)
        times.append(time.perf_counter() - began)
    later = sorted(times[1:])  # the first one allocates, and compiles
    return later[len(later) // 2]


def describe(config: RunConfig, corpus: Corpus, machine: Machine, world: int = 1) -> list[str]:
    """The plan in a few lines."""
    model, train, counts = config.model, config.train, corpus.counts
    with torch.device("meta"):
        n_params = build(model).n_parameters()
    batches = batches_of(config, corpus.train, corpus.tokenizer)
    tokens_a_step = batches.tokens_per_batch
    tokens = train.steps * tokens_a_step
    of = f"{train.batch_size} x {model.context_length} tokens"
    notes = [f"note     {NOTES[config.preset]}"] if config.preset in NOTES else []
    if isinstance(batches, Rows):
        of = f"{train.batch_size} documents of {tokens_a_step / train.batch_size:,.0f} tokens"
        if batches.share_cut:
            notes.append(f"note     {batches.share_cut:.1%} of the tokens are beyond the context and not trained on")
    tables = f", tables of {','.join(map(str, model.ngram_orders))}-grams" if model.ngram_orders else ""
    layers = f"{model.n_layer} layer{'s' * (model.n_layer > 1)}"
    heads = f"{model.n_head} heads, " if model.kind == "gpt" else f"{model.cell} cells, "
    unit = {"char": "characters", "byte": "bytes"}.get(corpus.tokenizer.kind, "tokens")
    if model.size:
        notes.append(
            f"note     model.size {model.size}: as many layers, 64 times that width, heads of 64; context, batch and "
            "learning rate follow, where they were not set"
        )
    return [
        f"text     {counts.n_train_tokens + counts.n_val_tokens:,} {unit} ({model.vocab_size:,} different); "
        f"{counts.n_val_tokens:,} held out",
        f"model    {config.preset}: {layers}, {heads}width {model.d_model}, context "
        f"{model.context_length}{tables}; {n_params:,} parameters",
        f"training {train.steps:,} steps of {of} = {tokens:,} "
        f"({tokens / counts.n_train_tokens:.1f} times the text), {config.optim.name}, {config.schedule.shape}"
        + (", by hand in NumPy" if train.engine == "reference" else ""),
        f"machine  {machine.device.type}, {machine.threads} threads, {train.dtype}, {machine.flops / 1e9:,.0f} GFLOP/s "
        f"in matrix products; {machine.reason}; a step is "
        f"{train_flops_per_token(model) * tokens_a_step / 1e9:,.1f} GFLOP; "
        f"{_compilation(config, tokens, machine, world)}",
        *notes,
    ]
