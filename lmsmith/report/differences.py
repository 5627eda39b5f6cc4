"""Draws the differences between models: a table for terminals, a section of a page.

On a page each interval is a line under a common scale, with a dot for the difference and a vertical
line at zero. A line that does not reach zero is a difference that the text or the items show; it is
drawn in colour.
"""

from __future__ import annotations

from collections.abc import Sequence

from lmsmith.evaluate.differences import BITS, Accuracy, Difference
from lmsmith.evaluate.significance import N_RESAMPLES
from lmsmith.report.page import table, text

DIFFERENCE_HEAD = ("pair", "measure", "difference", "95% interval", "p", "verdict")
ACCURACY_HEAD = ("model", "task", "accuracy", "95% interval", "items")


def difference_rows(differences: Sequence[Difference]) -> list[list[str]]:
    """The cells of the table, under `DIFFERENCE_HEAD`."""
    return [
        [
            f"{row.a} vs {row.b}",
            row.measure,
            "—" if row.difference is None else _signed(row.difference, row.measure),
            _interval(row),
            "—" if row.p_corrected is None else _p_value(row.p_corrected),
            row.verdict,
        ]
        for row in differences
    ]


def accuracy_rows(accuracies: Sequence[Accuracy]) -> list[list[str]]:
    """The cells of the table of accuracies, under `ACCURACY_HEAD`."""
    return [
        [
            row.name,
            row.task,
            f"{row.accuracy:.1%}",
            f"{row.low:.1%} to {row.high:.1%}",
            f"{row.n_items:,}",
        ]
        for row in accuracies
    ]


def difference_notes(differences: Sequence[Difference]) -> list[str]:
    """How the tests were made, one sentence each; empty if there was no test."""
    tested = [row for row in differences if row.p is not None]
    notes = (
        ["a difference is the score of the first model minus that of the second"] if tested else []
    )
    for row in [row for row in tested if row.measure == BITS][:1]:
        unit = f"{row.n:,} {row.unit}"
        if row.unit == "blocks":
            unit += " into which the text was cut, because it has few documents"
        notes.append(
            f"differences in bits per byte: paired bootstrap over {unit}, {N_RESAMPLES:,} resamples"
        )
    if any(row.measure != BITS for row in tested):
        notes.append("differences in accuracy: McNemar's test, with Tango's interval")
    if len(tested) > 1:
        notes.append(
            f"p and verdict are corrected for {len(tested)} tests (Holm); each interval is for its "
            "pair alone"
        )
    return notes


def difference_section(
    differences: Sequence[Difference],
    accuracies: Sequence[Accuracy] = (),
    notes: Sequence[str] = (),
) -> str:
    """A section of a page, with the intervals drawn; "" if there is nothing to show."""
    parts = []
    if accuracies:
        cells = [[text(cell) for cell in row] for row in accuracy_rows(accuracies)]
        parts.append(f"<h2>Accuracy on task items</h2>{table(ACCURACY_HEAD, cells)}")
    if differences:
        parts.append(
            f"<h2>Differences{_of_one_measure(differences)}</h2>"
            '<p class="about">Dots are differences, lines their 95% intervals. If an interval '
            "includes zero, no difference is shown; the models may still differ, and more text or "
            "items would tell.</p>"
        )
        scales = {
            measure: _scale([row for row in differences if row.measure == measure])
            for measure in dict.fromkeys(row.measure for row in differences)
        }
        cells = []
        for row, words in zip(differences, difference_rows(differences), strict=True):
            pair, measure, difference, interval, p, verdict = (text(cell) for cell in words)
            verdict = f"<b>{verdict}</b>" if row.better else verdict
            drawn = _drawn(row, scales[row.measure])
            measures = [measure] if len(scales) > 1 else []
            cells.append([pair, *measures, verdict, difference, drawn, interval, p])
        measures = ["measure"] if len(scales) > 1 else []
        head = ["pair", *measures, "verdict", "difference", "", "95% interval", "p"]
        parts.append(table(head, cells))
    said = [*difference_notes(differences), *notes]
    parts += [f'<p class="about">{text(note[0].upper() + note[1:])}.</p>' for note in said]
    return "".join(parts)


def _of_one_measure(differences: Sequence[Difference]) -> str:
    """Names the measure, if there is a single one: " in bits per byte"."""
    measures = {row.measure for row in differences}
    return f" in {text(measures.pop())}" if len(measures) == 1 else ""


def _signed(value: float, measure: str) -> str:
    """A difference: bits per byte, or percentage points."""
    return f"{value:+.4f}" if measure == BITS else f"{100 * value:+.1f} points"


def _interval(row: Difference) -> str:
    if row.low is None or row.high is None:
        return "—"
    return f"{_signed(row.low, row.measure)} to {_signed(row.high, row.measure)}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _scale(rows: Sequence[Difference]) -> float:
    """The largest distance from zero that is drawn."""
    ends = [abs(end) for row in rows for end in (row.low, row.high) if end is not None]
    return max(ends, default=0.0) or 1.0


def _drawn(row: Difference, scale: float) -> str:
    """The interval as a line from -scale to scale; 150 by 18 units."""
    if row.difference is None or row.low is None or row.high is None:
        return ""
    low, at, high = (75 + 70 * value / scale for value in (row.low, row.difference, row.high))
    colour, right = "var(--c0)" if row.better else "var(--soft)", max(high, low + 0.5)
    words = f"{row.a} minus {row.b}: {_interval(row)}"
    return (
        f'<svg viewBox="0 0 150 18" width="150" height="18" role="img" aria-label="{text(words)}">'
        f'<path d="M75 0V18" style="stroke:var(--soft);stroke-dasharray:2 2"/>'
        f'<path d="M{low:.1f} 9H{right:.1f}" style="stroke:{colour};stroke-width:3"/>'
        f'<circle cx="{at:.1f}" cy="9" r="4.5" style="fill:{colour}"/></svg>'
    )
