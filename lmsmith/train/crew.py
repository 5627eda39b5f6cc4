"""Runs a training loop with fewer threads while other programs keep cores busy.

`threads.py` chooses, `same_numbers.py` checks beforehand that the choice changes no bit of the
results. So a run may change its threads at any step, and a resumed run need not know of it.
"""

import math
import time
from collections.abc import Callable

from lmsmith.data.batches.windows import AnyBatches
from lmsmith.machine.limits import set_threads
from lmsmith.train.replica import Replica
from lmsmith.train.same_numbers import can_be_checked, same_numbers, use_threads
from lmsmith.train.threads import OtherPrograms, ThreadChoice

SAY_SECONDS = 60.0  # between two messages about the number of threads


class Crew:
    """The threads of one run. Call `after` after each step."""

    def __init__(self, replica: Replica, batches: AnyBatches, score: Callable[[], float]) -> None:
        """`score`: a number from a small evaluation, which must stay the same as well."""
        self._replica, self._batches, self._score = replica, batches, score
        train = replica.config.train
        # OMP_NUM_THREADS may be set for a resumed run alone.
        may = train.yield_cores != "no" and train.threads > 1 and not set_threads()
        self._choice = ThreadChoice(train.threads)
        self._others = OtherPrograms() if may and can_be_checked(replica) else None
        self._checked: set[int] = set()
        self._said = -math.inf
        self._cores = 0.0

    def say_now(self) -> bool:
        """Whether it is time to print a message as well."""
        now = time.monotonic()
        if now - self._said < SAY_SECONDS:
            return False
        self._said = now
        return True

    @property
    def threads(self) -> int:
        return self._choice.threads

    def after(self, step: int, n_steps: int, seconds: float) -> str:
        """Takes in that step `step` took `seconds`, and changes the threads for the next one.

        Returns a message if the number of threads has changed, for the run's log.
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
                self._replica, self._batches, step, n_steps, (n, most), self._score
            ):
                use_threads(choice.refuse(), most)
                return (
                    f"other programs use {self._cores:.1f} cores and slow this run down. It keeps "
                    f"its {most} threads, "
                    f"because a check did not show that the numbers stay the same with {n}. "
                    f"`--train.threads {n}` "
                    "may be faster."
                )
            self._checked.add(n)
        use_threads(n, most)
        if not change.final:
            return ""
        threads = "1 thread" if n == 1 else f"{n} threads"
        return (
            f"other programs use {self._cores:.1f} cores: {threads} from here on; the numbers "
            f"stay the same"
        )
