"""Handles steps that the guard (`lmsmith.train.guard`) rejected.

stop    writes a spike record and a checkpoint, and ends the run
skip    skips the step
rewind  returns to the last checkpoint, and skips the step when the run reaches it again
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable

from lmsmith.errors import TrainingError
from lmsmith.train.guard import SpikeError
from lmsmith.train.hooks.checkpoint import Checkpoints
from lmsmith.train.hooks.hook import Context, Hook
from lmsmith.train.spike_record import write_record


class SpikeGuard(Hook):
    """The loop calls `before_step` before each step, and `on_spike` instead of a rejected step."""

    name = "spike_guard"
    every = 0
    collective = True

    def __init__(self, checkpoints: Checkpoints, rewind: Callable[[], bool]) -> None:
        """`rewind`: loads the newest checkpoint; returns False if there is none."""
        self.checkpoints, self.rewind = checkpoints, rewind

    def before_step(self, context: Context) -> None:
        """Raises SpikeError for a step that a rewind has marked to be skipped."""
        if context.step in context.guard.left_out:
            message = f"step {context.step + 1} is skipped, as decided at the rewind."
            raise SpikeError(message, "skip", math.nan, math.nan)

    def on_spike(self, context: Context, spike: SpikeError) -> None:
        """Handles a step that was not applied. Raises TrainingError if it ends the run."""
        step, optimizers = context.step, context.replica.optimizers
        if spike.verdict == "stop":
            self._stop(context, spike)
        optimizers.clear()
        message = f"{spike} It is skipped."
        context.state.step += 1
        if spike.verdict == "rewind" and self.rewind():
            context.metrics.back_to(context.step, context.state.evaluated_step)
            message = f"{spike} Returning to step {context.step}."
        context.event(message)
        context.say(f"step {step + 1:>6,}  {message}")

    def _stop(self, context: Context, spike: SpikeError) -> None:
        replica, step = context.replica, context.step
        if replica.carried:
            replica.carried.undo()
        tokenizer = context.corpus.tokenizer
        place = write_record(context.run, replica, context.batches, tokenizer, step, spike)
        replica.optimizers.clear()
        self.checkpoints.save(context, at_once=True)
        record, run = (shlex.quote(str(path)) for path in (place, context.run))
        raise TrainingError(
            f"{spike} Step {step} is saved. `lmsmith replay {record}` repeats the rejected step "
            f"from its record. `lmsmith resume {run} --on-spike skip` resumes without it. Or start "
            "again with a lower --learning-rate or a longer --schedule.warmup_steps."
        )
