"""What becomes of a step that the guard (`lmsmith.train.guard`) did not let through.

stop    writes a spike record and a checkpoint, and ends the run
skip    leaves the step out
rewind  goes back to the last checkpoint; that step is then left out
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
    """The loop asks it before each step, and calls `on_spike` in the place of a step."""

    name = "spike_guard"
    every = 0
    collective = True

    def __init__(self, checkpoints: Checkpoints, rewind: Callable[[], bool]) -> None:
        """`rewind`: restores the newest checkpoint; False where there is none."""
        self.checkpoints, self.rewind = checkpoints, rewind

    def before_step(self, context: Context) -> None:
        """Raises SpikeError for a step that a rewind has decided to leave out."""
        if context.step in context.guard.left_out:
            message = f"step {context.step + 1} is left out."
            raise SpikeError(message, "skip", math.nan, math.nan)

    def on_spike(self, context: Context, spike: SpikeError) -> None:
        """Deals with a step that was not applied. Raises TrainingError where it ends the run."""
        step, optimizers = context.step, context.replica.optimizers
        if spike.verdict == "stop":
            self._stop(context, spike)
        optimizers.clear()
        message = f"{spike} It is left out."
        context.state.step += 1
        if spike.verdict == "rewind" and self.rewind():
            context.metrics.back_to(context.step, context.state.evaluated_step)
            message = f"{spike} Back to step {context.step}."
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
            f"{spike} Step {step} is saved; `lmsmith replay {record}` makes this step again from "
            f"its record. `lmsmith resume {run} --on-spike skip` leaves it out. Or begin anew with "
            "a lower --learning-rate or a longer --schedule.warmup_steps."
        )
