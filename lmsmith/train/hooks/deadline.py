"""Ends a run with `--minutes` in time: corrects the number of steps while it trains (`plan.py`).

Rank 0 looks at the clock and tells the others. Time for the last evaluation and the last checkpoint
is kept free. Without a deadline nothing here runs, and nothing depends on the clock.
"""

from __future__ import annotations

import math
import time

from lmsmith.train.hooks.checkpoint import Checkpoints
from lmsmith.train.hooks.evaluate import Evaluate
from lmsmith.train.hooks.hook import Context, Hook
from lmsmith.train.plan import Pace, corrected_steps, look_due

# Until a checkpoint has been written: as fast as an old disk.
DISK_BYTES_A_SECOND, BYTES_A_PARAMETER = 2e8, 16
WORTH_SAYING = 0.1  # a change of the plan, as a share of it


class Deadline(Hook):
    """Makes this step the last one if time is up; else plans, now and then, as many as fit."""

    name = "deadline"
    collective = True

    def __init__(self, evaluate: Evaluate, checkpoints: Checkpoints) -> None:
        self.evaluate, self.checkpoints = evaluate, checkpoints
        self.pace = Pace()
        self._said_steps = 0

    def on_start(self, context: Context) -> None:
        self._said_steps = context.config.train.steps

    def due(self, context: Context) -> bool:
        return context.deadline < math.inf

    def after_step(self, context: Context) -> None:
        self.pace.add(context.took.latest["step"])
        state, step_seconds = context.state, self.pace.seconds_a_step()
        n_steps = self._plan(context, step_seconds) if context.ranks.first else state.n_steps
        n_steps = int(context.ranks.broadcast(n_steps)[0])
        if n_steps == state.n_steps:
            return
        ms = 1000 * step_seconds
        message = f"{n_steps:,} steps fit, not {state.n_steps:,}: a step takes {ms:.3g} ms"
        context.event(message)
        if abs(n_steps - self._said_steps) > WORTH_SAYING * self._said_steps:
            context.say(f"step {state.step:>6,}  {message}")
            self._said_steps = n_steps
        state.n_corrections += 1
        state.n_steps = n_steps

    def _plan(self, context: Context, step_seconds: float) -> int:
        """The number of steps that fit before the deadline."""
        state, took, now = context.state, context.took, time.monotonic()
        # A forward pass takes a third of a step.
        n_validation, n_batch = len(context.corpus.validation), context.batches.tokens_per_batch
        evaluation = took.latest.get("evaluate", step_seconds / 3 * n_validation / n_batch)
        save = max(self.checkpoints.write_seconds, took.latest.get("checkpoint", 0.0)) or (
            BYTES_A_PARAMETER * context.model.n_parameters() / DISK_BYTES_A_SECOND
        )
        left = context.deadline - now - evaluation - save
        due = evaluation * self.evaluate.due(context) + save * self.checkpoints.due(context)
        if left < step_seconds + due:
            return state.step
        if not look_due(state.n_steps, state.step):
            return state.n_steps
        aside = sum(took.total[part] for part in ("metrics", "hooks", "checkpoint", "sample"))
        share = aside / (now - context.began)
        step_seconds += evaluation / context.config.train.eval_every
        return corrected_steps(state.n_steps, state.step, step_seconds, left * (1 - share))
