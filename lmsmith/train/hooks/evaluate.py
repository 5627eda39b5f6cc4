"""Computes the loss over the full validation split, and keeps the best weights."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from lmsmith.data.batches.packing import boundary_of
from lmsmith.data.conversations import Conversations
from lmsmith.distributed.shard import Scored
from lmsmith.errors import TrainingError
from lmsmith.evaluate.likelihood import Ids, Score, score_ids
from lmsmith.train.hooks.hook import Context, Hook
from lmsmith.train.objective import Evaluation

PART_TOKENS, PART_SHARE = 4096, 1 / 32  # the smaller one limits the part that is timed


class Evaluate(Hook):
    """Evaluates every `train.eval_every` steps and at the end; keeps the best weights."""

    name = "evaluate"
    at_end = True
    collective = True

    def __init__(self, every: int) -> None:
        self.every = every

    def due(self, context: Context) -> bool:
        return super().due(context) and context.step > context.state.evaluated_step

    def after_step(self, context: Context) -> None:
        with context.interruptible(), context.took("evaluate"):
            found = self.evaluate(context)
        if not math.isfinite(found.loss):
            raise TrainingError(
                f"step {context.step}: the validation loss is {found.loss}, so training "
                "has diverged. Lower --learning-rate or increase --schedule.warmup_steps."
            )
        state, target = context.state, context.config.train.stop_at_val_loss
        state.evaluated_step = state.step
        state.val_loss, state.val_bits_per_byte = found.loss, found.bits_per_byte
        state.val_metrics = dict(found.metrics)
        if state.val_loss < state.best_val_loss:
            self._keep_best(context)
        if target and state.val_loss <= target:
            state.seconds_to_target = state.train_seconds
        context.metrics.write(
            kind="eval",
            step=state.step,
            val_loss=state.val_loss,
            val_bits_per_byte=state.val_bits_per_byte,
            tokens=state.tokens_seen,
            seconds=state.train_seconds,
            **found.metrics,
        )
        if context.progress is not None:
            shown = context.replica.objective.shown
            context.progress.evaluated(
                state.step,
                state.val_loss,
                state.val_bits_per_byte,
                {name: found.metrics[name] for name in shown},
            )

    def evaluate(self, context: Context) -> Evaluation:
        """Evaluates by the objective, by default the likelihood of the validation split."""
        if found := context.replica.objective.evaluate(context):
            return found
        score = self.score(context)
        if not math.isfinite(score.nats):
            return Evaluation(score.nats)
        return Evaluation(score.nats_per_token, score.bits_per_byte)

    def score(self, context: Context, ids: Ids | Conversations | None = None) -> Score:
        """Scores `ids`, or else the full validation split; each rank computes a share."""
        corpus, ranks, counts = context.corpus, context.ranks, context.corpus.counts
        model: Any = context.model if ranks.world == 1 else Scored(context.replica.summed_loss)
        with context.replica.autocast():
            found = score_ids(
                model,
                corpus.validation if ids is None else ids,
                n_bytes=counts.n_val_bytes,
                n_unknown=counts.n_val_unknown,
                n_unknown_bytes=counts.n_val_unknown_bytes,
                left_out=corpus.tokenizer.skips_unknown,
                starts_with_end_of_text=corpus.starts_with_end_of_text,
                boundary=boundary_of(context.config.data.documents, corpus.tokenizer),
                share=(ranks.rank, ranks.world),
            )
        nats, n_impossible = ranks.sum(found.nats, found.n_impossible)
        return replace(found, nats=nats, n_impossible=int(n_impossible))

    def score_end(self, context: Context) -> Score:
        """Scores the end of the validation split, with windows of all shapes."""
        validation = context.corpus.validation
        n = len(validation)
        return self.score(context, validation[max(0, n - PART_TOKENS - n % PART_TOKENS) :])

    def measure(self, context: Context) -> float:
        """Estimates the seconds of an evaluation, by scoring a part of the split twice. Other
        objectives than cross-entropy are evaluated in full.
        """
        validation, times = context.corpus.validation, list[float]()
        if not context.replica.objective.is_cross_entropy:
            began = time.monotonic()
            self.evaluate(context)
            return time.monotonic() - began
        enough = max(context.config.model.context_length + 1, int(PART_SHARE * len(validation)))
        part = validation[: min(PART_TOKENS, enough)]
        for _ in range(2):
            began = time.monotonic()
            self.score(context, part)
            times.append(time.monotonic() - began)
        return min(times) * len(validation) / len(part)

    def _keep_best(self, context: Context) -> None:
        state = context.state
        state.best_step = state.step
        state.best_val_loss = state.val_loss
        state.best_val_bits_per_byte = state.val_bits_per_byte
        state.best_val_metrics = state.val_metrics
        for name, weight in context.replica.weights(copy=not state.best).items():
            state.best.setdefault(name, weight).copy_(weight)  # reuses the memory of the old best
