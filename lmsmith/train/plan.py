"""How many steps fit before a deadline: the plan of a run with `--minutes`, corrected while it
runs.

The machine may be slow when the run starts, stall for some seconds, get slower or recover.
Therefore:

- One slow step does not set the pace. It counts as at most `SLOW` times the median of the recent
  steps.
- The plan gets shorter from the middle of what fits, where the run would not end in time.
- The plan gets longer just before its own middle, or later where much time would be left unused.
- A difference smaller than the usual noise is ignored, so the number of steps settles.
- A run that reaches its last step with time left continues.

The learning rate follows the plan, so that it reaches its final value with the last step. For that
the plan is checked more often when few steps are left, and after each stall.
"""

import statistics
import time
from array import array
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

LOOKS = 32  # regular checks of the plan in a run
TOO_LONG = 0.04  # of the steps that are left
TOO_SHORT = 0.03  # of all steps, just before the middle
MUCH_TOO_SHORT = 0.12  # of all steps, later
WORTH_CONTINUING = 0.1  # of the steps made: fewer more do not repay another evaluation

SLOW = 6.0  # times the median of the recent steps: what a slower step counts as
SLOW_START = 2.0  # the same for the first two steps
N_RECENT = 33  # a machine that stays slow is believed after half as many steps
N_EVALUATIONS = 3  # of the latest evaluations, the median time counts

FEW_STEPS, USELESS_STEPS = 50, 20


def corrected_steps(planned: int, step: int, seconds_a_step: float, seconds_left: float) -> int:
    """The number of steps for a run that has made `step` of `planned` and has `seconds_left` for
    more of them.
    """
    fits = step + max(0, int(seconds_left / seconds_a_step))
    too_long = planned - fits > max(1.0, TOO_LONG * (planned - step)) and 2 * step >= fits
    if 2 * step > planned:
        too_short = fits - planned > MUCH_TOO_SHORT * planned
    else:
        too_short = fits - planned > TOO_SHORT * planned and 2 * step >= planned * (1 - 2 / LOOKS)
    return fits if too_long or too_short else planned


def look_due(planned: int, step: int) -> bool:
    """Whether the plan is checked after `step` steps: at regular intervals, and at 1, 2, 4, 8,
    ... before its end.
    """
    interval, left = max(1, planned // LOOKS), planned - step
    return step % interval == 0 or (0 < left < interval and left & (left - 1) == 0)


def steps_to_continue(step: int, seconds_a_step: float, seconds_left: float) -> int:
    """How many more steps a run makes that has made its planned `step` and has `seconds_left`;
    often 0.
    """
    fit = int(seconds_left / seconds_a_step)
    return fit if fit >= max(1.0, WORTH_CONTINUING * step) else 0


def too_few_steps(steps: int, seconds: float) -> str:
    """A warning about a run that the clock ended after `steps` steps, which took `seconds`;
    often empty.
    """
    if steps >= FEW_STEPS:
        return ""
    little = "nothing worth using" if steps < USELESS_STEPS else "little"
    count = "1 step" if steps == 1 else f"{steps} steps"
    return (
        f"the time was enough for {count} only ({seconds / max(1, steps):.2g} s each): the model "
        f"has learned {little}. "
        "Set more --minutes, or a smaller model or --train.batch_size; other programs on this "
        "machine slow it down."
    )


class Pace:
    """Measures what a step takes, in seconds: the mean of the later half of all steps, with stalls
    cut.

    A step that takes more than SLOW times the median of the N_RECENT latest ones counts as that
    much, and `stalled` is true until the next step. `expected`: what a step was measured to take
    beforehand, if known. It counts as two steps in the median, because first steps are often slow.
    """

    def __init__(self, expected: float = 0.0) -> None:
        self.stalled = False
        self._until = array("d", [0.0])  # how long all steps so far have taken, after each
        self._recent = deque([expected] * 2 if expected > 0 else (), maxlen=N_RECENT)
        self._latest: deque[float] = deque(maxlen=3)

    def add(self, seconds: float) -> None:
        self._recent.append(seconds)
        self._latest.append(seconds)
        slow = SLOW_START if len(self._until) < 3 else SLOW
        most = slow * statistics.median_low(self._recent)
        self.stalled = seconds > most
        self._until.append(self._until[-1] + min(seconds, most))

    def seconds_a_step(self) -> float:
        n = len(self._until) - 1
        return (self._until[n] - self._until[n // 2]) / (n - n // 2)

    def next_seconds(self) -> float:
        """What the next step may well take, for a decision whether there is time for it."""
        return max(self.seconds_a_step(), statistics.median(self._latest))


class Stopwatch:
    """What the parts of a run take, in seconds: `with took("save"): ...`, then
    `took.latest["save"]`.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self.total: dict[str, float] = defaultdict(float)
        self._recent: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=N_EVALUATIONS))

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.latest[part] = time.monotonic() - began
        self.total[part] += self.latest[part]
        self._recent[part].append(self.latest[part])

    def usual(self, part: str, unknown: float) -> float:
        """The median of the latest N_EVALUATIONS times of a part, of two the shorter; `unknown`
        if none.
        """
        return statistics.median_low(self._recent[part]) if self._recent[part] else unknown
