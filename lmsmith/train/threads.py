"""Chooses the number of threads while a run goes: fewer while other programs keep cores busy.

The threads of a step wait for each other after each operation, some hundred times a step. When
another program takes one of their cores, all threads wait for the one that does not run, and
throughput falls to a quarter. Fewer threads than cores do not need the core that is taken.

`ThreadChoice` decides from measured step times alone. How many cores other programs use only says
when it is worth trying another number. `docs/performance.md` has measurements.
"""

import math
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

CHECK_SECONDS = 0.5  # between two looks at what other programs use
IGNORED_CORES = 0.3  # what other programs may use without a change
N_TRIED = 3  # steps of a trial, after one that does not count
N_COMPARED = 8  # of the latest steps, at most, which a trial is compared with
GAIN = 0.05  # of a step's time, at least, for a change
LEAST_WAIT, MOST_WAIT = 1.0, 60.0  # seconds until the next trial, doubled by each that failed

_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Change:
    """The number of threads from here on. `final`: measured to be faster, not only tried."""

    threads: int
    final: bool


class ThreadChoice:
    """Chooses between `most` threads and fewer.

    `add` each step and follow the `Change` it returns. A change is first a trial of some steps,
    and is taken back if they are not faster than the steps before.
    """

    def __init__(self, most: int) -> None:
        self.most = self.threads = most
        self.refused: set[int] = set()  # numbers of threads that change the results
        self._times: deque[float] = deque(maxlen=N_COMPARED)
        self._trial: list[float] | None = None
        self._before = most  # threads before the trial
        self._wait, self._not_before = LEAST_WAIT, 0.0

    def wanted(self, others: float) -> int:
        """How many threads to try if other programs use `others` cores."""
        return max(1, min(self.most, self.most - math.ceil(others - IGNORED_CORES)))

    def add(self, seconds: float, now: float, others: float | None) -> Change | None:
        """Takes in a step. `others`: cores used by other programs, if they were just measured."""
        if self._trial is not None:
            self._trial.append(seconds)
            return self._judged(now) if len(self._trial) > N_TRIED else None
        self._times.append(seconds)
        if others is None or now < self._not_before or len(self._times) < N_TRIED:
            return None
        wanted = self.wanted(others)
        if wanted == self.threads or wanted in self.refused:
            return None
        self._before, self.threads, self._trial = self.threads, wanted, []
        return Change(wanted, final=False)

    def refuse(self) -> int:
        """Ends the trial: its number of threads changes the results. Returns the one before."""
        self.refused.add(self.threads)
        self._trial, self.threads = None, self._before
        return self.threads

    def _judged(self, now: float) -> Change:
        assert self._trial is not None
        tried = sum(self._trial[1:]) / N_TRIED  # the first step with new threads sets up kernels
        before = sum(self._times) / len(self._times)
        faster = tried < (1 - GAIN) * before
        if faster:
            self._times.clear()
            self._wait = LEAST_WAIT
        else:
            self.threads = self._before
            self._wait = min(MOST_WAIT, 2 * self._wait)
        self._trial, self._not_before = None, now + self._wait
        return Change(self.threads, final=faster)


class OtherPrograms:
    """Measures how many of this process's cores other programs keep busy (Linux)."""

    def __init__(self) -> None:
        self._last = self._read()
        self._looked = time.monotonic()

    def cores(self) -> float | None:
        """Since the last look. None: that was less than CHECK_SECONDS ago, or nothing is known."""
        now = time.monotonic()
        if self._last is None or now - self._looked < CHECK_SECONDS:
            return None
        before, seconds = self._last, now - self._looked
        self._last, self._looked = self._read(), now
        if self._last is None:
            return None
        all_programs, ours = (after - b for after, b in zip(self._last, before, strict=True))
        return max(0.0, (all_programs - ours) / seconds)

    @staticmethod
    def _read() -> tuple[float, float] | None:
        """Seconds of processor time: of all programs on this process's cores, and of this
        process.
        """
        try:
            here = os.sched_getaffinity(0)
            text = _STAT.read_text(encoding="ascii")
            return busy_seconds(text, here, os.sysconf("SC_CLK_TCK")), time.process_time()
        except (AttributeError, OSError, ValueError, IndexError):  # not Linux, or hidden
            return None


def busy_seconds(stat: str, cores: set[int], ticks: int) -> float:
    """From /proc/stat: how long these cores were not idle, in seconds, stolen time included."""
    busy = 0
    for line in stat.splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
            # user, nice, system, idle, waiting for disks, interrupts of two kinds, stolen
            fields = [int(number) for number in numbers[:8]]
            busy += sum(fields) - fields[3] - fields[4]
    return busy / ticks
