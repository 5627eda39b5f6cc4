"""Learning rate schedules: start, end, shape, and properties of every schedule."""

import math
from itertools import pairwise

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as some

from lmsmith.config import ScheduleConfig
from lmsmith.optim.schedule import learning_rate_share as share

SHAPES = ("constant", "linear", "cosine", "trapezoid", "inverse-sqrt")


def shares(n: int, **settings: object) -> list[float]:
    plain = {"warmup_steps": 0, "cooldown_fraction": 0.5, "final_fraction": 0.0}
    config = ScheduleConfig(**{**plain, **settings})  # type: ignore[arg-type]
    return [share(step, n, config) for step in range(n)]


def test_linear() -> None:
    assert shares(5, shape="linear") == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])
    assert shares(6, shape="linear", warmup_steps=2, final_fraction=0.2) == pytest.approx(
        [0.5, 1.0, 1.0, 0.8, 0.6, 0.4]
    )


def test_cosine() -> None:
    n = 8
    wanted = [0.1 + 0.9 * (1 + math.cos(math.pi * step / n)) / 2 for step in range(n)]
    assert shares(n, shape="cosine", final_fraction=0.1) == pytest.approx(wanted)
    warm = shares(n + 4, shape="cosine", final_fraction=0.1, warmup_steps=4)
    assert warm == pytest.approx([0.25, 0.5, 0.75, 1.0, *wanted])


def test_inverse_square_root() -> None:
    found = shares(65, shape="inverse-sqrt", warmup_steps=4)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert [found[step] for step in (4, 16, 64)] == pytest.approx([1.0, 0.5, 0.25])
    assert found[-1] == share(
        64, 10**6, ScheduleConfig(shape="inverse-sqrt", warmup_steps=4)
    )  # whatever the length
    assert min(shares(100, shape="inverse-sqrt", warmup_steps=1, final_fraction=0.3)) == 0.3


def test_trapezoid() -> None:
    assert shares(8, shape="trapezoid") == pytest.approx([1, 1, 1, 1, 1, 0.75, 0.5, 0.25])
    assert shares(
        8, shape="trapezoid", cooldown_fraction=0.25, final_fraction=0.5
    ) == pytest.approx([1, 1, 1, 1, 1, 1, 1, 0.75])
    assert shares(4, shape="trapezoid", cooldown_fraction=0.0) == [1.0] * 4
    assert shares(4, shape="trapezoid", cooldown_fraction=1.0) == shares(4, shape="linear")


def test_a_cool_down_longer_than_the_steps_after_warm_up_begins_at_the_peak() -> None:
    """It does not jump down to where a longer cool-down would be by then."""
    settings = {"warmup_steps": 6, "cooldown_fraction": 0.9}
    assert shares(10, shape="trapezoid", **settings) == pytest.approx(
        shares(10, shape="linear", warmup_steps=6)
    )


def test_constant() -> None:
    assert shares(3, shape="constant", final_fraction=0.3) == [1.0, 1.0, 1.0]
    assert shares(4, shape="constant", warmup_steps=2) == [0.5, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("shape", SHAPES[:-1])
def test_the_end_is_one_step_after_the_last(shape: str) -> None:
    config = ScheduleConfig(shape=shape, final_fraction=0.25)  # type: ignore[arg-type]
    end = 1.0 if shape == "constant" else 0.25
    assert share(100, 100, config) == pytest.approx(end)
    assert share(101, 100, config) == pytest.approx(
        end
    )  # the run was shortened during its last step
    assert share(99, 100, config) > end or shape == "constant"


anything = some.builds(
    ScheduleConfig,
    shape=some.sampled_from(SHAPES),
    warmup_steps=some.integers(0, 60),
    cooldown_fraction=some.floats(0, 1),
    final_fraction=some.floats(0, 1),
)


@hypothesis.settings(deadline=None)
@given(anything, some.integers(1, 80))
def test_properties_of_every_schedule(config: ScheduleConfig, n: int) -> None:
    found = [share(step, n, config) for step in range(n)]
    assert found == [
        share(step, n, config) for step in range(n)
    ]  # a function of nothing but its arguments
    assert all(0 < value <= 1 + 1e-12 for value in found)
    warm, after = found[: config.warmup_steps], found[config.warmup_steps :]
    assert warm == pytest.approx([(step + 1) / config.warmup_steps for step in range(len(warm))])
    assert all(a >= b - 1e-12 for a, b in pairwise(after))
    assert all(value >= config.final_fraction - 1e-12 for value in after)
    if after:
        assert after[0] == pytest.approx(1.0)  # the peak is reached, with and without warm-up
    if config.shape == "linear":
        steps = [a - b for a, b in pairwise(after)]
        assert steps == pytest.approx([steps[0]] * len(steps)) if steps else True


@hypothesis.settings(deadline=None)
@given(anything, some.integers(1, 80), some.integers(0, 200))
def test_no_step_is_out_of_bounds(config: ScheduleConfig, n: int, step: int) -> None:
    assert 0 <= share(step, n, config) <= 1 + 1e-12
