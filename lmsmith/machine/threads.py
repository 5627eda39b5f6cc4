"""Chooses the number of threads of repeated work: fewer while other programs keep cores busy.

The work is a training step, or one token of generated text. Its threads wait for each other after
each operation, some hundred times per step. When another program takes one of their cores, all wait
for the one that does not run, and throughput falls to a quarter. A number of threads below the
number of free cores avoids this.

`ThreadChoice` decides only by measured step times. The load of other programs only determines when
another number is worth a try. `docs/performance.md` has measurements.
"""

import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

CHECK_SECONDS = 0.5  # between measurements of other programs
FIRST_CHECK_SECONDS = 0.1  # before the first one of a decoder: ten ticks of /proc/stat per core
IGNORED_CORES = 0.3  # other programs may use this many cores without a change
N_TRIED = 3  # steps in a trial, after one that does not count
N_COMPARED = 8  # a trial is compared with at most this many of the latest steps
GAIN = 0.05  # a change must save at least this share of a step's time
LEAST_WAIT, MOST_WAIT = 1.0, 60.0  # seconds until the next trial; doubled after each failed one

_STAT = Path("/proc/stat")


@dataclass(frozen=True)
class Change:
    """The number of threads from now on. `final`: confirmed by measurement, not only on trial."""

    threads: int
    final: bool


class ThreadChoice:
    """Chooses between `most` threads and fewer.

    Call `add` after each step and apply the `Change` it returns. A change is first a trial of some
    steps, and is undone if they are not faster than the steps before.
    """

    def __init__(self, most: int) -> None:
        self.most = self.threads = most
        self.refused: set[int] = set()  # numbers of threads that change the results
        self._times: deque[float] = deque(maxlen=N_COMPARED)
        self._trial: list[float] | None = None
        self._before = most  # threads before the trial
        self._wait, self._not_before = LEAST_WAIT, 0.0

    def wanted(self, others: float) -> int:
        """Returns the number of threads to try when other programs use `others` cores."""
        return max(1, min(self.most, self.most - math.ceil(others - IGNORED_CORES)))

    def add(self, seconds: float, now: float, others: float | None) -> Change | None:
        """Adds a step's time. `others`: cores used by other programs, if just measured."""
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

    def forget(self) -> None:
        """Drops the times so far: the next steps have another size."""
        self._times.clear()
        if self._trial is not None:
            self._trial, self.threads = None, self._before

    def refuse(self) -> int:
        """Ends a trial whose number of threads changes the results; returns the previous one."""
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

    def __init__(self, first_seconds: float = CHECK_SECONDS) -> None:
        """`first_seconds`: until the first measurement."""
        self._last = self._read()
        self._looked = time.monotonic()
        self._wait = first_seconds

    def cores(self) -> float | None:
        """Returns the cores in use since the last call; None if that was less than CHECK_SECONDS
        ago, or if unknown.
        """
        now = time.monotonic()
        if self._last is None or now - self._looked < self._wait:
            return None
        self._wait = CHECK_SECONDS
        before, seconds = self._last, now - self._looked
        self._last, self._looked = self._read(), now
        if self._last is None:
            return None
        all_programs, ours = (after - b for after, b in zip(self._last, before, strict=True))
        return max(0.0, (all_programs - ours) / seconds)

    @staticmethod
    def _read() -> tuple[float, float] | None:
        """Processor time in seconds: of all programs on this process's cores, and of this
        process.
        """
        try:
            here = os.sched_getaffinity(0)
            text = _STAT.read_text(encoding="ascii")
            return busy_seconds(text, here, os.sysconf("SC_CLK_TCK")), time.process_time()
        except (AttributeError, OSError, ValueError, IndexError):  # not Linux, or not readable
            return None


class StepThreads:
    """Sets the number of threads for each step of a decoder. Results must not depend on it.

    A new decoder begins with the number that the last one of this process used.
    """

    _latest: ClassVar[dict[int, int]] = {}  # by the largest number

    def __init__(self, most: int, use: Callable[[int], object]) -> None:
        """`use`: sets the number of threads."""
        self.choice = ThreadChoice(most)
        self.choice.threads = self._latest.get(most, most)
        self._use = use
        self._others = OtherPrograms(FIRST_CHECK_SECONDS) if most > 1 else None
        self._size = 0

    def begin(self) -> float:
        """Sets the threads for a step, and returns when it began."""
        self._use(self.choice.threads)  # another decoder of this process may have set them
        return time.monotonic()

    def end(self, began: float, size: int) -> None:
        """Records a step. `size`: its number of sequences."""
        if self._others is None:
            return
        if size != self._size:  # steps of different sizes cannot be compared
            self._size = size
            self.choice.forget()
        now = time.monotonic()
        change = self.choice.add(now - began, now, self._others.cores())
        if change and change.final:
            self._latest[self.choice.most] = change.threads


def busy_seconds(stat: str, cores: set[int], ticks: int) -> float:
    """Seconds that these cores were not idle, by /proc/stat; includes stolen time."""
    busy = 0
    for line in stat.splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu" and int(name[3:]) in cores:
            # user, nice, system, idle, iowait, irq, softirq, steal
            fields = [int(number) for number in numbers[:8]]
            busy += sum(fields) - fields[3] - fields[4]
    return busy / ticks
