"""Chooses every setting that the user left open, from the text and the machine.

Settings that the user gave stay. The others are chosen for the lowest validation loss in the
available time: a model whose matrix products fit the budget, a small batch for many steps, and a
dropout of the n-gram tables that grows with the number of epochs, and for texts that are read many
times weight decay and averaging. `docs/performance.md` has the measurements behind the numbers.
"""

import math
import sys
import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch

from lmsmith.config import RunConfig
from lmsmith.config.presets import has_size
from lmsmith.data.batches.conversations import PackedConversations
from lmsmith.data.batches.windows import InEpochs
from lmsmith.data.conversations import Conversations
from lmsmith.data.corpus import Corpus
from lmsmith.data.shards import Shards
from lmsmith.errors import ConfigError
from lmsmith.machine.heap import release_freed_memory
from lmsmith.machine.limits import omp_threads
from lmsmith.models.gpt import GPT
from lmsmith.models.lora import add_adapters
from lmsmith.train.by_hand import check_memory
from lmsmith.train.checks import check_growing, check_ranks
from lmsmith.train.device import Machine
from lmsmith.train.objective import objective_of
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step

DEFAULT_MINUTES = 10.0
NOMINAL_BUDGET = 3e13  # FLOPs: sizes the model when the length is given in steps or tokens
MOST_EVALUATIONS, LEAST_EVALUATIONS = 10, 3
EVALUATION_SHARE = 0.06  # maximum share of the time for more than LEAST_EVALUATIONS evaluations
MOST_EVALUATION = 0.25  # maximum share of the time for a single evaluation
N_LOG_LINES = 200
GOOD_MULTIPLE = 128  # pads the vocabulary on GPUs
STEPS_AN_EPOCH, MOST_ROWS = 30, 32  # of conversations, packed into rows
COMPILE_SECONDS = 180.0  # compiling takes up to a minute, which shorter runs do not regain
MANY_EPOCHS = 6.0  # from here on weight decay and averaging help
AVERAGE_FRACTION = 0.15
MOST_EPOCHS = 9.0  # with --minutes: more passes over a short text raise the validation loss
USUAL_SHARE = 0.4  # share of the measured matrix-product rate that training usually reaches


def resolve(
    config: RunConfig,
    given: Collection[str],
    corpus: Corpus,
    machine: Machine,
    seconds: float,
    world: int = 1,
) -> RunConfig:
    """Returns the config with every open setting chosen.

    `given`: settings that the user set. `seconds`: time for steps, used if the run's length is set
    in minutes. `world`: number of ranks that share a batch. Raises ConfigError; DataError if there
    is too little text.
    """
    config = _with_machine_and_size(config, given, corpus, machine, seconds, world)
    if config.train.batch_tokens:
        rows = {"train.batch_size": n_rows(config, world), "train.batch_tokens": 0}
        config = config.changed(rows, where="the chosen settings")
    if config.train.initial_batch_size:
        check_growing(config, world)
    check_ranks(config, world)
    if config.train.engine == "reference":
        check_memory(config)
    if "train.batch_size" not in given:
        config = _with_batch_size(config, corpus, world)
    # DataError for too little text
    tokens_a_step = objective_of(config).batches(corpus).tokens_per_batch
    if limited_by_time(config):
        if _from_scratch(config) and "train.max_epochs" not in given:
            config = config.changed({"train.max_epochs": MOST_EPOCHS}, where="the chosen settings")
        steps, n_evaluations = _steps_in(seconds, config, corpus, machine, tokens_a_step, world)
        steps = min(steps, most_steps(config, len(corpus.train), tokens_a_step))
    else:
        n_evaluations = MOST_EVALUATIONS
        steps = config.train.steps or int(config.train.tokens / tokens_a_step / _mean_share(config))
        if config.train.epochs:
            steps = steps_of_epochs(config, corpus)
    steps = max(1, steps)
    chosen: dict[str, Any] = {
        "train.steps": steps,
        "train.tokens": 0,  # train.steps replaces them
        "train.epochs": 0,
        "train.eval_every": config.train.eval_every
        or max(1, steps // max(LEAST_EVALUATIONS, n_evaluations)),
        "train.log_every": config.train.log_every or max(1, steps // N_LOG_LINES),
    }
    if config.train.compile == "auto":
        lasting = expected_seconds(config, steps * tokens_a_step, machine, world) > COMPILE_SECONDS
        chosen["train.compile"] = "yes" if lasting and can_compile(config, machine) else "no"
    n_epochs = steps * tokens_a_step / len(corpus.train)
    if getattr(config.model, "ngram_tables", ()) and "model.ngram_dropout" not in given:
        chosen["model.ngram_dropout"] = ngram_dropout(n_epochs)
    if _from_scratch(config) and "optim.weight_decay" not in given:
        chosen["optim.weight_decay"] = weight_decay(n_epochs)
    many = n_epochs >= MANY_EPOCHS
    if many and _from_scratch(config) and "train.average_fraction" not in given:
        chosen["train.average_fraction"] = AVERAGE_FRACTION
    return config.changed(chosen, where="the chosen settings")


def _with_batch_size(config: RunConfig, corpus: Corpus, world: int) -> RunConfig:
    """Returns the config with the batch size that fits the objective and the documents."""
    n = objective_of(config).batch_size(corpus, world)
    if n is None and isinstance(corpus.train, Conversations):
        n = _rows_of_conversations(config, corpus, world)
    if n is not None:
        config = config.changed({"train.batch_size": n}, where="what was chosen")
    if config.data.documents != "rows":
        return config
    # Documents may be shorter than the context: take enough rows for as many tokens as a batch of
    # windows would have.
    tokens_a_step = objective_of(config).batches(corpus).tokens_per_batch
    enough = config.train.batch_size**2 * config.model.context_length / tokens_a_step
    rows = math.ceil(enough / world) * world
    return config.changed({"train.batch_size": rows}, where="the chosen settings")


def _with_machine_and_size(
    config: RunConfig,
    given: Collection[str],
    corpus: Corpus,
    machine: Machine,
    seconds: float,
    world: int,
) -> RunConfig:
    """Returns the config with the vocabulary size, the machine's choices, and the sizes of model
    and batch.
    """
    vocab_size = corpus.tokenizer.vocab_size
    if config.model.vocab_size not in (0, vocab_size):
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size}, but the tokenizer has {vocab_size} "
            f"ids: leave it out, or set it to 0."
        )
    fixed: dict[str, Any] = {
        "model.vocab_size": vocab_size,
        "train.threads": machine.threads,
        "train.yield_cores": yields_cores(config, given),
        "train.matmul": machine.matmul,
        "train.device": str(machine.device)
        if world == 1
        else machine.device.type,  # each rank has its own device
        "train.dtype": machine.dtype,
    }
    config = config.changed(fixed, where="the chosen settings")
    chosen: dict[str, Any] = {}
    if not has_size(config.preset) and not getattr(config.model, "size", 0):
        # Without a time limit, the size must not depend on how fast the machine is.
        budget = seconds * machine.flops if limited_by_time(config) else NOMINAL_BUDGET
        chosen |= _size(config, given, corpus, budget)
    if (
        machine.device.type == "cuda"
    ):  # matrix products of odd sizes are slower; padding ids are never predicted
        chosen["model.vocab_multiple"] = GOOD_MULTIPLE
    if "train.batch_size" in chosen:
        chosen["train.batch_size"] = -(-chosen["train.batch_size"] // world) * world
    open_ones = {name: value for name, value in chosen.items() if name not in given}
    return config.changed(open_ones, where="the chosen settings")


def _steps_in(
    seconds: float,
    config: RunConfig,
    corpus: Corpus,
    machine: Machine,
    tokens_a_step: int,
    world: int,
) -> tuple[int, int]:
    """Returns how many steps and evaluations fit into `seconds`, from measured steps.

    Raises ConfigError if not even one step fits, or if a single evaluation takes too long.
    """
    a_step = seconds_a_step_of_share(config, corpus, machine, world)
    if a_step > seconds:
        raise ConfigError(
            f"one step of this model takes {a_step:.1f} s on this machine, and only "
            f"{max(0.0, seconds):.0f} s are available for steps. "
            "Set more --minutes, a smaller model or a smaller --train.batch_size."
        )
    an_evaluation = len(corpus.validation) / tokens_a_step * a_step / 3  # forward pass only
    # The validation split of a text is never larger than needed; that of shards may be huge.
    if isinstance(corpus.validation, Shards) and an_evaluation > MOST_EVALUATION * seconds:
        fewer = float(f"{0.02 * seconds / an_evaluation * len(corpus.validation):.1g}")
        raise ConfigError(
            f"scoring the {len(corpus.validation):,} validation tokens once takes about "
            f"{an_evaluation:,.0f} s on this machine, and only {seconds:,.0f} s are available for "
            f"training. Set more --minutes, or a smaller validation set: "
            f"--data.validation_tokens {fewer:.0f} for shards, a smaller "
            f"--data.validation_fraction for text."
        )
    return int(seconds / a_step), min(
        MOST_EVALUATIONS, int(EVALUATION_SHARE * seconds / an_evaluation)
    )


def yields_cores(config: RunConfig, given: Collection[str]) -> str:
    """Returns `train.yield_cores`, with "auto" resolved: "no" if the user set the number of
    threads, else "yes".
    """
    if config.train.yield_cores != "auto":
        return config.train.yield_cores
    return "no" if omp_threads() or (config.train.threads and "train.threads" in given) else "yes"


def expected_seconds(config: RunConfig, n_tokens: int, machine: Machine, world: int) -> float:
    """Estimates the duration of a run in seconds: `train.minutes` if set, else its FLOPs at
    USUAL_SHARE of the machine's rate.
    """
    if config.train.minutes:
        return 60 * config.train.minutes
    return n_tokens * config.neural.train_flops_per_token() / (USUAL_SHARE * machine.flops * world)


def can_compile(config: RunConfig, machine: Machine) -> bool:
    """Returns whether torch.compile makes steps faster: for Transformers on GPUs with Triton
    installed.
    """
    from torch.utils._triton import has_triton

    return machine.device.type == "cuda" and config.model.compilable and has_triton()


def _share_of(config: RunConfig, world: int) -> RunConfig:
    """Returns the config with one rank's share of the batch."""
    rows = max(1, config.train.batch_size // world)
    return (
        config.changed({"train.batch_size": rows}, where="the share of a process")
        if world > 1
        else config
    )


def limited_by_time(config: RunConfig) -> bool:
    """Returns whether only `train.minutes` sets the length of the run."""
    return not (config.train.steps or config.train.tokens or config.train.epochs)


def steps_of_epochs(config: RunConfig, corpus: Corpus) -> int:
    """Returns the number of steps for `train.epochs` passes over the training split, rounded up.
    With one document per row, these are passes over the documents.
    """
    epochs = config.train.epochs
    batches = objective_of(config).batches(corpus)
    if isinstance(batches, InEpochs):
        return _ceil(epochs * batches.n_batches)
    wanted = _ceil(
        epochs * len(corpus.train) / config.model.context_length
    )  # rows; the last one may be partial
    if not config.train.initial_batch_size:
        return max(1, -(-wanted // config.train.batch_size))

    def n_rows_in(steps: int) -> int:
        """Returns the number of rows that a run of `steps` steps reads, with batch-size warm-up."""
        train = replace(config.train, steps=steps)
        return sum(map(train.rows_of, range(steps)))

    few, enough = 0, max(1, -(-wanted // config.train.initial_batch_size))
    while enough - few > 1:
        middle = (few + enough) // 2
        few, enough = (few, middle) if n_rows_in(middle) >= wanted else (middle, enough)
    return enough


def _ceil(number: float) -> int:
    """Rounds up, with a tolerance for floating-point error: 0.1 of 30 is 3."""
    return math.ceil(number * (1 - 1e-12))


def _mean_share(config: RunConfig) -> float:
    """Mean batch size of a run of unknown length, as a share of `train.batch_size`."""
    train = replace(config.train, steps=1000)  # the share hardly depends on the number of steps
    return sum(map(train.rows_of, range(train.steps))) / (train.steps * train.batch_size)


def n_rows(config: RunConfig, world: int = 1) -> int:
    """Sequences per batch: the number nearest to `train.batch_tokens`, if set, that all ranks can
    share evenly.
    """
    if not config.train.batch_tokens:
        return config.train.batch_size
    return max(1, round(config.train.batch_tokens / (config.model.context_length * world))) * world


def ngram_dropout(n_epochs: float) -> float:
    """Share of positions that are trained without the n-gram embedding of one order.

    It grows with the number of epochs, because the tables memorize a text they see repeatedly.
    """
    return 0.0 if n_epochs < 0.5 else round(min(0.5, 0.15 + 0.05 * n_epochs), 2)


def weight_decay(n_epochs: float) -> float:
    """Decoupled weight decay of Muon's matrices and the head: 0.1 if the text is read many times.

    In runs of one to four epochs it makes no difference or costs a little (`docs/studies.md`).
    """
    return 0.1 if n_epochs >= MANY_EPOCHS else 0.0


def most_steps(config: RunConfig, n_tokens: int, tokens_a_step: int) -> int:
    """The number of steps in `train.max_epochs` passes over a text of `n_tokens`, at least 1."""
    if not config.train.max_epochs:
        return sys.maxsize
    return max(1, int(config.train.max_epochs * n_tokens / tokens_a_step))


def _from_scratch(config: RunConfig) -> bool:
    """Whether the regularization of many epochs is chosen: for Transformers that Muon trains from
    random weights. Tuned weights would decay away from those they start with.
    """
    return (
        config.model.kind == "gpt"
        and config.optim.name == "muon"
        and not config.train.init_from
        and config.train.objective == "cross-entropy"
    )


def _size(
    config: RunConfig, given: Collection[str], corpus: Corpus, budget: float
) -> dict[str, Any]:
    """Chooses sizes of model and batch for a budget of FLOPs; the model's kind has the rule."""
    n_tokens = len(corpus.train)
    chosen, rows = config.neural.default_size(budget, n_tokens, given)
    if rows is None:
        return chosen
    if config.train.truncated_bptt:  # each row is its own stream, at least two contexts long
        context_length = chosen.get("model.context_length", config.neural.context_length)
        rows = max(1, min(rows, n_tokens // context_length - 1))
    return chosen | {"train.batch_size": rows}


def seconds_a_step_of_share(
    config: RunConfig, corpus: Corpus, machine: Machine, world: int
) -> float:
    """Measures the seconds per step when `world` ranks share a batch."""
    return seconds_a_step(_share_of(config, world), corpus, machine)


def seconds_a_step(config: RunConfig, corpus: Corpus, machine: Machine, n: int = 6) -> float:
    """Measures the seconds per step: the median of a few steps of a temporary model."""
    release_freed_memory()  # of the tokenization
    try:
        return _seconds_a_step(config, corpus, machine, n)
    finally:
        release_freed_memory()


def _seconds_a_step(config: RunConfig, corpus: Corpus, machine: Machine, n: int) -> float:
    model = config.neural.build()
    generator = torch.Generator().manual_seed(config.train.seed)
    model.initialise(generator)
    if config.lora.rank:
        assert isinstance(model, GPT)
        add_adapters(model, config.lora, generator)
    model.to(machine.device)
    replica = Replica(model, config)
    batches = replica.objective.batches(corpus)
    times: list[float] = []
    while len(times) < 3 or (len(times) < n and sum(times[1:]) < 5):
        began = time.perf_counter()
        train_step(replica, batches, len(times), n_steps=1000)
        times.append(time.perf_counter() - began)
    later = sorted(times[1:])  # the first step allocates and compiles
    return later[len(later) // 2]


def _rows_of_conversations(config: RunConfig, corpus: Corpus, world: int) -> int:
    """Rows per batch for about `STEPS_AN_EPOCH` steps per epoch, at most MOST_ROWS."""
    batches = objective_of(config).batches(corpus)
    assert isinstance(batches, PackedConversations)
    rows = min(MOST_ROWS, max(1, batches.n_rows // STEPS_AN_EPOCH))
    return -(-rows // world) * world
