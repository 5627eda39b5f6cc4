"""Trains an n-gram model: one counting pass over the text instead of steps.

The run folder is like that of any other run, but without checkpoints and metrics. After a kill,
counting starts again from the beginning.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from lmsmith.checkpoint import save_model
from lmsmith.config import RunConfig, flatten
from lmsmith.data.batches.windows import Sources
from lmsmith.data.corpus import Corpus
from lmsmith.errors import ConfigError
from lmsmith.evaluate.compressors import compressed_bits_per_byte
from lmsmith.evaluate.likelihood import Score, score_ids
from lmsmith.models.ngram import Ngram
from lmsmith.models.ngram_config import NgramConfig
from lmsmith.strict_json import finite, write_json
from lmsmith.tokens.files import save_tokenizer
from lmsmith.tokens.tokenizer import unused_ids
from lmsmith.train.checks import check_counting
from lmsmith.train.device import peak_memory_bytes
from lmsmith.train.hooks.sample import sample_texts
from lmsmith.train.log import add_samples, say

SAMPLE_SECONDS = 2.0
LONG_ORDER = 8
"""Default order for characters or bytes under Kneser-Ney; longer ones are no better
(`docs/log.md`).
"""


def check_length(config: RunConfig, given: Collection[str]) -> list[str]:
    """Returns notes about length settings that have no effect on counting. Raises ConfigError."""
    if config.train.epochs not in (0.0, 1.0):
        raise ConfigError(
            f"train.epochs = {config.train.epochs:g}, but an n-gram model counts its text exactly "
            f"once. Leave train.epochs out, or choose another --preset."
        )
    said = [
        key
        for key in ("steps", "minutes", "tokens")
        if f"train.{key}" in given and getattr(config.train, key)
    ]
    return [
        f"n-grams are counted in one pass over the text, so train.{key} has no effect"
        for key in said
    ]


def resolve_counting(config: RunConfig, given: Collection[str], corpus: Corpus) -> RunConfig:
    """Returns the config with every open setting chosen. `given`: settings that the user set.

    Raises ConfigError.
    """
    check_counting(config)
    vocab_size = corpus.tokenizer.vocab_size
    if config.model.vocab_size not in (0, vocab_size):
        raise ConfigError(
            f"model.vocab_size = {config.model.vocab_size}, but the tokenizer has {vocab_size} "
            f"ids: leave it out, or set it to 0."
        )
    chosen: dict[str, Any] = {"model.vocab_size": vocab_size}
    model = config.model
    long = isinstance(model, NgramConfig) and model.smoothing == "kneser-ney"
    if "model.order" not in given and long:
        chosen |= {"model.order": LONG_ORDER} if corpus.tokenizer.kind in ("char", "byte") else {}
    return config.changed(chosen, where="the chosen settings")


def count(config: RunConfig, corpus: Corpus, place: Path, console: Console) -> dict[str, Any]:
    """Counts the n-grams, scores the validation split, and writes RUN/model, samples and summary.

    Returns the summary.
    """
    began = time.monotonic()
    counts = corpus.counts
    assert isinstance(config.model, NgramConfig)
    say(
        console,
        f"text     {counts.n_train_tokens + counts.n_val_tokens:,} tokens, vocabulary of "
        f"{config.model.vocab_size:,}; {counts.n_val_tokens:,} held out for validation",
        indent=9,
    )
    ids = corpus.train
    assert not isinstance(ids, Sources)
    config.model.learn(np.asarray(ids[:8]))  # compiles the kernels before the timed call
    start = time.perf_counter()
    model = config.model.learn(np.asarray(ids[:]))
    seconds = time.perf_counter() - start
    for line in _described(config.model, model, corpus):
        say(console, line, indent=9)
    score = score_ids(
        model,
        corpus.validation,
        n_bytes=counts.n_val_bytes,
        n_unknown=counts.n_val_unknown,
        n_unknown_bytes=counts.n_val_unknown_bytes,
        left_out=corpus.tokenizer.skips_unknown,
        starts_with_end_of_text=corpus.starts_with_end_of_text,
    )
    save_tokenizer(corpus.tokenizer, place / "model")
    content = {"model": flatten(vars(config.model)), "data": {"documents": "stream"}, "step": 0}
    save_model(place / "model", model.tensors(), content)
    if texts := sample_texts(model, corpus.tokenizer, 3, SAMPLE_SECONDS, config.train.seed):
        add_samples(place / "samples.md", 0, texts)
    summary = _summary(config, corpus, model, score, seconds)
    text = place / "tokens" / "validation.txt"  # not written for large prepared shards
    if text.exists():
        summary["baselines"] = compressed_bits_per_byte(text.read_bytes())
    summary["wall_seconds"] = time.monotonic() - began
    summary = finite(summary)
    write_json(place / "summary.json", summary)
    return summary


def _described(config: NgramConfig, model: Ngram, corpus: Corpus) -> Iterator[str]:
    """The lines that are printed about a counted model."""
    yield f"model    {config.describe()}; {model.n_parameters():,} counted"
    if n_unused := len(unused_ids(corpus.tokenizer, config.vocab_size)):
        yield f"note     {n_unused:,} ids belong to no token and are never generated"
    guessed = [str(discounts.order) for discounts in model.discounts if not discounts.estimated]
    if guessed:
        orders = ", ".join(guessed)
        yield f"note     order {orders}: the counts give no discounts; using 0.5, 1 and 1.5"


def _summary(
    config: RunConfig, corpus: Corpus, model: Ngram, score: Score, seconds: float
) -> dict[str, Any]:
    n_tokens = corpus.counts.n_train_tokens
    return {
        "n_params": model.n_parameters(),
        "steps": 0,
        "tokens_seen": n_tokens,
        "tokens_read": n_tokens,
        "val_loss": score.nats_per_token,
        "val_bits_per_byte": score.bits_per_byte,
        "best_val_loss": score.nats_per_token,
        "best_val_bits_per_byte": score.bits_per_byte,
        "best_step": 0,
        "val_impossible_share": score.n_impossible / score.n_tokens,
        "discounts": {
            str(found.order): [*found.amounts, found.estimated] for found in model.discounts
        },
        "train_seconds": seconds,
        "wall_seconds": None,
        "seconds_to_target": None,
        "tokens_per_second": n_tokens / seconds,
        "mfu": None,
        "peak_memory_bytes": peak_memory_bytes(torch.device("cpu")),
        "device": "cpu",
        "dtype": "float64",
        "threads": 1,
        "finished": "counted",
        "signal": None,
        "tokenizer": corpus.tokenizer.kind,
        "vocab_size": config.model.vocab_size,
        "n_train_tokens": n_tokens,
        "n_val_tokens": corpus.counts.n_val_tokens,
        "n_val_bytes": corpus.counts.n_val_bytes,
        "n_val_unknown": corpus.counts.n_val_unknown,
    }
