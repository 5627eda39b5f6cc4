"""How many steps fit: held against simulated machines."""

import itertools
import random
import time
from collections.abc import Callable

import pytest

from lmsmith.train.plan import Pace, Stopwatch, corrected_steps, look_due


def simulate(
    planned: int, seconds: float, step_seconds: Callable[[int], float]
) -> tuple[int, float, list[int]]:
    """Steps made, time they took, and the plan after each change, as `Training` looks at the clock."""
    plans, elapsed, step, pace = [planned], 0.0, 0, Pace()
    while step < plans[-1]:
        pace.add(step_seconds(step))
        elapsed, step = pace._until[-1], step + 1
        if seconds - elapsed < pace.seconds_a_step():
            break
        if look_due(plans[-1], step):
            found = corrected_steps(plans[-1], step, pace.seconds_a_step(), seconds - elapsed)
            if found != plans[-1]:
                plans.append(found)
    return step, elapsed, plans


@pytest.mark.parametrize("factor", [0.01, 0.2, 0.5, 0.9, 1.0, 1.1, 2.0, 5.0, 50.0])
def test_a_steady_machine_needs_one_or_two_corrections_and_uses_the_time(factor: float) -> None:
    """`factor`: how much slower updates are than the plan of 1000 in 100 s supposed."""
    step, elapsed, plans = simulate(1000, 100.0, lambda _: 0.1 * factor)
    assert 96 < elapsed < 100.001  # sums of floats
    assert step == pytest.approx(1000 / factor, rel=0.04)
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
    assert step >= 0.97 * plans[-1]  # the learning rate has come down
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


def test_it_becomes_longer_just_before_its_middle_alone() -> None:
    longer = [step for step in range(1, 100) if corrected_steps(100, step, 0.1, 20.0) > 100]
    assert longer == [47, 48, 49, 50]


def test_it_becomes_shorter_from_the_middle_of_what_fits() -> None:
    assert corrected_steps(100, 29, 0.1, 3.1) == 100  # 60 fit
    assert corrected_steps(100, 30, 0.1, 3.0) == 60
    assert corrected_steps(100, 30, 0.1, -1.0) == 30  # none are left


def test_small_differences_are_left_alone() -> None:
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
    assert took.total["save"] == before  # what was not finished does not count


def test_the_pace_is_that_of_the_later_half() -> None:
    pace, seconds = Pace(), [9.0, 1.0, 2.0, 3.0, 4.0]
    means = []
    for one in seconds:
        pace.add(one)
        means.append(pace.seconds_a_step())
    assert means == [9.0, 1.0, 1.5, 2.5, 3.0]


def monotone(plans: list[int]) -> bool:
    return n_turns(plans) == 0


def n_turns(plans: list[int]) -> int:
    """How often the plan changes its direction."""
    ups = [after > before for before, after in itertools.pairwise(plans)]
    return sum(one != other for one, other in itertools.pairwise(ups))
