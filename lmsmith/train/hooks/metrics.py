"""Writes metrics.jsonl, TensorBoard and Weights & Biases, and shows progress.

Other hooks write with `context.metrics.write(kind=..., step=..., ...)`; all trackers receive it
too. Only rank 0 writes; lines that other ranks write are dropped.
"""

from __future__ import annotations

from collections import deque

from lmsmith.train.hooks.hook import Context, Hook, LastStep
from lmsmith.train.log import MetricsFile, Progress
from lmsmith.train.trackers import trackers

RECENT = 20  # steps over which the rate in metrics.jsonl is averaged


class Metrics(Hook):
    """Shows every step; writes a line for the first, the last and every `train.log_every`-th."""

    name = "metrics"

    def __init__(self) -> None:
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)  # tokens read, seconds

    def on_start(self, context: Context) -> None:
        config, state, first = context.config, context.state, context.ranks.first
        path = context.run / "metrics.jsonl" if first else None
        context.metrics = context.enter(
            MetricsFile(path, step=state.step, evaluated_step=state.evaluated_step)
        )
        tracked = trackers(config.train.track if first else (), context.run, config, state.step)
        context.metrics.also = context.enter(tracked)
        context.progress = context.enter(
            Progress(
                context.console,
                state.n_steps,
                context.batches.tokens_per_batch,
                step=state.step,
                deadline=context.deadline,
                share_per_token=config.neural.train_flops_per_token() / context.peak_flops,
            )
        )
        for message in context.events:
            context.event(message)

    def after_step(self, context: Context) -> None:
        if context.last is None or context.progress is None:
            return
        with context.took("metrics"):
            self._write(context, context.last, context.progress)

    def on_end(self, context: Context) -> None:
        if context.progress is not None:
            context.progress.stop()

    def _write(self, context: Context, last: LastStep, progress: Progress) -> None:
        step, config = context.step, context.config
        self._recent.append((last.n_read, last.seconds))
        n_tokens, seconds = (sum(column) for column in zip(*self._recent, strict=True))
        rate = n_tokens / seconds
        if step % config.train.log_every == 0 or step in (1, context.n_steps):
            context.metrics.write(
                kind="train",
                step=step,
                **last.numbers,
                tokens=context.state.tokens_seen,
                tokens_read=context.state.tokens_read,
                seconds=context.state.train_seconds,
                tokens_per_second=rate,
                mfu=rate * config.neural.train_flops_per_token() / context.peak_flops,
            )
        progress.n_steps = context.n_steps
        progress.tokens_per_step = round(n_tokens / len(self._recent))  # batches may grow
        progress.update(step, last.numbers["loss"])
