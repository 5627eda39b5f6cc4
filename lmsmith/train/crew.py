"""Trains with fewer threads while other programs keep cores busy.

`machine/threads.py` chooses the number; `same_numbers.py` first checks that the results stay
bit-identical. So a run may change its threads at any step, and a resumed run need not repeat the
changes.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

from lmsmith.data.batches.windows import AnyBatches
from lmsmith.machine.limits import omp_threads
from lmsmith.machine.threads import OtherPrograms, ThreadChoice
from lmsmith.train.replica import Replica
from lmsmith.train.same_numbers import can_be_checked, same_numbers, use_threads

SAY_SECONDS = 60.0  # minimum time between messages about the number of threads


class Crew:
    """Controls the threads of one run. Call `after` after each step."""

    def __init__(
        self, replica: Replica, batches: AnyBatches, score: Callable[[], float], folder: Path
    ) -> None:
        """`score`: returns a number from a small evaluation, which must stay bit-identical too.
        `folder`: a place for a temporary file as large as the weights and the optimizer state.
        """
        self._replica, self._batches, self._score = replica, batches, score
        self._folder = folder
        train = replica.config.train
        # OMP_NUM_THREADS may be set for a resumed run only.
        may = train.yield_cores != "no" and train.threads > 1 and not omp_threads()
        self._choice = ThreadChoice(train.threads)
        self._others = OtherPrograms() if may and can_be_checked(replica) else None
        self._checked: set[int] = set()
        self._said = -math.inf
        self._cores = 0.0

    def say_now(self) -> bool:
        """Returns whether a message should be printed too, at most once every SAY_SECONDS."""
        now = time.monotonic()
        if now - self._said < SAY_SECONDS:
            return False
        self._said = now
        return True

    @property
    def threads(self) -> int:
        return self._choice.threads

    def after(self, step: int, n_steps: int, seconds: float) -> str:
        """Records that step `step` took `seconds`, and sets the threads for the next step.

        Returns a message for the run's log if the number of threads changed, else "".
        """
        if self._others is None:
            return ""
        choice, most, cores = self._choice, self._choice.most, self._others.cores()
        self._cores = self._cores if cores is None else cores
        change = choice.add(seconds, time.monotonic(), cores)
        if change is None:
            return ""
        n = change.threads
        if n != most and n not in self._checked:
            if not same_numbers(
                *(self._replica, self._batches, step, n_steps, (n, most)),
                *(self._score, self._folder),
            ):
                use_threads(choice.refuse(), most)
                return (
                    f"other programs use {self._cores:.1f} cores and slow this run down. It keeps "
                    f"{most} threads, because the results might change with {n}. "
                    f"`--train.threads {n}` may be faster."
                )
            self._checked.add(n)
        use_threads(n, most)
        if not change.final:
            return ""
        threads = "1 thread" if n == 1 else f"{n} threads"
        return (
            f"other programs use {self._cores:.1f} cores: continuing with {threads}; the results "
            f"stay bit-identical"
        )
