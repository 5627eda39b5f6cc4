"""Trains with fewer threads while other programs keep cores busy (`lmsmith.train.crew`)."""

from __future__ import annotations

from lmsmith.train.crew import Crew
from lmsmith.train.hooks.evaluate import Evaluate
from lmsmith.train.hooks.hook import Context, Hook
from lmsmith.train.same_numbers import use_threads


class Threads(Hook):
    """Checks after each step whether another number of threads is faster. Results do not change."""

    name = "threads"  # with several ranks the number is fixed

    def __init__(self, evaluate: Evaluate) -> None:
        self.evaluate = evaluate
        self.crew: Crew | None = None

    def on_start(self, context: Context) -> None:
        threads = context.config.train.threads
        use_threads(threads, threads)
        self.crew = Crew(
            context.replica,
            context.batches,
            lambda: self.evaluate.score_end(context).nats,
            context.run,
        )

    def after_step(self, context: Context) -> None:
        if self.crew is None:
            return
        state, seconds = context.state, context.took.latest["step"]
        message = self.crew.after(state.step, state.n_steps, seconds)
        if message:
            context.event(message)
            if self.crew.say_now():
                context.say(f"step {state.step:>6,}  {message}")
