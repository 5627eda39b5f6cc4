"""The grading of predictions: cases, and one case in a process of its own."""

import pytest
from a_machine import SPEEDS

from lmsmith.config.presets import preset
from lmsmith.plan.devices import Device
from lmsmith.plan.grade import Grade, cases, grade, summary

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
