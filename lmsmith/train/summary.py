"""Collects the numbers of summary.json."""

from __future__ import annotations

import math
from typing import Any

from lmsmith.config import NeuralConfig
from lmsmith.plan.forecast import forecast
from lmsmith.strict_json import finite
from lmsmith.train.device import peak_memory_bytes
from lmsmith.train.hooks.hook import Context
from lmsmith.train.outcome import outcome


def summary_of_run(context: Context, first_step: int) -> dict[str, Any]:
    """Returns the summary of a run that has ended. `first_step`: where this process started.

    Losses are in nats per token, times in seconds; unknown values are None. `tokens_seen` counts
    targets, `tokens_read` all tokens, as do `tokens_per_second` and `mfu`: a run on conversations
    reads more than it learns.
    """
    state, config, counts = context.state, context.config, context.corpus.counts
    state.wall_seconds = context.wall_seconds()
    rate = state.tokens_read / state.train_seconds if state.train_seconds else math.nan
    finished, stopped_by = context.finished, context.signals.signal
    summary = {
        "n_params": context.model.n_parameters(),
        "steps": state.step,
        "tokens_seen": state.tokens_seen,
        "tokens_read": state.tokens_read,
        "val_loss": state.val_loss,
        "val_bits_per_byte": state.val_bits_per_byte,
        "best_val_loss": state.best_val_loss,
        "best_val_bits_per_byte": state.best_val_bits_per_byte,
        "best_step": state.best_step,
        "best_is_average": state.best_is_average,
        "train_seconds": state.train_seconds,
        "wall_seconds": state.wall_seconds,
        "seconds_to_target": state.seconds_to_target,
        "tokens_per_second": rate,
        "mfu": rate * config.neural.train_flops_per_token() / context.peak_flops,
        "peak_memory_bytes": peak_memory_bytes(context.device),
        "device": str(context.device),
        "dtype": config.train.dtype,
        "threads": config.train.threads,
        "finished": finished,
        "signal": stopped_by.name if stopped_by and finished == "signal" else None,
        "planned_steps": state.n_steps,
        "first_planned_steps": config.train.steps,
        "n_corrections": state.n_corrections,
        "resumed_from_step": first_step or None,
        "tokenizer": context.corpus.tokenizer.kind,
        "vocab_size": config.model.vocab_size,
        "n_train_tokens": counts.n_train_tokens,
        "n_val_tokens": counts.n_val_tokens,
        "n_val_bytes": counts.n_val_bytes,
        "n_val_unknown": counts.n_val_unknown,
    }
    if isinstance(config.model, NeuralConfig):
        summary["forecast"] = forecast(
            config, gpu=context.device.type == "cuda", world=context.ranks.world
        )
        if context.ranks.first:
            summary["outcome"] = outcome(
                config,
                context.device,
                n_params=context.model.n_parameters(),
                steps=state.step,
                train_seconds=state.train_seconds,
            )
    if state.val_metrics:
        summary["val_metrics"] = state.val_metrics
        summary["best_val_metrics"] = state.best_val_metrics
    if finished == "requested":
        summary["stop_reason"] = context.stop_reason
    return dict(finite(summary))
