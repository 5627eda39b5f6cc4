"""Ends a run with `--minutes` in time: corrects its number of steps while it trains (`plan.py`).

Rank 0 reads the clock and informs the others. Time for the last evaluation and the last checkpoint
is reserved. Without a deadline nothing here runs, and nothing depends on the clock.
"""

from __future__ import annotations

import logging
import math
import sys
import time

from lmsmith.text.files import plural
from lmsmith.train.choose import most_steps
from lmsmith.train.hooks.checkpoint import Checkpoints
from lmsmith.train.hooks.evaluate import Evaluate
from lmsmith.train.hooks.hook import Context, Hook
from lmsmith.train.hooks.sample import LAST_SAMPLE_SECONDS, Sample
from lmsmith.train.plan import (
    USELESS_STEPS,
    Pace,
    corrected_steps,
    look_due,
    steps_to_continue,
    too_few_steps,
)

log = logging.getLogger(__name__)

# Assumed for the first checkpoint: the speed of an old disk.
DISK_BYTES_A_SECOND, BYTES_A_PARAMETER = 2e8, 16
WORTH_SAYING = 0.1  # relative change of the plan from which it is printed
MUCH_TIME = 0.1  # share of the time left above which an estimate may not end the run
ASIDE = ("metrics", "hooks", "tasks", "checkpoint", "sample")  # parts of a run that are not steps


class Deadline(Hook):
    """Makes this step the last one when time is up; plans the steps that fit until then."""

    name = "deadline"
    collective = True

    def __init__(self, evaluate: Evaluate, checkpoints: Checkpoints, sample: Sample) -> None:
        self.evaluate, self.checkpoints, self.sample = evaluate, checkpoints, sample
        self.pace = Pace()
        self._said_steps = 0
        self._most_steps = sys.maxsize  # `train.max_epochs`
        self._trial_seconds: float | None = None  # an evaluation's, extrapolated from a part

    def on_start(self, context: Context) -> None:
        state = context.state
        self._said_steps = context.config.train.steps
        n_tokens, tokens_a_step = len(context.corpus.train), context.batches.tokens_per_batch
        self._most_steps = most_steps(context.config, n_tokens, tokens_a_step)
        if context.deadline < math.inf:
            left = context.deadline - context.began
            self.pace = Pace(expected=left / max(1, state.n_steps - state.step))

    def due(self, context: Context) -> bool:
        return context.deadline < math.inf

    def after_step(self, context: Context) -> None:
        self.pace.add(context.took.latest["step"])
        n_steps, measure = context.ranks.broadcast(*self._steps_that_fit(context))
        if measure:
            self._trial_seconds = self.evaluate.measure(context)
            n_steps = context.ranks.broadcast(*self._steps_that_fit(context))[0]
        self._set_n_steps(context, int(n_steps))

    def on_end(self, context: Context) -> None:
        if context.finished != "time":
            return
        if problem := too_few_steps(context.step, context.state.train_seconds):
            context.event(problem)
            # Below USELESS_STEPS the command prints this warning itself, in its closing lines.
            if context.ranks.first and (context.step >= USELESS_STEPS or context.console.quiet):
                log.warning("%s", problem)

    def extend(self, context: Context) -> None:
        """Lengthens the plan of a run that has made all its steps and has time left."""
        left = self._seconds_left(context)
        if self.sample.pause_is_over(context):
            left -= self._sample_seconds(context)
        more = steps_to_continue(context.step, self.pace.next_seconds(), left)
        self._set_n_steps(context, context.step + int(context.ranks.broadcast(more)[0]))

    def _steps_that_fit(self, context: Context) -> tuple[int, bool]:
        """Returns the number of steps, and whether to measure an evaluation before ending the run.

        It is measured if only an estimate says that the evaluation needs all the remaining time.
        """
        state, took, now = context.state, context.took, time.monotonic()
        if not context.ranks.first:
            return state.n_steps, False  # rank 0 decides
        left, evaluation = self._seconds_left(context), self._evaluation_seconds(context)
        needed = self.pace.next_seconds()
        if self.evaluate.due(context):
            sample_due = self.sample.pause_is_over(context)
            needed += evaluation + sample_due * self._sample_seconds(context)
        if self.checkpoints.due(context):
            needed += self._save_seconds(context)
        if left < needed:
            guessed = "evaluate" not in took.latest and self._trial_seconds is None
            much = context.deadline - now > MUCH_TIME * (context.deadline - context.began)
            return state.step, guessed and much and state.step < state.n_steps
        planned, made = state.n_steps - context.leg_start, state.step - context.leg_start
        if not (look_due(planned, made) or self.pace.stalled):
            return state.n_steps, False
        share = sum(took.total[part] for part in ASIDE) / (now - context.began)
        step_seconds = self.pace.seconds_a_step() + evaluation / context.config.train.eval_every
        fit = corrected_steps(planned, made, step_seconds, left * (1 - share))
        return context.leg_start + fit, False

    def _seconds_left(self, context: Context) -> float:
        """Seconds for steps until the deadline, without the last evaluation and checkpoint."""
        n_last = 2 if context.config.train.average_fraction else 1  # also of averaged weights
        last = n_last * self._evaluation_seconds(context) + self._save_seconds(context)
        return context.deadline - time.monotonic() - last

    def _evaluation_seconds(self, context: Context) -> float:
        guess = self._trial_seconds
        if guess is None:  # the forward pass takes a third of a step
            steps = len(context.corpus.validation) / context.batches.tokens_per_batch
            guess = self.pace.seconds_a_step() / 3 * steps
        return context.took.usual("evaluate", guess)

    def _save_seconds(self, context: Context) -> float:
        took = context.took.latest.get("checkpoint", 0.0)
        measured = max(self.checkpoints.write_seconds, took)
        return measured or BYTES_A_PARAMETER * context.model.n_parameters() / DISK_BYTES_A_SECOND

    def _sample_seconds(self, context: Context) -> float:
        return context.took.latest.get("sample", LAST_SAMPLE_SECONDS)

    def _set_n_steps(self, context: Context, n_steps: int) -> None:
        """Applies the corrected number of steps and reports it."""
        state = context.state
        n_steps = min(n_steps, max(state.n_steps, self._most_steps))
        if n_steps == state.n_steps:
            return
        ms = 1000 * self.pace.seconds_a_step()
        steps = plural(n_steps, "step")
        message = f"time for {steps} instead of {state.n_steps:,} ({ms:.3g} ms per step)"
        context.event(message)
        if abs(n_steps - self._said_steps) > WORTH_SAYING * self._said_steps:
            context.say(f"step {state.step:>6,}  {message}")
            self._said_steps = n_steps
        state.n_corrections += 1
        state.n_steps = n_steps


class Extend(Hook):
    """Continues after the last evaluation if the run has time left (`Deadline.extend`).

    It runs before the user's hooks, so that they see the final plan.
    """

    name = "extend"
    collective = True

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline

    def due(self, context: Context) -> bool:
        in_time = context.deadline < math.inf and context.state.seconds_to_target == math.inf
        return in_time and context.is_last_step

    def after_step(self, context: Context) -> None:
        self.deadline.extend(context)
