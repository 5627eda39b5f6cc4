"""The choice of the number of threads, checked on simulated machines."""

import os
import random
import time
from pathlib import Path

import pytest

import lmsmith.machine.threads
from lmsmith.machine.threads import (
    MOST_WAIT,
    OtherPrograms,
    StepThreads,
    ThreadChoice,
    busy_seconds,
)


class Machine:
    """Simulates cores, other programs, and the duration of a step by number of threads."""

    def __init__(self, cores: int, noise: float = 0.1, serial: float = 0.0) -> None:
        """`serial`: the share of a step that does not speed up with threads."""
        self.cores, self.noise, self.serial = cores, noise, serial
        self.now, self.others, self._looked = 100.0, 0.0, 100.0
        self.rng = random.Random(1)
        self.steps: list[tuple[float, int]] = []  # when, with how many threads

    def step_seconds(self, threads: int) -> float:
        """With more threads than free cores, a step takes ten times as long."""
        collapse = 10.0 if threads + self.others > self.cores + 0.3 and threads > 1 else 1.0
        share = min(1.0, self.cores / (threads + self.others))
        seconds = 0.05 * (self.serial + (1 - self.serial) * self.cores / threads) * collapse / share
        return seconds * self.rng.lognormvariate(0, self.noise)

    def run(self, choice: ThreadChoice, seconds: float, others: float) -> list[int]:
        """Makes steps for some seconds beside `others`. Returns the confirmed changes."""
        self.others, end, kept = others, self.now + seconds, []
        while self.now < end:
            took = self.step_seconds(choice.threads)
            self.steps.append((self.now, choice.threads))
            self.now += took
            seen = None
            if self.now - self._looked > 0.5:
                self._looked, seen = self.now, self.others * self.rng.uniform(0.9, 1.1)
            change = choice.add(took, self.now, seen)
            if change and change.final:
                kept.append(change.threads)
        return kept


def test_on_a_quiet_machine_nothing_changes() -> None:
    choice, machine = ThreadChoice(2), Machine(2)
    assert machine.run(choice, 600, 0.05) == []
    assert {threads for _, threads in machine.steps} == {2}


@pytest.mark.parametrize("others", [1.0, 2.0])
def test_one_thread_is_used_while_other_programs_are_busy(others: float) -> None:
    choice, machine = ThreadChoice(2), Machine(2)
    machine.run(choice, 20, 0.05)
    began = machine.now
    assert machine.run(choice, 60, others) == [1]
    last_slow = max(when for when, threads in machine.steps if threads == 2)
    assert last_slow - began < 5
    began = machine.now
    assert machine.run(choice, 60, 0.05) == [2]
    last_single = max(when for when, threads in machine.steps if threads == 1)
    assert last_single - began < 3


def test_on_many_cores_the_busy_ones_are_left_free() -> None:
    choice, machine = ThreadChoice(16), Machine(16, noise=0.02)
    machine.run(choice, 20, 0.0)
    assert machine.run(choice, 60, 1.0) == [15]
    assert machine.run(choice, 60, 4.0) == [12]
    assert machine.run(choice, 60, 0.0) == [16]
    assert machine.run(choice, 200, 14.0)[-1] == 2


def test_trials_get_rare_if_fewer_threads_are_not_faster() -> None:
    """The other program uses what this one leaves free."""
    choice, machine = ThreadChoice(2), Machine(2)
    machine.step_seconds = lambda threads: 0.05 * 2 / threads  # type: ignore[method-assign]
    assert machine.run(choice, 600, 0.6) == []
    tried = sum(0.1 for _, threads in machine.steps if threads == 1)
    assert 0 < tried < 0.015 * 600
    assert choice._wait == MOST_WAIT


def test_a_thread_count_that_changes_the_results_is_not_tried_again() -> None:
    choice = ThreadChoice(2)
    for now in range(3):
        change = choice.add(0.1, now, None)
    change = choice.add(0.1, 10.0, 1.0)
    assert change is not None
    assert (change.threads, change.final) == (1, False)
    assert choice.refuse() == 2
    assert all(choice.add(0.1, now, 1.0) is None for now in range(20, 100))
    assert choice.threads == 2


def test_short_bursts_are_ignored() -> None:
    """A measurement that covers several bursts shows a low load."""
    assert ThreadChoice(2).wanted(0.25) == 2
    assert ThreadChoice(2).wanted(0.35) == 1
    assert ThreadChoice(4).wanted(1.25) == 3


STAT = """cpu  1000 0 0 0 0 0 0 0 0 0
cpu0 100 10 20 5000 300 1 2 4 50 0
cpu1 200 0 0 7000 0 0 0 0 0 0
cpu2 900 0 0 7000 0 0 0 0 0 0
intr 12 34
"""


def test_the_busy_time_of_this_processs_cores() -> None:
    assert busy_seconds(STAT, {0, 1}, 100) == pytest.approx((100 + 10 + 20 + 1 + 2 + 4 + 200) / 100)
    assert busy_seconds(STAT, {2}, 100) == 9.0


def test_other_programs_use_the_busy_time_minus_this_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stat, now, own = tmp_path / "stat", [50.0], [3.0]
    monkeypatch.setattr(lmsmith.machine.threads, "_STAT", stat)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: own[0])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)

    def write(busy: float) -> None:
        stat.write_text(f"cpu0 {int(100 * busy)} 0 0 99 0 0 0 0 0 0\ncpu1 0 0 0 99 0 0 0 0 0 0\n")

    write(10.0)
    others = OtherPrograms()
    now[0] += 0.2
    assert others.cores() is None  # too early
    now[0] += 0.8
    own[0] += 1.2
    write(12.0)
    assert others.cores() == pytest.approx(0.8)
    now[0] += 1.0
    stat.unlink()
    assert others.cores() is None
    assert OtherPrograms().cores() is None  # not Linux


def test_steps_of_another_size_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a busy program one thread is as fast as two. It is not chosen because the batch became
    smaller in the middle of the trial.
    """
    used: list[int] = []
    now = 0.0
    monkeypatch.setattr(lmsmith.machine.threads.time, "monotonic", lambda: now)
    monkeypatch.setattr(OtherPrograms, "cores", lambda self: 1.0)
    monkeypatch.setattr(StepThreads, "_latest", {})
    threads = StepThreads(2, used.append)
    for size in [8] * 5 + [1] * 2:
        began = threads.begin()
        now += size
        threads.end(began, size)
    assert 1 in used
    assert threads.choice.threads == 2


def test_a_decoder_takes_fewer_threads_if_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    now = 0.0
    monkeypatch.setattr(lmsmith.machine.threads.time, "monotonic", lambda: now)
    monkeypatch.setattr(OtherPrograms, "cores", lambda self: 1.0)
    monkeypatch.setattr(StepThreads, "_latest", {})
    threads = StepThreads(2, used.append)
    for _ in range(20):
        began = threads.begin()
        now += 1.0 if used[-1] == 1 else 3.0
        threads.end(began, 1)
    assert used[:3] == [2, 2, 2]
    assert used[-1] == threads.choice.threads == 1
    assert StepThreads(2, used.append).choice.threads == 1  # the next decoder begins with it
