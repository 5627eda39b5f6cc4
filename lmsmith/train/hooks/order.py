"""Runs the hooks in a fixed order, and makes all ranks agree on the next action.

    each step               collective
      SpikeGuard              yes    before the weights change
      Metrics                 no     rank 0 writes metrics.jsonl, trackers and progress
      Threads                 no     fewer threads while other programs are busy; one rank only
      Deadline                yes    rank 0 plans the number of steps and informs the others
      Average                 yes    each rank averages its weights, near the end
      Evaluate                yes    each rank scores a share of the validation split
      Tasks                   yes    rank 0 runs benchmark tasks, if any are due
      Extend                  yes    rank 0 lengthens the plan if time is left
      the user's hooks        as set in each hook, in the order in which they were passed
      -- all ranks agree in one all-reduce: stop? save a checkpoint? sample? --
      Sample                  yes    under FSDP2 each rank has shards; rank 0 generates
      Checkpoints             yes    the same; rank 0 writes

At the end of a run, `on_end` is called in the same order, but Checkpoints comes before Sample, to
save first. The user's hooks come before Checkpoints, so a checkpoint holds their state after its
step.
"""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmsmith.errors import LmsmithError, TrainingError, UsageError
from lmsmith.train.hook_state import said
from lmsmith.train.hooks.average import Average
from lmsmith.train.hooks.checkpoint import Checkpoints
from lmsmith.train.hooks.deadline import Deadline, Extend
from lmsmith.train.hooks.evaluate import Evaluate
from lmsmith.train.hooks.hook import Context, Hook, Interrupted
from lmsmith.train.hooks.metrics import Metrics
from lmsmith.train.hooks.sample import Sample
from lmsmith.train.hooks.spike_guard import SpikeGuard
from lmsmith.train.hooks.tasks import Tasks
from lmsmith.train.hooks.threads import Threads
from lmsmith.train.stop import signal_in_words

OURS = (
    *(SpikeGuard, Metrics, Threads, Deadline, Average, Evaluate, Tasks, Extend),
    *(Checkpoints, Sample),
)


@dataclass(frozen=True)
class _Failure:
    hook: Hook
    method: str
    error: Exception


class Hooks:
    """All hooks of a run, built-in and the user's."""

    def __init__(self, context: Context, users: Sequence[Hook], rewind: Callable[[], bool]) -> None:
        """Raises UsageError if a user's hook is not a Hook, or its name is taken."""
        self.context = context
        self.names = names_of(users)
        self.users = [h for h in users if h.collective or context.ranks.first]
        train = context.config.train
        self.evaluate = Evaluate(train.eval_every)
        self.checkpoints = Checkpoints(train.save_every, self.users)
        self.spike_guard = SpikeGuard(self.checkpoints, rewind)
        self.threads, sample = Threads(self.evaluate), Sample()
        deadline = Deadline(self.evaluate, self.checkpoints, sample)
        tasks = [Tasks(context.config)] if train.tasks else []
        in_time = [deadline, Average(), self.evaluate, *tasks, Extend(deadline)]
        # ---- the order ----
        self.after: list[Hook] = [Metrics(), self.threads, *in_time, *self.users]
        self.before_next: list[Hook] = [sample, self.checkpoints]
        self.at_the_end: list[Hook] = [*self.after, self.checkpoints, sample]
        self._done: dict[str, int] = {}  # the last step that each hook has completed
        self._failure: _Failure | None = None

    def start(self) -> None:
        """Calls `on_start` of every hook, the built-in ones first."""
        context = self.context
        for hook in (h for h in (*self.after, *self.before_next) if h not in self.users):
            hook.on_start(context)
        for hook in self.users:
            self._call(hook, "on_start")
        self.begin_at_state()

    def begin_at_state(self) -> None:
        """Marks the hooks that have completed the current step, at the start and after a rewind."""
        state = self.context.state
        self._done = {hook.name: state.step for hook in self.after}
        self._done[self.evaluate.name] = state.evaluated_step
        self._done[Average.name] = state.averaged_step
        for hook in self.users:
            self._done[hook.name] = state.hooks_done.setdefault(hook.name, state.step)

    def after_step(self) -> str | None:
        """Runs the hooks that are due and have not run at this step. Returns why the run ends, or
        None.

        If a user's hook raised, saves a checkpoint and raises TrainingError on all ranks.
        """
        context = self.context
        self._run_after()
        number, stop, failed, *due = context.ranks.max(
            context.signals.signal or 0,
            bool(context.stop_reason),
            self._failure is not None,
            *(hook.due(context) for hook in self.before_next),
        )
        if failed:
            self._end_with_failure()
        if finished := self._finished(int(number), bool(stop)):
            return finished
        for hook, is_due in zip(self.before_next, due, strict=True):
            if is_due:
                try:
                    hook.after_step(context)
                except Interrupted:
                    return "signal"
        return None

    def end(self, finished: str) -> None:
        """Calls `on_end` of every hook, including the final checkpoint."""
        context = self.context
        context.finished = finished
        if finished == "signal" and context.signals.signal:
            name = signal_in_words(context.signals.signal.name)
            context.say(f"stopped by {name}: saving step {context.step:,}")
        if finished == "requested":
            message = f"stopped by a hook: {context.stop_reason}"
            context.event(message)
            context.say(f"step {context.step:>6,}  {message}")
        for hook in self.at_the_end:
            if hook in self.users:
                self._call(hook, "on_end")
                continue
            if hook is self.checkpoints and self.names:
                self._agree_on_failure()
            try:
                hook.on_end(context)
            except Interrupted:
                context.finished = "signal"

    def _agree_on_failure(self) -> None:
        """Raises TrainingError on all ranks if a user's hook failed on one of them."""
        if self.context.ranks.max(self._failure is not None)[0]:
            self._end_with_failure()

    def _run_after(self) -> None:
        context, step = self.context, self.context.step
        for hook in self.after:
            if self._failure or self._done[hook.name] >= step or not hook.due(context):
                continue
            try:
                if hook not in self.users:
                    hook.after_step(context)
                else:
                    with context.took("hooks"):
                        self._call(hook, "after_step")
            except Interrupted:  # the remaining hooks run when the run is resumed
                return
            if self._failure is None:
                self._done[hook.name] = step
                if hook in self.users:
                    context.state.hooks_done[hook.name] = step

    def _call(self, hook: Hook, method: str) -> None:
        """Calls a user's hook. Keeps its exception until all ranks can handle it together."""
        if self._failure is None:
            try:
                getattr(hook, method)(self.context)
            except Exception as error:
                self._failure = _Failure(hook, method, error)

    def _end_with_failure(self) -> None:
        """Saves a checkpoint and raises TrainingError, which names the hook on the failing rank."""
        context, failure = self.context, self._failure
        saved = f"Step {context.step} is saved"
        try:
            self.checkpoints.save(context, at_once=True)
        except LmsmithError as error:
            saved = f"Step {context.step} could not be saved: {error}"
        if failure is None:
            raise TrainingError("a hook failed on another rank; see its error message.")
        raise TrainingError(
            f"the hook {failure.hook.name!r} raised {said(failure.error)} in {failure.method} "
            f"at step {context.step}. {saved}. Correct the hook and resume {context.run} with it."
        ) from failure.error

    def _finished(self, number: int, stop: bool) -> str | None:
        """Returns the reason for ending the run here ("signal", "target", "time", "steps" or
        "requested"), or None.
        """
        context = self.context
        if context.interrupted:
            return "signal"
        if context.is_last_step:
            if context.state.seconds_to_target < math.inf:
                return "target"
            return "time" if context.deadline < math.inf else "steps"
        if number:
            context.signals.signal = signal.Signals(number)
            return "signal"
        return "requested" if stop else None


def names_of(hooks: Sequence[Hook]) -> tuple[str, ...]:
    """Returns the names of the user's hooks, by default those of their classes.

    Raises UsageError if an item is not a Hook, or its name is invalid or taken.
    """
    found: list[str] = []
    for hook in hooks:
        if not isinstance(hook, Hook):
            item = f"the class {hook.__name__}" if isinstance(hook, type) else repr(hook)
            expected = "instances of subclasses of lmsmith.train.hooks.Hook"
            raise UsageError(f"hooks=[...] holds {item}; expected {expected}.")
        hook.name = hook.name or type(hook).__name__
        if not re.fullmatch(r"\w+", hook.name):
            raise UsageError(
                f"a hook is named {hook.name!r}. Its name becomes part of a file name, so use only "
                "letters, digits and underscores."
            )
        if hook.name in found or hook.name in {ours.name for ours in OURS}:
            owner = "another hook" if hook.name in found else "a built-in hook"
            raise UsageError(
                f"the hook name {hook.name!r} is taken by {owner}. Give this instance of "
                f"{type(hook).__name__} another `name`."
            )
        found.append(hook.name)
    return tuple(found)
