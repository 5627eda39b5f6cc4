"""How a run ended, as its closing lines, its report and comparisons say it."""

from pathlib import Path
from typing import Any

import pytest

from lmsmith.train.ended import FEW_STEPS, cut_short, init_from, too_few_steps_note


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        (
            {"finished": "time", "steps": 2, "first_planned_steps": 17},
            "cut short by its time limit after 2 of 17 planned steps",
        ),
        (
            {"finished": "time", "steps": 899, "first_planned_steps": 1000},
            "cut short by its time limit after 899 of 1,000 planned",
        ),
        ({"finished": "time", "steps": 900, "first_planned_steps": 1000}, ""),
        ({"finished": "time", "steps": 1300, "first_planned_steps": 1000}, ""),
        ({"finished": "time", "steps": 1}, ""),  # an older version did not write the plan
        ({"finished": "steps", "steps": 5, "first_planned_steps": 5}, ""),
        ({"finished": "target", "steps": 5, "first_planned_steps": 100}, ""),
        ({"finished": "counted", "steps": 0}, ""),
        ({"finished": "signal", "signal": "SIGINT", "steps": 1}, "stopped by Ctrl-C after 1 step"),
        ({"finished": "signal", "signal": "SIGTERM", "steps": 2}, "stopped by SIGTERM after 2"),
        ({}, ""),
    ],
)
def test_cut_short_runs(summary: dict[str, Any], expected: str) -> None:
    found = cut_short(summary)
    assert found.startswith(expected) if expected else not found


def test_too_few_steps() -> None:
    few = {"finished": "time", "steps": FEW_STEPS - 1}
    assert (
        too_few_steps_note(few)
        == "the run made only 19 steps within its time limit and learned nothing useful"
    )
    assert too_few_steps_note({"finished": "time", "steps": 1}).startswith(
        "the run made only 1 step within its time limit"
    )
    assert too_few_steps_note(few, "runs/a").endswith("nothing useful beyond what runs/a knew")
    for enough in (
        {**few, "steps": FEW_STEPS},
        {**few, "finished": "steps"},
        {**few, "finished": "target"},
        {},
    ):
        assert too_few_steps_note(enough) == ""


def test_init_from_reads_the_run_from_the_config(tmp_path: Path) -> None:
    assert init_from(tmp_path) == ""
    (tmp_path / "config.toml").write_text('[train]\nstart_from = "runs/a"\n')
    assert init_from(tmp_path) == "runs/a"
