"""Plans as PNG, for slides and papers: stacked bars of memory, FLOPs and time by matplotlib.

The HTML page (`plans.py`) shows the same bars with every value.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmsmith.errors import UsageError
from lmsmith.plan.predict import Plan
from lmsmith.report.plans import bars
from lmsmith.report.study_picture import COLOURS

SMALL = 0.01  # parts below this share of the longest bar are drawn together, as "other"
OTHER = "other"
BEGINNING = b"\x89PNG\r\n\x1a\n"


def plans_picture(plans: Sequence[tuple[str, Plan]]) -> bytes:
    """The content of a PNG file. Raises UsageError if matplotlib is not installed."""
    content = io.BytesIO()
    figure_of(plans).savefig(content, format="png")
    return content.getvalue()


def figure_of(plans: Sequence[tuple[str, Plan]]) -> Any:
    """The matplotlib figure: a panel each for memory, FLOPs and time, a bar per plan."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(
            "a PNG needs matplotlib: `pip install 'lmsmith[study]'`, or name an .html file."
        ) from error
    found = bars(plans)
    height = 0.9 + 0.45 * len(plans)
    figure = Figure(figsize=(9, 3 * (height + 0.9)), dpi=160, layout="constrained")
    FigureCanvasAgg(figure)
    for panel, (title, (entries, form)) in zip(figure.subplots(3), found.items(), strict=True):
        _draw(panel, title, entries, form)
    return figure


def _draw(
    axes: Any,
    title: str,
    entries: Sequence[tuple[str, Mapping[str, float]]],
    form: Callable[[float], str],
) -> None:
    """One bar per plan, from the top; its parts in the order of their first appearance."""
    merged = _merged(entries)
    kinds = list(dict.fromkeys(kind for parts in merged for kind in parts if kind != OTHER))
    kinds += [OTHER] if any(OTHER in parts for parts in merged) else []
    starts = [0.0] * len(merged)
    labels = [f"{name}: {form(sum(parts.values()))}" for name, parts in entries]
    for index, kind in enumerate(kinds):
        widths = [parts.get(kind, 0.0) for parts in merged]
        colour = "#999999" if kind == OTHER else COLOURS[index % len(COLOURS)]
        hatch = "" if index < len(COLOURS) else "//"
        style = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0}
        axes.barh(range(len(merged)), widths, left=starts, label=kind, **style)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.set_yticks(range(len(merged)), labels)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=11, loc="left")
    axes.xaxis.set_visible(False)
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=7, ncols=5, loc="upper left", bbox_to_anchor=(0, 0), frameon=False)


def _merged(entries: Sequence[tuple[str, Mapping[str, float]]]) -> list[dict[str, float]]:
    """The parts of each bar; those that are small in all bars are added up."""
    longest = max((sum(parts.values()) for _, parts in entries), default=0.0)
    large = {kind for _, parts in entries for kind, n in parts.items() if n >= SMALL * longest}
    found = []
    for _, parts in entries:
        kept = {kind: n for kind, n in parts.items() if kind in large}
        rest = sum(parts.values()) - sum(kept.values())
        found.append(kept | ({OTHER: rest} if rest > 0 else {}))
    return found
