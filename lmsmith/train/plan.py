"""How many steps fit before a deadline: the plan of a run with `--minutes`, corrected as it goes.

A plan is looked at LOOKS times a run. It is made shorter whenever it would not end in time, and longer only in its
first half: later the learning rate is coming down, and a longer plan would let it jump up again. A difference that is
smaller than what a busy machine's speed varies by is left alone, so the number of steps settles instead of following
the noise.
"""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

LOOKS = 32
TOO_LONG = 0.02  # of the steps that are left
TOO_SHORT = 0.03  # of all steps


def corrected_steps(planned: int, step: int, seconds_a_step: float, seconds_left: float) -> int:
    """The number of steps for a run that has made `step` of `planned` and has `seconds_left` for more of them."""
    fits = step + max(0, int(seconds_left / seconds_a_step))
    too_long = planned - fits > max(1.0, TOO_LONG * (planned - step))
    too_short = fits - planned > TOO_SHORT * planned and 2 * step <= planned
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
