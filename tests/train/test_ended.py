"""How a run ended, as its end, its report and the league say it."""

from pathlib import Path
from typing import Any

import pytest

from lmsmith.train.ended import FEW_STEPS, cut_short, init_from, learned_nothing


@pytest.mark.parametrize(
    ("summary", "said"),
    [
        (
            {"finished": "time", "steps": 2, "first_planned_steps": 17},
            "cut short by the clock after 2 of the 17 steps planned at its start",
        ),
        (
            {"finished": "time", "steps": 899, "first_planned_steps": 1000},
            "cut short by the clock after 899 of the 1,000 steps",
        ),
        ({"finished": "time", "steps": 900, "first_planned_steps": 1000}, ""),
        ({"finished": "time", "steps": 1300, "first_planned_steps": 1000}, ""),
        ({"finished": "time", "steps": 1}, ""),  # of an older version, which did not write the plan
        ({"finished": "steps", "steps": 5, "first_planned_steps": 5}, ""),
        ({"finished": "target", "steps": 5, "first_planned_steps": 100}, ""),
        ({"finished": "counted", "steps": 0}, ""),
        ({"finished": "signal", "signal": "SIGINT", "steps": 1}, "stopped by SIGINT after 1 step"),
        ({}, ""),
    ],
)
def test_runs_that_were_cut_short(summary: dict[str, Any], said: str) -> None:
    found = cut_short(summary)
    assert found.startswith(said) if said else not found


def test_too_few_steps() -> None:
    few = {"finished": "time", "steps": FEW_STEPS - 1}
    assert (
        learned_nothing(few)
        == "it made only 19 steps in its time: it has learned nothing worth using"
    )
    assert learned_nothing({"finished": "time", "steps": 1}).startswith(
        "it made only 1 step in its time"
    )
    assert learned_nothing(few, "runs/a").endswith("worth using beyond what runs/a knew")
    for enough in (
        {**few, "steps": FEW_STEPS},
        {**few, "finished": "steps"},
        {**few, "finished": "target"},
        {},
    ):
        assert learned_nothing(enough) == ""


def test_where_a_run_began(tmp_path: Path) -> None:
    assert init_from(tmp_path) == ""
    (tmp_path / "config.toml").write_text('[train]\nstart_from = "runs/a"\n')
    assert init_from(tmp_path) == "runs/a"
