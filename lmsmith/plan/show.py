"""A plan as text of at most 80 columns, and several plans side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lmsmith.plan.predict import Plan
from lmsmith.plan.tuning import Tuning

WIDTH = 80


def show(plan: Plan) -> str:
    """The plan as tables: parameters, FLOPs, memory, time and the run."""
    model, train = plan.config.neural, plan.config.train
    lines = [
        f"{plan.config.preset}: {model.describe()}",
        f"on {plan.world} x {plan.device.name}, {train.dtype}"
        + (f", {train.parallel}" if plan.world > 1 else ""),
        "",
        *_parameters(plan),
        "",
        *(_flops(plan) if plan.tuning is None else _tuning(plan, plan.tuning)),
        "",
        *_memory(plan),
        "",
        *_step(plan),
        "",
        *_run(plan),
    ]
    if plan.inference is not None:
        lines += ["", *_inference(plan)]
    for note in plan.notes:
        lines += _wrapped(f"note: {note}")
    return "\n".join(lines)


def _parameters(plan: Plan) -> list[str]:
    total = plan.n_parameters
    head = f"parameters{total:>24,}"
    learned = sum(parameter.n for parameter in plan.parameters if parameter.learned)
    if learned != total:
        head += f"   {learned:,} of them learned"
    return [head, *_shares(plan.groups, total, lambda n: f"{n:,.0f}")]


def _flops(plan: Plan) -> list[str]:
    causal, full = plan.flops["causal"], plan.flops["full"]
    lines = [f"FLOPs per token, forward and backward   {amount(causal.per_token, 'FLOP')}"]
    parts = {name: part.total for name, part in causal.parts.items()}
    lines += _shares(parts, causal.per_token, lambda n: amount(n, "FLOP"))
    lines += _wrapped(
        "causal attention (half of the square); counting the full square: "
        f"{amount(full.per_token, 'FLOP')}"
    )
    return lines


def _memory(plan: Plan) -> list[str]:
    found = plan.memory
    verdict = "fits" if plan.fits else "DOES NOT FIT"
    lines = [
        f"peak memory{bytes_of(found.n_bytes):>23}   of {bytes_of(plan.device.memory)}: {verdict}"
    ]
    lines += _shares(found.by_kind, found.n_bytes, bytes_of)
    lines.append(f"  the peak is in: {found.moment}")
    if plan.process_bytes is not None:
        lines.append(f"  with these tensors, the process takes {bytes_of(plan.process_bytes)}")
    return lines


def _tuning(plan: Plan, found: Tuning) -> list[str]:
    """FLOPs of a step of preference optimization or reinforcement learning."""
    lengths = f"{found.answers.prompt:,} + {found.answers.answer:,} tokens"
    n = found.n_rows // found.group_size
    of = f"{n:,} prompts x {found.group_size} answers of {lengths}"
    lines = [f"a step of {found.method}: {of}   {amount(found.flops, 'FLOP')}"]
    return [*lines, *_shares(found.parts, found.flops, lambda n: amount(n, "FLOP"))]


def _step(plan: Plan) -> list[str]:
    step = plan.step
    lines = [
        f"a step of {step.tokens:,} tokens   {duration(step.seconds)}   "
        f"({duration(step.low)} to {duration(step.high)})",
        *_shares({n: s for n, s in step.parts.items() if s}, step.seconds, duration),
        f"  {step.tokens_per_second:,.0f} tokens/s; {plan.mfu:.0%} of the peak (MFU)",
    ]
    if plan.communication.n_bytes:
        sent = f"  each device sends {bytes_of(plan.communication.n_bytes)} per step"
        hidden = not step.parts.get("exchange")
        lines.append(sent + (", during the backward pass" if hidden else ""))
    if step.efficiency is not None:
        e = step.efficiency
        lines += _wrapped(
            f"assumed: {e.products:.0%} of the peak in products, {e.attention:.0%} in attention, "
            f"{e.bandwidth:.0%} of the bandwidth"
        )
    return lines


def _run(plan: Plan) -> list[str]:
    lines = [
        f"the run   {plan.steps:,} steps, {amount(plan.tokens, 'tokens')}, "
        f"{plan.tokens / plan.n_parameters:.3g} per parameter",
        f"  {amount(plan.total_flops, 'FLOP')}, {plan.total_flops / 8.64e19:.3g} petaflop/s-days",
        f"  {duration(plan.seconds)}",
    ]
    costs = []
    if plan.kwh is not None:
        costs.append(f"{plan.kwh:,.3g} kWh")
    if plan.dollars is not None:
        costs.append(f"${plan.dollars:,.2f} at ${plan.device.price:g} per hour and device")
    return lines + ([f"  {', '.join(costs)}"] if costs else [])


def _inference(plan: Plan) -> list[str]:
    found = plan.inference
    assert found is not None
    lines = [
        f"generation   KV cache {bytes_of(found.cache_per_token)} per token, "
        f"{bytes_of(found.cache)} at full context"
    ]
    if found.tokens_per_second:
        of = "one sequence" if found.batch == 1 else f"{found.batch} sequences together"
        lines.append(
            f"  up to {found.tokens_per_second:,.0f} tokens/s for {of} (bound by {found.bound})"
        )
    return lines


def _shares(parts: Mapping[str, float], total: float, form: Callable[[float], str]) -> list[str]:
    """One line per part: name, value, share and a bar."""
    lines = []
    for name, value in parts.items():
        share = value / total if total else 0.0
        bar = "#" * round(20 * share)
        lines.append(f"  {name:30.30} {form(value):>14} {share:6.1%} {bar}".rstrip())
    return lines


ROWS = (
    *("parameters", "FLOPs per token", "peak memory", "fits", "seconds per step", "tokens/s"),
    *("MFU", "tokens", "time", "kWh", "dollars"),
)


def compare(plans: Sequence[tuple[str, Plan]]) -> str:
    """Plans side by side, one column each; several blocks if they are wider than 80 columns."""
    first = ["", *ROWS]
    label = max(map(len, first))
    names = [_shortened(name, WIDTH - label - 2) for name, _ in plans]
    columns = [[name, *_column(plan)] for name, (_, plan) in zip(names, plans, strict=True)]
    widths = [max(map(len, column)) + 2 for column in columns]
    blocks: list[str] = []
    start = 0
    while start < len(columns):
        end, used = start, label
        while end < len(columns) and (end == start or used + widths[end] <= WIDTH):
            used += widths[end]
            end += 1
        for index, name in enumerate(first):
            cells = (
                column[index].rjust(width)
                for column, width in zip(columns[start:end], widths[start:end], strict=True)
            )
            blocks.append(name.ljust(label) + "".join(cells))
        blocks.append("")
        start = end
    notes: dict[str, list[str]] = {}
    for name, (_, plan) in zip(names, plans, strict=True):
        for note in dict.fromkeys(plan.notes):
            notes.setdefault(note, []).append(name)
    lines = blocks[:-1]
    for note, of in notes.items():
        which = "" if len(of) == len(plans) else f" ({', '.join(of)})"
        lines += _wrapped(f"note{which}: {note}")
    return "\n".join(lines)


def _shortened(name: str, most: int) -> str:
    """The end of a name that is too long for a column, such as a path."""
    return name if len(name) <= most else "..." + name[3 - most :]


def _column(plan: Plan) -> list[str]:
    return [
        f"{plan.n_parameters:,}",
        amount(plan.flops["causal"].per_token, "FLOP"),
        bytes_of(plan.memory.n_bytes),
        "yes" if plan.fits else "NO",
        duration(plan.step.seconds),
        f"{plan.step.tokens_per_second:,.0f}",
        f"{plan.mfu:.0%}",
        amount(plan.tokens, ""),
        duration(plan.seconds),
        "unknown" if plan.kwh is None else f"{plan.kwh:,.3g}",
        "unknown" if plan.dollars is None else f"${plan.dollars:,.2f}",
    ]


def amount(value: float, unit: str) -> str:
    """1.5e12, "FLOP" -> "1.5 TFLOP"."""
    for size, prefix in ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    for size, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def bytes_of(value: float) -> str:
    """8.73e9 -> "8.73 GB"."""
    return amount(value, "B")


def duration(seconds: float) -> str:
    """0.0892 -> "89.2 ms", 13_550 -> "3.76 h"."""
    for size, unit in ((365.25 * 86400, "years"), (2 * 86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / (86400 if unit == 'days' else size):.3g} {unit}"
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def _wrapped(text: str) -> list[str]:
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) + 3 > WIDTH:
            lines.append(line)
            line = ""
        line = f"{line} {word}" if line else word
    return [f"  {each}" for each in [*lines, line]]
