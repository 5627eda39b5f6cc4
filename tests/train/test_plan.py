"""The number of steps that fit, checked on simulated machines."""

import itertools
import random
import time
from collections.abc import Callable

import pytest

from lmsmith.config import ScheduleConfig
from lmsmith.optim.schedule import learning_rate_share
from lmsmith.train.plan import (
    Pace,
    Stopwatch,
    corrected_steps,
    look_due,
    steps_to_continue,
    too_few_steps,
)


def simulate(
    planned: int, seconds: float, step_seconds: Callable[[int], float]
) -> tuple[int, float, list[int]]:
    """Steps made, their total time, and the plan after each change, as `Training` plans."""
    plans, elapsed, step, pace = [planned], 0.0, 0, Pace(seconds / planned)
    while True:
        if step >= plans[-1]:
            more = steps_to_continue(step, pace.next_seconds(), seconds - elapsed)
            if not more:
                break
            plans.append(step + more)
        took = step_seconds(step)
        pace.add(took)
        elapsed, step = elapsed + took, step + 1
        if seconds - elapsed < pace.next_seconds():
            break
        if look_due(plans[-1], step) or pace.stalled:
            found = corrected_steps(plans[-1], step, pace.seconds_a_step(), seconds - elapsed)
            if found != plans[-1]:
                plans.append(found)
    return step, elapsed, plans


@pytest.mark.parametrize("factor", [0.01, 0.2, 0.5, 0.9, 1.0, 1.1, 2.0, 5.0, 50.0])
def test_a_steady_machine_needs_one_or_two_corrections_and_uses_the_time(factor: float) -> None:
    """`factor`: how much slower steps are than in the plan of 1000 in 100 s."""
    step, elapsed, plans = simulate(1000, 100.0, lambda _: 0.1 * factor)
    assert 100 - max(4, 0.101 * factor) < elapsed < 100.001  # sums of floats
    assert step == pytest.approx(1000 / factor, rel=0.04, abs=1)
    assert len(plans) <= (1 if 0.98 < factor < 1.02 else 3)
    assert monotone(plans)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("noise", [0.1, 0.3, 1.0])
def test_noise_does_not_make_the_plan_oscillate(seed: int, noise: float) -> None:
    rng = random.Random(seed)
    _, elapsed, plans = simulate(
        2000, 100.0, lambda _: 0.05 * rng.lognormvariate(0, noise) / 2.718 ** (noise**2 / 2)
    )
    assert elapsed <= 100.0 + 1.0  # the last step may be one of the slow ones
    assert elapsed > 90.0
    assert n_turns(plans) <= 1, plans
    assert len(plans) < 16


def test_a_machine_that_gets_slower_ends_in_time_and_near_the_end_of_its_plan() -> None:
    step, elapsed, plans = simulate(1000, 100.0, lambda step: 0.1 if step < 500 else 0.25)
    assert 90 < elapsed < 100.001
    assert step >= 0.97 * plans[-1]  # the learning rate has nearly reached its final value
    assert monotone(plans)


def test_a_disturbance_in_the_first_half_is_forgotten() -> None:
    """Another program takes most of the machine for five seconds."""
    step, elapsed, plans = simulate(1000, 100.0, lambda step: 0.5 if 100 <= step < 110 else 0.1)
    assert 90 < elapsed < 100.001
    assert step > 880
    assert n_turns(plans) <= 1


@pytest.mark.parametrize("planned", [1, 2, 5, 31])
@pytest.mark.parametrize("step_seconds", [0.01, 1.0, 9.0, 30.0])
def test_short_plans(planned: int, step_seconds: float) -> None:
    step, elapsed, _ = simulate(planned, 10.0, lambda _: step_seconds)
    assert step >= 1
    assert elapsed <= max(10.0, step_seconds)


@pytest.mark.parametrize("at", [0, 1, 2, 10, 300, 499, 501, 700, 900, 960, 990])
@pytest.mark.parametrize("stall", [1.0, 9.0, 40.0])
def test_a_stall_costs_only_its_own_time(at: int, stall: float) -> None:
    """1000 steps of 0.1 s are planned, and one of them takes seconds longer."""
    step, elapsed, plans = simulate(1000, 100.0, lambda step: 0.1 + stall * (step == at))
    if at / 10 + stall > 99:  # the stall took all the remaining time
        assert step == at + 1
        return
    assert 97 < elapsed < 100.001
    assert step == pytest.approx(1000 - 10 * stall, abs=30)
    assert last_share(step, plans) < 0.05


@pytest.mark.parametrize("slow", [3.0, 20.0])
@pytest.mark.parametrize("until", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_machine_that_recovers_uses_the_remaining_time(until: float, slow: float) -> None:
    """Other programs slow the steps down until that share of the time has passed."""
    n_slow = int(until * 100 / (0.1 * slow))
    step, elapsed, plans = simulate(1000, 100.0, lambda step: 0.1 * (slow if step < n_slow else 1))
    assert 88 < elapsed < 100.001
    assert last_share(step, plans) < 0.05


@pytest.mark.parametrize("factor", [0.3, 3.0])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_a_machine_that_drifts(factor: float, noise: float) -> None:
    """Steps steadily get slower or faster."""
    rng = random.Random(1)

    def step_seconds(step: int) -> float:
        return 0.1 * factor ** min(1.0, step / 1000) * rng.lognormvariate(0, noise)

    step, elapsed, plans = simulate(1000, 100.0, step_seconds)
    assert 90 < elapsed < 100 + 10 * noise
    assert last_share(step, plans) < 0.06


@pytest.mark.parametrize("seed", range(10))
def test_a_busy_machine(seed: int) -> None:
    """Every tenth step waits for other programs, up to thirty times its own duration."""
    rng = random.Random(seed)
    step, elapsed, plans = simulate(
        1000, 100.0, lambda _: 0.1 * (rng.uniform(1, 30) if rng.random() < 0.1 else 1.0)
    )
    assert 90 < elapsed < 103
    assert last_share(step, plans) < 0.08


def test_one_slow_step_does_not_set_the_pace() -> None:
    pace = Pace(expected=0.1)
    pace.add(4.7)
    assert pace.stalled
    assert pace.seconds_a_step() < 1
    for _ in range(40):
        pace.add(4.7)  # if all steps are slow, they are the pace
    assert not pace.stalled
    assert pace.seconds_a_step() == pytest.approx(4.7)
    assert pace.next_seconds() == pytest.approx(4.7)


def test_the_plan_gets_a_little_longer_only_just_before_its_middle() -> None:
    longer = [
        step for step in range(1, 100) if corrected_steps(100, step, 0.1, 0.1 * (110 - step)) > 100
    ]
    assert longer == [47, 48, 49, 50]


def test_the_plan_gets_much_longer_only_from_its_middle_on() -> None:
    longer = [
        step for step in range(1, 100) if corrected_steps(100, step, 0.1, 0.1 * (120 - step)) > 100
    ]
    assert longer == list(range(47, 100))


def test_the_plan_is_checked_more_often_near_its_end() -> None:
    assert [step for step in range(960, 1001) if look_due(1000, step)] == [
        961,
        984,
        992,
        992 + 4,
        998,
        999,
    ]


def test_a_run_continues_if_the_steps_are_worth_another_evaluation() -> None:
    assert steps_to_continue(100, 1.0, 9.9) == 0
    assert steps_to_continue(100, 1.0, 10.1) == 10
    assert steps_to_continue(1, 1.0, 0.9) == 0
    assert steps_to_continue(1, 1.0, -5.0) == 0


def test_few_steps_give_a_warning() -> None:
    assert "only 1 step (4.7 s each), so the model has learned nothing useful" in too_few_steps(
        1, 4.7
    )
    assert "only 30 steps" in too_few_steps(30, 4.7)
    assert "has learned little" in too_few_steps(30, 4.7)
    assert not too_few_steps(50, 4.7)


def test_the_plan_gets_shorter_from_the_middle_of_what_fits() -> None:
    assert corrected_steps(100, 29, 0.1, 3.1) == 100  # 60 fit
    assert corrected_steps(100, 30, 0.1, 3.0) == 60
    assert corrected_steps(100, 30, 0.1, -1.0) == 30  # none are left


def test_small_differences_are_ignored() -> None:
    assert corrected_steps(1000, 500, 0.1, 48.1) == 1000
    assert corrected_steps(1000, 500, 0.1, 47.95) == 979
    assert corrected_steps(1000, 500, 0.1, 52.9) == 1000
    assert corrected_steps(1000, 500, 0.1, 53.1) == 1031


def test_a_stopwatch() -> None:
    took = Stopwatch()
    for seconds in (0.02, 0.04):
        with took("save"):
            time.sleep(seconds)
    assert took.latest["save"] == pytest.approx(0.04, abs=0.02)
    assert took.total["save"] == pytest.approx(0.06, abs=0.03)
    assert took.total["sample"] == 0
    before = took.total["save"]
    with pytest.raises(KeyError), took("save"):
        raise KeyError
    assert took.total["save"] == before  # an unfinished part does not count


def test_the_usual_time_of_a_part_ignores_a_stall() -> None:
    took, found = Stopwatch(), []
    assert took.usual("evaluation", 7.0) == 7.0
    for seconds in (1.0, 3.0, 1.1, 1.2, 1.3):
        took._recent["evaluation"].append(seconds)
        found.append(took.usual("evaluation", 7.0))
    assert found == [1.0, 1.0, 1.1, 1.2, 1.2]


def test_the_pace_is_the_mean_of_the_later_half() -> None:
    pace, seconds = Pace(), [9.0, 1.0, 2.0, 3.0, 4.0]
    means = []
    for one in seconds:
        pace.add(one)
        means.append(pace.seconds_a_step())
    assert means == [9.0, 1.0, 1.5, 2.5, 3.0]


def last_share(step: int, plans: list[int]) -> float:
    """The learning rate of the last step, as a share of its peak, by the default schedule."""
    return learning_rate_share(step - 1, plans[-1], ScheduleConfig(warmup_steps=0))


def monotone(plans: list[int]) -> bool:
    return n_turns(plans) == 0


def n_turns(plans: list[int]) -> int:
    """How often the plan changes its direction."""
    ups = [after > before for before, after in itertools.pairwise(plans)]
    return sum(one != other for one, other in itertools.pairwise(ups))
