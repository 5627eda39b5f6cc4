"""How many steps fit before a deadline: the plan of a run with `--minutes`, corrected as it goes.

The learning rate needs the number of steps when it begins to come down, half-way. So the plan waits until then, when
the mean of all updates so far tells how many fit: it is made longer just before its own middle, and shorter from the
middle of what fits. Afterwards it is only made shorter, where the run would not end in time. A difference smaller than
what a busy machine's speed varies by is left alone. So the number of steps settles instead of following the noise.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

LOOKS = 32  # at the plan, a run
TOO_LONG = 0.02  # of the steps that are left
TOO_SHORT = 0.03  # of all steps


def corrected_steps(planned: int, step: int, seconds_a_step: float, seconds_left: float) -> int:
    """The number of steps for a run that has made `step` of `planned` and has `seconds_left` for more of them."""
    fits = step + max(0, int(seconds_left / seconds_a_step))
    too_long = planned - fits > max(1.0, TOO_LONG * (planned - step)) and 2 * step >= fits
    before_its_middle = planned * (1 - 2 / LOOKS) <= 2 * step <= planned
    too_short = fits - planned > TOO_SHORT * planned and before_its_middle
    return fits if too_long or too_short else planned


def look_due(planned: int, step: int) -> bool:
    """Whether the plan is looked at after `step` updates."""
    return step % max(1, planned // LOOKS) == 0


class Stopwatch:
    """What the parts of a run take, in seconds: `with took("save"): ...`, then `took.latest["save"]`."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.total: dict[str, float] = defaultdict(float)
        self.n: dict[str, int] = defaultdict(int)

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.latest[part] = time.monotonic() - began
        self.total[part] += self.latest[part]
        self.n[part] += 1

    def mean(self, part: str) -> float:
        """0 for what has not happened yet."""
        return self.total[part] / max(1, self.n[part])
