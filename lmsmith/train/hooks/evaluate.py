"""Computes the loss over the full validation split, and keeps the best weights."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch

from lmsmith.data.batches.packing import boundary_of
from lmsmith.data.conversations import Conversations
from lmsmith.distributed.shard import Scored
from lmsmith.errors import TrainingError
from lmsmith.evaluate.likelihood import Ids, Score, score_ids
from lmsmith.train.hooks.average import EVERY
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
        averaged = self._of_average(context)
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
            self._keep_best(context, found)
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
        if averaged:
            self._judge_average(context, averaged)

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

    def _of_average(self, context: Context) -> Evaluation | None:
        """Evaluates the mean of the last weights at the end of training, if there is one."""
        if not (context.state.average and context.is_last_step):
            return None
        _swap(context)
        try:
            with context.interruptible(), context.took("evaluate"):
                return self.evaluate(context)
        finally:
            _swap(context)

    def _judge_average(self, context: Context, found: Evaluation) -> None:
        """Reports the loss of the mean of the last weights, and keeps them if they are the best."""
        state = context.state
        is_best = found.loss < state.best_val_loss
        message = (
            f"val loss {found.loss:.4f} with the mean of the last {state.n_averaged:,} weights, "
            f"{EVERY} steps apart: {'the best so far' if is_best else 'not the best'}"
        )
        context.event(message)
        context.say(f"step {state.step:>6,}  {message}")
        if is_best:
            self._keep_best(context, found, average=True)

    def _keep_best(self, context: Context, found: Evaluation, *, average: bool = False) -> None:
        state = context.state
        state.best_step, state.best_is_average = state.step, average
        state.best_val_loss, state.best_val_bits_per_byte = found.loss, found.bits_per_byte
        state.best_val_metrics = dict(found.metrics)
        newest = state.average if average else context.weights()
        for name, weight in newest.items():
            if name in state.best:
                state.best[name].copy_(weight)  # reuses the memory of the old best
            else:
                state.best[name] = weight.clone()


@torch.no_grad()
def _swap(context: Context) -> None:
    """Swaps the weights and the mean of the last weights, one tensor at a time."""
    average = context.state.average
    for name, weight in context.weights().items():
        newest = weight.clone()
        weight.copy_(average[name])
        average[name].copy_(newest)
