"""Generates sample texts during training and at its end, and writes them to samples.md."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lmsmith.distributed.shard import unshard_all
from lmsmith.errors import UsageError
from lmsmith.evaluate.likelihood import inference
from lmsmith.generate.batched import without_graphs
from lmsmith.generate.decode import generate
from lmsmith.generate.sampling import Sampling
from lmsmith.generate.text_model import TextModel
from lmsmith.models.gpt import GPT
from lmsmith.models.interface import LanguageModel
from lmsmith.models.lora import merged
from lmsmith.tokens.tokenizer import Tokenizer
from lmsmith.train.hooks.hook import Context, Hook
from lmsmith.train.init_from import saved_special_ids
from lmsmith.train.log import add_samples
from lmsmith.train.replica import uncompiled
from lmsmith.train.step import is_out_of_memory

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 20.0  # minimum time between samples during training
SAMPLE_SHARE = 0.02  # maximum share of the training time for samples
SAMPLE_TOKENS = 300
LAST_SAMPLE_SECONDS = 2.0  # time limit for the final samples of a run with a deadline


class Sample(Hook):
    """Samples one text after an evaluation, if enough time has passed, and three at the end."""

    name = "sample"
    at_end = True
    collective = True  # under FSDP2 every rank has shards of the weights

    def __init__(self) -> None:
        self._last_sample = 0.0
        self._said_no_samples = False

    def on_start(self, context: Context) -> None:
        self._last_sample = time.monotonic()

    def due(self, context: Context) -> bool:
        """Decides by this rank's clock. One rank that is due makes all ranks sample."""
        if context.is_last_step or context.state.evaluated_step != context.step:
            return False
        return self.pause_is_over(context)

    def pause_is_over(self, context: Context) -> bool:
        """Returns whether enough time has passed for another sample after the next evaluation."""
        pause = max(SAMPLE_SECONDS, context.took.latest.get("sample", 0.0) / SAMPLE_SHARE)
        return time.monotonic() - self._last_sample > pause

    def after_step(self, context: Context) -> None:
        self._sample(context, 1)

    def on_end(self, context: Context) -> None:
        if context.finished != "signal":
            self._sample(context, 3)

    def _sample(self, context: Context, n: int) -> None:
        """Adds n texts to samples.md; near a deadline they may be shorter."""
        if context.replica.objective.generates:  # it writes samples of its own
            return
        seconds = LAST_SAMPLE_SECONDS if context.deadline < math.inf else math.inf
        config, tokenizer = context.config, context.corpus.tokenizer
        with context.interruptible(), context.took("sample"):
            sharded = context.ranks.world > 1 and config.train.parallel == "fsdp"
            keep, shards = context.ranks.first, context.replica.weights(copy=False)
            weights = unshard_all(shards, keep=keep) if sharded else {}

            def write() -> str:
                try:
                    model: LanguageModel = context.model
                    if sharded and not config.lora.rank:
                        model = full_model(context, weights)
                    if config.lora.rank:  # decoders read a matrix without its adapters
                        assert isinstance(context.model, GPT)
                        every = weights if sharded else shards
                        model = full_model(context, merged(every, config.lora, context.model))
                    special = saved_special_ids(context.run)
                    with uncompiled(config), without_graphs():
                        texts = sample_texts(
                            model, tokenizer, n, seconds, config.train.seed, special
                        )
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    return "out of memory"
                if texts:
                    add_samples(context.run / "samples.md", context.step, texts)
                return "written"

            done = context.ranks.on_rank_zero(write)
        if done != "written" and not self._said_no_samples:
            self._said_no_samples = True
            log.warning("no samples were generated: %s", done)
        self._last_sample = time.monotonic()


def full_model(context: Context, weights: Mapping[str, Tensor]) -> LanguageModel:
    """Builds the full model from gathered weights, so that one rank can run it alone."""
    model = context.config.neural.build().to(context.device)
    model.load_state_dict(weights)
    return model


def sample_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    n: int,
    seconds: float,
    seed: int,
    special: Mapping[str, Any] | None = None,
) -> list[str]:
    """Generates n texts of up to SAMPLE_TOKENS tokens; none if no token can start a text.

    `seconds`: time limit for all of them. `special`: the `begin` and `ends` of an imported
    model (`TextModel.of`).
    """
    writer = TextModel.of(model, tokenizer, special)
    try:
        ids = writer.encode("")
    except UsageError:
        return []
    until, rows = time.monotonic() + seconds, list[list[int]]()
    done = [False] * n
    draw = functools.partial(
        generate, model, ids, max_tokens=SAMPLE_TOKENS, n=n, stop_id=tokenizer.end_of_text
    )
    with inference(model):  # entered once, not for every token
        for row in draw(sampling=Sampling(temperature=0.8), seed=seed, tokenizer=tokenizer):
            rows.append(row)
            done = [was or id in writer.ends for was, id in zip(done, row, strict=True)]
            if all(done) or time.monotonic() > until:
                break
    columns = [list(column) for column in zip(*rows, strict=True)]
    lengths = [
        next((i for i, id in enumerate(column) if id in writer.ends), len(column))
        for column in columns
    ]
    return [
        tokenizer.decode(column[:length]) for column, length in zip(columns, lengths, strict=True)
    ]
