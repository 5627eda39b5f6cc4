"""The section of a report that compares a run's forecast with its outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lmsmith.plan.show import amount, bytes_of, duration
from lmsmith.report.page import table, text
from lmsmith.report.reading import is_number

ROWS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("n_params", "parameters", lambda n: f"{n:,.0f}"),
    ("flops_per_token", "FLOPs per token, forward and backward", lambda n: amount(n, "FLOP")),
    ("peak_tensor_bytes", "peak memory of tensors", bytes_of),
    ("seconds_per_step", "seconds per step", duration),
    ("seconds", "training time", duration),
)


def forecast_section(summary: Mapping[str, Any]) -> str:
    """A table of predicted and measured values with their errors; "" for runs without a forecast.

    Values that were not predicted or not measured are dashes; the notes below say why.
    """
    forecast, outcome = summary.get("forecast"), summary.get("outcome")
    if not isinstance(forecast, dict) or not isinstance(outcome, dict):
        return ""
    rows = []
    for key, name, form in ROWS:
        predicted, measured = (_number(of.get(key)) for of in (forecast, outcome))
        error = "—"
        if predicted is not None and measured:
            error = f"{predicted / measured - 1:+.1%}"
        shown = ("—" if value is None else text(form(value)) for value in (predicted, measured))
        rows.append([name, *shown, error])
    notes = [*_notes(forecast), *_notes(outcome)]
    html = "<h2>Forecast and outcome</h2>" + table(["", "forecast", "measured", "error"], rows)
    return html + "".join(f'<p class="about">{text(note)}.</p>' for note in notes)


def _number(value: Any) -> float | None:
    return float(value) if is_number(value) else None


def _notes(of: Mapping[str, Any]) -> list[str]:
    found = of.get("notes")
    return [str(note) for note in found] if isinstance(found, list) else []
