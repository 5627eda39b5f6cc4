"""Describes a run before it starts: its text, model, training and machine, with notes."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from lmsmith.config import RunConfig
from lmsmith.config.presets import NOTES
from lmsmith.data.batches.conversations import PackedConversations
from lmsmith.data.batches.rows import Rows
from lmsmith.data.corpus import Corpus
from lmsmith.machine.limits import free_memory
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.optim.rates import peak_rates
from lmsmith.plan.forecast import memory_warning
from lmsmith.text.files import plural
from lmsmith.tokens.tokenizer import unused_ids
from lmsmith.train.choose import can_compile, expected_seconds, most_steps
from lmsmith.train.device import Machine
from lmsmith.train.objective import AnyBatches, Described, objective_of
from lmsmith.train.plan import FEW_STEPS


def describe(config: RunConfig, corpus: Corpus, machine: Machine, world: int = 1) -> list[str]:
    """Returns the lines that a run prints about text, model, training and machine, then notes."""
    model, train, counts = config.neural, config.train, corpus.counts
    batches = objective_of(config).batches(corpus)
    described = _described(config, corpus, batches)
    n_tokens = train.steps * batches.tokens_per_batch
    name = f"from {train.init_from}" if train.init_from else config.preset
    unit = {"char": "characters", "byte": "bytes"}.get(corpus.tokenizer.kind, "tokens")
    gflops = config.neural.train_flops_per_token() * batches.tokens_per_batch / 1e9
    notes = [*([NOTES[name]] if name in NOTES else []), *described.notes, *_notes(config, corpus)]
    return [
        f"text     {counts.n_train_tokens + counts.n_val_tokens:,} {unit}, vocabulary of "
        f"{model.vocab_size:,}; {counts.n_val_tokens:,} held out for validation",
        f"model    {name}: {model.describe()}; {model.n_parameters():,} parameters",
        f"training {plural(train.steps, 'step')} of {described.of} = {n_tokens:,} tokens "
        f"({_in_epochs(described.epochs)}), optimizer {config.optim.name}, "
        f"schedule {config.schedule.shape}"
        + (", gradients by hand in NumPy" if train.engine == "reference" else "")
        + f"; {_rates(config)}",
        f"machine  {machine.device.type}, {_workers(machine, world)}, {train.dtype}; "
        f"{machine.flops / 1e9:,.0f} GFLOP/s in matrix products ({machine.reason}); "
        f"{gflops:,.1f} GFLOP per step; {_compilation(config, n_tokens, machine, world)}",
        *_memory_warning(config, machine, world),
        *(f"note     {note}" for note in notes),
    ]


def _described(config: RunConfig, corpus: Corpus, batches: AnyBatches) -> Described:
    """Describes the batches, in the objective's words if it has its own."""
    train, context_length = config.train, config.neural.context_length
    tokens_a_step = batches.tokens_per_batch
    of = f"{train.batch_size} x {context_length} tokens"
    epochs = train.steps * tokens_a_step / corpus.counts.n_train_tokens
    notes: tuple[str, ...] = ()
    if isinstance(batches, PackedConversations):
        epochs = train.steps / batches.n_batches
        of = f"{plural(train.batch_size, 'row')} of conversations, {tokens_a_step:,} learned tokens"
        notes = (
            f"{batches.conversations.n:,} conversations in {batches.n_rows:,} rows of "
            f"{context_length:,} tokens; {batches.padding:.1%} padding",
        )
    if isinstance(batches, Rows):
        length = tokens_a_step / train.batch_size
        of = f"{plural(train.batch_size, 'document')} of {length:,.0f} tokens"
        if batches.share_cut:
            notes = (
                f"{batches.share_cut:.1%} of the tokens lie beyond the context length and are not "
                "trained on",
            )
    if own := objective_of(config).describe(corpus, batches):
        return Described(own.of, own.epochs, notes + own.notes)
    return Described(of, epochs, notes)


def _notes(config: RunConfig, corpus: Corpus) -> Iterator[str]:
    """Notes about the vocabulary, the model's size and the length of the run."""
    model, train = config.neural, config.train
    if n_unused := len(unused_ids(corpus.tokenizer, model.vocab_size)):
        yield (
            f"{n_unused:,} of the {model.vocab_size:,} ids belong to no token and are never "
            "generated"
        )
    if isinstance(model, GPTConfig) and model.size:
        yield (
            f"model.size {model.size} sets {model.size} layers, width {64 * model.size} and heads "
            "of 64; context, batch and learning rate follow unless set"
        )
    if train.minutes and train.steps < FEW_STEPS:
        yield (
            f"there is time for only about {plural(train.steps, 'step')} in {train.minutes:g} "
            "minutes on this machine: set more --minutes, a smaller model or a smaller "
            "--train.batch_size"
        )
    most = most_steps(
        config, len(corpus.train), objective_of(config).batches(corpus).tokens_per_batch
    )
    if train.minutes and train.steps == most:
        yield (
            f"the run ends after {train.max_epochs:g} epochs, before the {train.minutes:g} minutes "
            "are over, because it would memorize the text (--train.max_epochs 0: no limit)"
        )


def _rates(config: RunConfig) -> str:
    """Returns the peak learning rate of each parameter group, under the name of its setting."""
    rates = peak_rates(config.optim)
    return "peak learning rates " + ", ".join(f"{name} {rate:g}" for name, rate in rates.items())


def _workers(machine: Machine, world: int) -> str:
    threads = plural(machine.threads, "thread")
    return threads if world == 1 else f"{world} processes of {threads} each"


def _memory_warning(config: RunConfig, machine: Machine, world: int) -> list[str]:
    on_gpu = machine.device.type == "cuda"
    room = free_memory()
    if on_gpu:
        room = torch.cuda.mem_get_info(machine.device)[0] if torch.cuda.is_available() else 0.0
    short = memory_warning(config, room, gpu=on_gpu, world=world)
    return [f"warning  {short}"] if short else []


def _in_epochs(n: float) -> str:
    return f"{n:.1f} epochs" if n >= 0.1 else f"{n:.2g} epochs"


def _compilation(config: RunConfig, n_tokens: int, machine: Machine, world: int) -> str:
    """Says whether blocks are compiled, and why."""
    seconds = expected_seconds(config, n_tokens, machine, world)
    length = f"compiling takes about a minute, the run about {seconds:,.0f} s"
    if config.train.compile == "yes":
        return f"compiled: {length}"
    reason = "no gain on CPUs" if machine.device.type == "cpu" else length
    if machine.device.type == "cuda" and not can_compile(config, machine):
        reason = "needs a Transformer and Triton"
    return f"not compiled: {reason}"
