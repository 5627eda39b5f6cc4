"""The grading of predictions: cases, and one case in a process of its own."""

import pytest

from lmsmith.config.presets import preset
from lmsmith.plan.devices import Device
from lmsmith.plan.grade import Grade, cases, grade, summary
from lmsmith.plan.here import Measured

SPEEDS = Measured(
    name="a machine",
    threads=1,
    date="2026-01-01",
    memory=8e9,
    products={"float32": 1e11},
    by_width={"64": 1e11, "256": 2e11},
    attention=1e11,
    copy=1e10,
    small=5e10,
    exponential=1e9,
    overhead=5e-6,
)
HERE = Device("here", "a machine", SPEEDS.products, 8e9, 1e10, gpu=False, measured=SPEEDS)


def test_cases_are_drawn_with_a_fixed_seed_and_are_valid() -> None:
    drawn = cases()
    assert len(drawn) == 48
    assert drawn == cases()
    assert len({str(case) for case in drawn}) == 48
    for name, settings in drawn:
        preset(name).changed(settings, where="here")


def test_rates_between_measured_widths() -> None:
    assert SPEEDS.product_rate(160) == 1.5e11
    assert SPEEDS.product_rate(1000) == 2e11
    assert SPEEDS.product_rate(32) == 0.5e11


def test_the_summary() -> None:
    case = ("gpt2", {})
    grades = [Grade(case, "time", 1 + i / 100, 0.9, 1.05, 1.0) for i in range(10)]
    grades[9] = Grade(case, "time", 2.0, 1.5, 2.5, 1.0)
    assert summary(grades, "time") == (
        "time: median error 4.5%, 90th percentile 100.0%, worst 100.0%; 90% of the 80% intervals "
        "hold (10 cases)"
    )


@pytest.mark.slow
def test_a_case_in_a_process_of_its_own() -> None:
    memory, time = grade(cases()[:1], HERE, n_steps=2)
    assert memory.figure == "memory"
    assert abs(memory.error) < 0.1
    assert memory.inside
    assert time.measured > 0
