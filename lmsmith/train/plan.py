"""How many steps fit before a deadline: the plan of a run with `--minutes`, corrected as it goes.

By the middle of a run it is known what steps take. So the plan is made longer just before its own middle alone, and
shorter from the middle of what fits, where the run would not end in time. A learning rate that is coming down by then
follows: it rises again by the share that was added, or falls by the share that was taken. A difference smaller than
what a busy machine's speed varies by is left alone. So the number of steps settles instead of following the noise.
"""

import time
from array import array
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

LOOKS = 32  # at the plan, a run
TOO_LONG = 0.04  # of the steps that are left
TOO_SHORT = 0.03  # of all steps


def corrected_steps(planned: int, step: int, seconds_a_step: float, seconds_left: float) -> int:
    """The number of steps for a run that has made `step` of `planned` and has `seconds_left` for more of them."""
    fits = step + max(0, int(seconds_left / seconds_a_step))
    too_long = planned - fits > max(1.0, TOO_LONG * (planned - step)) and 2 * step >= fits
    before_its_middle = planned * (1 - 2 / LOOKS) <= 2 * step <= planned
    too_short = fits - planned > TOO_SHORT * planned and before_its_middle
    return fits if too_long or too_short else planned


def look_due(planned: int, step: int) -> bool:
    """Whether the plan is looked at after `step` steps."""
    return step % max(1, planned // LOOKS) == 0


class Pace:
    """Seconds a step takes: the mean of the later half of all there were."""

    def __init__(self) -> None:
        self._until = array("d", [0.0])  # how long all steps so far have taken, after each

    def add(self, seconds: float) -> None:
        self._until.append(self._until[-1] + seconds)

    def seconds_a_step(self) -> float:
        n = len(self._until) - 1
        return (self._until[n] - self._until[n // 2]) / (n - n // 2)


class Stopwatch:
    """What the parts of a run take, in seconds: `with took("save"): ...`, then `took.latest["save"]`."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.total: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.latest[part] = time.monotonic() - began
        self.total[part] += self.latest[part]
