"""Plans as one HTML file: stacked bars of memory, FLOPs and time, drawn as SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lmsmith.plan.predict import Plan
from lmsmith.plan.show import amount, bytes_of, compare, duration, show
from lmsmith.report.page import page, text

N_COLOURS = 8
_STYLE = """
.bars svg { width: 100%; height: 1.6rem; display: block; border-radius: 4px; }
.bars .name { margin: .8rem 0 .2rem; } .bars ul { list-style: none; padding: 0; margin: .4rem 0;
display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .85rem; }
.bars li i { display: inline-block; width: .8em; height: .8em; border-radius: 2px; }
pre { overflow-x: auto; }
"""


Bars = dict[str, tuple[list[tuple[str, dict[str, float]]], Callable[[float], str]]]


def bars(plans: Sequence[tuple[str, Plan]]) -> Bars:
    """Stacked bars by title: the parts of each plan, by its name, and how to print a number."""
    memory = [(name, dict(plan.memory.by_kind)) for name, plan in plans]
    flops = [(name, _flops(plan)) for name, plan in plans]
    seconds = [(name, dict(plan.step.parts)) for name, plan in plans]
    return {
        "Peak memory": (memory, bytes_of),
        "FLOPs per token": (flops, lambda value: amount(value, "FLOP")),
        "Time of a step": (seconds, duration),
    }


def plans_page(plans: Sequence[tuple[str, Plan]]) -> str:
    """The HTML document of one or several plans."""
    body = "<h1>Costs before training</h1>"
    for title, (entries, form) in bars(plans).items():
        body += stacked_bars(title, entries, form)
    if len(plans) > 1:
        body += f"<pre>{text(compare(plans))}</pre>"
    for _, plan in plans:
        body += f"<pre>{text(show(plan))}</pre>"
    return page("Plan", body, style=_STYLE)


def _flops(plan: Plan) -> dict[str, float]:
    """FLOPs per token by part; with a method such as dpo, of all passes of a step."""
    if plan.tuning is not None:
        return {part: total / plan.step.tokens for part, total in plan.tuning.parts.items()}
    return {part: found.total for part, found in plan.flops["causal"].parts.items()}


def stacked_bars(
    title: str, bars: Sequence[tuple[str, Mapping[str, float]]], form: Callable[[float], str]
) -> str:
    """One bar per entry on a common scale, its parts in the order of their first appearance."""
    kinds = list(dict.fromkeys(kind for _, parts in bars for kind in parts))
    longest = max((sum(parts.values()) for _, parts in bars), default=0.0) or 1.0
    body = ""
    for name, parts in bars:
        at, drawn = 0.0, ""
        for index, kind in enumerate(kinds):
            width = 1000 * parts.get(kind, 0.0) / longest
            tip = text(f"{kind}: {form(parts.get(kind, 0.0))}")
            drawn += (
                f'<rect x="{at:.2f}" y="0" width="{width:.2f}" height="10" '
                f'style="fill:{_colour(index)}"><title>{tip}</title></rect>'
            )
            at += width
        label = f"{text(name)}: {text(form(sum(parts.values())))}"
        body += (
            f'<p class="name">{label}</p><svg viewBox="0 0 1000 10" preserveAspectRatio="none" '
            f'role="img" aria-label="{label}">{drawn}</svg>'
        )
    legend = "".join(
        f'<li><i style="background:{_colour(index)}"></i> {text(kind)}</li>'
        for index, kind in enumerate(kinds)
    )
    return f'<section class="bars"><h2>{text(title)}</h2>{body}<ul>{legend}</ul></section>'


def _colour(index: int) -> str:
    """The style sheet's colours; further ones are mixed with the page's."""
    name = f"var(--c{index % N_COLOURS})"
    return name if index < N_COLOURS else f"color-mix(in srgb, {name} 50%, var(--page))"
