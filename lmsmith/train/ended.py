"""How a run ended, from its summary: whether it ended early, and whether it can have learned
anything.

What a run says at its end, its report and the league all ask here, so they agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.config import read_toml
from lmsmith.errors import ConfigError
from lmsmith.text.files import plural

FEW_STEPS = 20
"""A run limited by the clock that made fewer steps than this has learned nothing worth using."""

CUT = 0.9
"""Share of the steps planned at the start below which a run counts as cut short by the clock."""


def cut_short(summary: Mapping[str, Any]) -> str:
    """Why a run ended before its planned length, in a phrase; "" where it did not, or has no
    summary.

    Such a run is not comparable with one that was trained to its end.
    """
    steps, planned = summary.get("steps"), summary.get("first_planned_steps")
    if summary.get("finished") == "signal":
        return (
            f"stopped by {summary.get('signal') or 'a signal'} after "
            f"{plural(int(steps or 0), 'step')}"
        )
    if summary.get("finished") != "time" or not steps or not planned or steps >= CUT * planned:
        return ""
    return f"cut short by the clock after {steps:,} of the {planned:,} steps planned at its start"


def init_from(run: Path) -> str:
    """The run that this one began with, by its config.toml; "" where there is none."""
    try:
        place = str(read_toml(run / "config.toml").get("train.init_from", "none"))
        return "" if place == "none" else place
    except ConfigError:
        return ""


def learned_nothing(summary: Mapping[str, Any], init_from: str = "") -> str:
    """Says of a run limited by the clock that it made too few steps; "" where it made enough.

    `init_from`: the run that this one began with, if any.
    """
    steps = summary.get("steps")
    if summary.get("finished") != "time" or not isinstance(steps, int) or steps >= FEW_STEPS:
        return ""
    only = f"it made only {plural(steps, 'step')} in its time"
    if init_from:
        return f"{only}: it has learned nothing worth using beyond what {init_from} knew"
    return f"{only}: it has learned nothing worth using"
