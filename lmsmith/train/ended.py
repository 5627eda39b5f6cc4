"""Says from a run's summary whether it ended early, and whether it made too few steps to learn.

Used for the closing lines of a run, for reports and for comparisons.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.config import read_toml
from lmsmith.errors import ConfigError
from lmsmith.text.files import plural
from lmsmith.train.stop import signal_in_words

FEW_STEPS = 20
"""A run limited by time that made fewer steps than this has learned nothing useful."""

CUT = 0.9
"""Below this share of the steps first planned, a run counts as cut short by its time limit."""


def cut_short(summary: Mapping[str, Any]) -> str:
    """Says why a run ended before its planned length; "" if it did not or has no summary.

    Such a run is not comparable with one that was trained to its end.
    """
    steps, planned = summary.get("steps"), summary.get("first_planned_steps")
    if summary.get("finished") == "signal":
        name = summary.get("signal")
        return (
            f"stopped by {signal_in_words(name) if name else 'a signal'} after "
            f"{plural(int(steps or 0), 'step')}"
        )
    if summary.get("finished") != "time" or not steps or not planned or steps >= CUT * planned:
        return ""
    return f"cut short by its time limit after {steps:,} of {planned:,} planned steps"


def init_from(run: Path) -> str:
    """Returns the run whose weights this one started from, by its config.toml; "" if none."""
    try:
        start = str(read_toml(run / "config.toml").get("train.init_from", "none"))
        return "" if start == "none" else start
    except ConfigError:
        return ""


def too_few_steps_note(summary: Mapping[str, Any], init_from: str = "") -> str:
    """Says that a run limited by time made too few steps; "" if it made enough.

    `init_from`: the run whose weights it started from, if any.
    """
    steps = summary.get("steps")
    if summary.get("finished") != "time" or not isinstance(steps, int) or steps >= FEW_STEPS:
        return ""
    only = f"the run made only {plural(steps, 'step')} within its time limit"
    if init_from:
        return f"{only} and learned nothing useful beyond what {init_from} knew"
    return f"{only} and learned nothing useful"
