"""Plans how many steps fit before a deadline, and corrects the plan during a run with `--minutes`.

The machine may be slow at the start, stall for seconds, slow down or recover. Therefore:

- One slow step does not set the pace. It counts as at most `SLOW` times the median of the recent
  steps.
- After half of the steps that fit, the plan is shortened if the run would not end in time.
- Just before half of its steps, the plan is lengthened; later only if much time would be left
  unused.
- Differences smaller than the usual noise are ignored, so the number of steps settles.
- A run that reaches its last step with time left continues.

The learning rate follows the plan, so that it reaches its final value at the last step. For this,
the plan is checked more often when few steps remain, and after each stall.
"""

import statistics
import time
from array import array
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager

LOOKS = 32  # regular checks of the plan per run
TOO_LONG = 0.04  # shorten by more than this share of the remaining steps
TOO_SHORT = 0.03  # lengthen by more than this share of all steps, at the middle
MUCH_TOO_SHORT = 0.12  # lengthen by more than this share of all steps, after the middle
WORTH_CONTINUING = 0.1  # share of the steps made: fewer are not worth another evaluation

SLOW = 6.0  # a slower step counts as 6 times the median of the recent steps
SLOW_START = 2.0  # the same for the first two steps
N_RECENT = 33  # steps of the median: after half of them, a slower machine sets the pace
N_EVALUATIONS = 3  # evaluations whose median time is used

FEW_STEPS, USELESS_STEPS = 50, 20


def corrected_steps(planned: int, step: int, seconds_a_step: float, seconds_left: float) -> int:
    """Returns the corrected number of steps of a run that has made `step` of `planned` steps and
    has `seconds_left`.
    """
    fits = step + max(0, int(seconds_left / seconds_a_step))
    too_long = planned - fits > max(1.0, TOO_LONG * (planned - step)) and 2 * step >= fits
    if 2 * step > planned:
        too_short = fits - planned > MUCH_TOO_SHORT * planned
    else:
        too_short = fits - planned > TOO_SHORT * planned and 2 * step >= planned * (1 - 2 / LOOKS)
    return fits if too_long or too_short else planned


def look_due(planned: int, step: int) -> bool:
    """Returns whether to check the plan after `step` steps: at regular intervals, and 1, 2, 4, 8,
    ... steps before its end.
    """
    interval, left = max(1, planned // LOOKS), planned - step
    return step % interval == 0 or (0 < left < interval and left & (left - 1) == 0)


def steps_to_continue(step: int, seconds_a_step: float, seconds_left: float) -> int:
    """Returns the number of steps to add to a run that has made all its `step` planned steps and
    has `seconds_left`; 0 if they are not worth it.
    """
    fit = int(seconds_left / seconds_a_step)
    return fit if fit >= max(1.0, WORTH_CONTINUING * step) else 0


def too_few_steps(steps: int, seconds: float) -> str:
    """Returns a warning if a run with a time limit made few `steps`, which took `seconds`; else
    "".
    """
    if steps >= FEW_STEPS:
        return ""
    little = "nothing useful" if steps < USELESS_STEPS else "little"
    count = "1 step" if steps == 1 else f"{steps} steps"
    return (
        f"there was time for only {count} ({seconds / max(1, steps):.2g} s each), so the model "
        f"has learned {little}. Set more --minutes, a smaller model or a smaller "
        f"--train.batch_size, or stop other programs on this machine."
    )


class Pace:
    """Measures seconds per step: the mean over the later half of all steps, with stalls capped.

    A step slower than SLOW times the median of the N_RECENT latest ones counts as SLOW times that
    median, and `stalled` is true until the next step. `expected`: a prior measurement, if any. It
    counts as two steps in the median, because the first steps are often slow.
    """

    def __init__(self, expected: float = 0.0) -> None:
        self.stalled = False
        self._until = array("d", [0.0])  # cumulative seconds after each step
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
        """Returns a cautious estimate of the next step's seconds, to decide whether it still
        fits.
        """
        return max(self.seconds_a_step(), statistics.median(self._latest))


class Stopwatch:
    """Times the parts of a run in seconds: `with took("save"): ...`, then `took.latest["save"]`."""

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
        """Returns the median of the latest N_EVALUATIONS times of a part, the shorter one of two;
        `unknown` if there are none.
        """
        return statistics.median_low(self._recent[part]) if self._recent[part] else unknown
