"""Texts that the model writes while it is trained and at the end, in samples.md."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lmsmith.distributed.shard import unshard_all
from lmsmith.errors import UsageError
from lmsmith.evaluate.likelihood import inference
from lmsmith.generate.decode import generate
from lmsmith.generate.sampling import Sampling
from lmsmith.generate.text_model import TextModel
from lmsmith.models.interface import LanguageModel
from lmsmith.tokens.tokenizer import Tokenizer
from lmsmith.train.hooks.hook import Context, Hook
from lmsmith.train.init_from import ends_kept
from lmsmith.train.log import add_samples
from lmsmith.train.step import is_out_of_memory

log = logging.getLogger(__name__)

SAMPLE_SECONDS = 20.0  # between two samples while training
SAMPLE_SHARE = 0.02  # of the time, at most, goes into them
SAMPLE_TOKENS = 300
LAST_SAMPLE_SECONDS = 2.0  # for the samples at the end, under a deadline


class Sample(Hook):
    """Draws a text after an evaluation, if the last one is some time ago, and three at the end."""

    name = "sample"
    at_end = True
    collective = True  # under FSDP2 every rank has shards of the weights

    def __init__(self) -> None:
        self._last_sample = 0.0
        self._said_no_samples = False

    def on_start(self, context: Context) -> None:
        self._last_sample = time.monotonic()

    def due(self, context: Context) -> bool:
        """By this rank's clock: all ranks are asked, and one yes is enough."""
        if context.is_last_step or context.state.evaluated_step != context.step:
            return False
        return self.pause_is_over(context)

    def pause_is_over(self, context: Context) -> bool:
        """Whether the last sample is long enough ago for another one after the next evaluation."""
        pause = max(SAMPLE_SECONDS, context.took.latest.get("sample", 0.0) / SAMPLE_SHARE)
        return time.monotonic() - self._last_sample > pause

    def after_step(self, context: Context) -> None:
        self._sample(context, 1)

    def on_end(self, context: Context) -> None:
        if context.finished != "signal":
            self._sample(context, 3)

    def _sample(self, context: Context, n: int) -> None:
        """Adds n texts to samples.md: shorter ones where the time before a deadline is short."""
        seconds = LAST_SAMPLE_SECONDS if context.deadline < math.inf else math.inf
        config, tokenizer = context.config, context.corpus.tokenizer
        with context.interruptible(), context.took("sample"):
            sharded = context.ranks.world > 1 and config.train.parallel == "fsdp"
            keep, shards = context.ranks.first, context.replica.weights(copy=False)
            weights = unshard_all(shards, keep=keep) if sharded else {}

            def write() -> str:
                try:
                    model = whole_model(context, weights) if sharded else context.model
                    # Compiled blocks would be compiled again for every length of a text.
                    ends = ends_kept(context.run).get("ends", ())
                    with torch.compiler.set_stance("force_eager"):
                        texts = sample_texts(model, tokenizer, n, seconds, config.train.seed, ends)
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    return "memory does not suffice for it"
                if texts:
                    add_samples(context.run / "samples.md", context.step, texts)
                return "written"

            done = context.ranks.on_rank_zero(write)
        if done != "written" and not self._said_no_samples:
            self._said_no_samples = True
            log.warning("there are no samples: %s", done)
        self._last_sample = time.monotonic()


def whole_model(context: Context, weights: Mapping[str, Tensor]) -> LanguageModel:
    """A model that is no shard, which one rank can call alone."""
    model = context.config.neural.build().to(context.device)
    model.load_state_dict(weights)
    return model


def sample_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    n: int,
    seconds: float,
    seed: int,
    ends: Collection[int] = (),
) -> list[str]:
    """n texts of up to SAMPLE_TOKENS tokens; none where no token could begin a text.

    `seconds`: all of them end about then. `ends`: ids at which texts end, besides the end-of-text
    token.
    """
    writer = TextModel.of(model, tokenizer, {"ends": ends})
    try:
        ids = writer.encode("")
    except UsageError:
        return []
    until, rows = time.monotonic() + seconds, list[list[int]]()
    done = [False] * n
    draw = functools.partial(
        generate, model, ids, max_tokens=SAMPLE_TOKENS, n=n, stop_id=tokenizer.end_of_text
    )
    with inference(model):  # once, not at every token
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
