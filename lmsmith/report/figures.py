"""The figures of a report: curves of learning, and bits per byte against the baselines.

One run is drawn in two colours, training and validation; of several runs each has its own, with
validation strong and training thin. Training's loss is smoothed over about a sixtieth of the run to
either side.

The loss charts show the whole curve, unless the first twentieth of a run, in which the loss falls
from a uniform guess, would take more than four fifths of the height. Then the rest is cut off at
the top, and the caption says so.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from lmsmith.report.charts import N_COLOURS, Line, legend, line_chart, smooth, thin
from lmsmith.report.page import text
from lmsmith.report.reading import Run, column
from lmsmith.train.ended import cut_short

AFTER_START = (
    1 / 5
)  # of a loss chart's height, at least, for what comes after the first twentieth of a run

_SMALL = {
    "Gradient norm": "grad_norm",
    "Tokens per second": "tokens_per_second",
}
_BASELINES = {
    "gzip": ("gzip -9", "learns from this text alone, 32 KiB back"),
    "xz": ("xz -9e", "learns from this text alone"),
    "source": ("the source itself", "on average no model does better"),
}


def curves(runs: Sequence[Run], *, named: bool = False) -> str:
    """Loss over steps and over seconds, and the small charts below; nothing for runs without a line
    of metrics.

    `named`: by its name even if it is a single run.
    """
    if not any(run.train or run.evals for run in runs):
        return ""
    shared = named or len(runs) > 1
    by_step = [_loss_lines(run, i, shared, "step", 1) for i, run in enumerate(runs)]
    seconds, unit = _seconds_unit(runs)
    by_time = [_loss_lines(run, i, shared, "seconds", seconds) for i, run in enumerate(runs)]
    y_range = _loss_range([*chain(*by_step)])
    title = f"Loss in nats per token{_cut_off(chain(*by_step), y_range[1])}"
    charts = [
        line_chart(title, [*chain(*by_step)], x_label="steps", y_range=y_range),
        line_chart(
            "The same over time", [*chain(*by_time)], x_label=f"{unit} of updates", y_range=y_range
        ),
    ]
    small = [
        _learning_rates(runs),
        *(_small_chart(runs, title, name) for title, name in _SMALL.items()),
    ]
    small += _task_charts(runs)
    if not shared:
        names, about = legend(by_step[0]), ""
    else:
        nothing = np.array([], dtype=np.float64)
        names = legend([Line(nothing, nothing, i, label=run.name) for i, run in enumerate(runs)])
        about = '<p class="about">Strong: validation. Thin: training, smoothed.</p>'
    return (
        f'<h2>Learning</h2>{about}{names}<div class="charts">{"".join(charts)}</div>'
        f'<div class="charts small">{"".join(small)}</div>'
    )


def bits_per_byte(runs: Sequence[Run], bits: Sequence[float | None]) -> str:
    """A table with bars, worst first: a uniform guess, the compressors, the runs, the source
    where it is known.
    """
    known = [found for run in runs if (found := _baselines(run))]
    one_text = all(found == known[0] for found in known)
    baselines = known[0] if known and one_text else {}
    rows = [(8.0, "a uniform guess", "every byte as likely as any other", "--quiet", "")]
    for name, bits_of_it in baselines.items():
        shown, about = _BASELINES.get(name, (name, ""))
        rows.append((bits_of_it, shown, about, "--floor" if name == "source" else "--quiet", ""))
    for i, (run, value) in enumerate(zip(runs, bits, strict=True)):
        if value is not None:
            shown = "this model" if len(runs) == 1 else run.name
            about = f"{1 - value / 8:.0%} smaller than the text"
            if len(runs) > 1 and cut_short(run.summary):
                about = "not comparable"
            rows.append((value, shown, about, f"--c{i % N_COLOURS}", "own"))
    if len(rows) == 1:
        return ""
    full = max(value for value, *_ in rows)
    source = baselines.get("source")
    floor = (
        f'<span class="floor" style="left:{100 * source / full:.2f}%"></span>'
        if source is not None
        else ""
    )
    body = "".join(
        f'<tr class="{kind}"><th scope="row">{text(name)}</th><td class="bars">'
        f'<span class="bar" '
        f'style="width:{100 * value / full:.2f}%;background:var({colour})"></span>{floor}</td>'
        f'<td>{value:.3f}</td><td class="about">{text(about)}</td></tr>'
        for value, name, about, colour, kind in sorted(rows, key=lambda row: -row[0])
    )
    words = _bits_in_words(bits[0], baselines) if len(runs) == 1 else ""
    if not one_text:
        words = (
            "These runs were held against different texts, so gzip, xz and the source are left out."
        )
    paragraph = f'<p class="about">{words}</p>' if words else ""
    return (
        f"<h2>Bits per byte of the validation text</h2>{paragraph}"
        f'<div class="scroll"><table class="bits"><tbody>{body}</tbody></table></div>'
    )


def _loss_lines(run: Run, colour: int, shared: bool, axis: str, unit: float) -> list[Line]:
    """Raw training loss (of a run alone), smoothed training loss, validation loss."""
    x, loss = thin(column(run.train, axis)) / unit, thin(column(run.train, "loss"))
    name = f"{run.name}: " if shared else ""
    smoothed = Line(
        x,
        smooth(loss, len(loss) / 60),
        colour if shared else 1,
        "soft",
        label=f"{name}training, smoothed",
    )
    validation = Line(
        column(run.evals, axis) / unit,
        column(run.evals, "val_loss"),
        colour,
        dots=True,
        label=f"{name}validation",
    )
    raw = Line(x, loss, 1, "faint")
    return [smoothed, validation] if shared else [raw, smoothed, validation]


def _loss_range(lines: Sequence[Line]) -> tuple[float, float]:
    """From the lowest loss to the highest, with a little room; at least a fifth is for what
    comes after the start.
    """
    end = max(float(line.x[-1]) for line in lines if len(line.x))
    shown = [line.y[line.x >= end / 20] for line in lines if line.kind != "faint"]
    losses = np.concatenate([y[np.isfinite(y)] for y in shown])
    if not len(losses):
        return 0.0, 1.0
    low, high = float(losses.min()), float(losses.max())
    highest = max(
        float(line.y[np.isfinite(line.y)].max(initial=high))
        for line in lines
        if line.kind != "faint"
    )
    high = min(highest, low + (high - low) / AFTER_START) if high > low else highest
    room = 0.06 * (high - low) or 0.5
    return max(0.0, low - room), high + room


def _learning_rates(runs: Sequence[Run]) -> str:
    """Of one run the learning rate of each group, named; of several the main group's."""
    if len(runs) == 1:
        (run,) = runs
        labels = _rate_labels(run)
        lines = [_small_line(run, name, i, label) for i, (name, label) in enumerate(labels.items())]
        return _chart("Learning rate", lines, named=len(lines) > 1)
    lines = [_small_line(run, next(iter(_rate_labels(run))), i) for i, run in enumerate(runs)]
    return _chart("Learning rate of the main group", lines)


def _rate_labels(run: Run) -> dict[str, str]:
    """The fields of metrics.jsonl with a group's learning rate, the main group first, and the
    groups' names.

    Groups whose rates are the same are one line. Runs of older versions have `learning_rate` alone.
    """
    muon = run.settings.get("optim.name") == "muon"
    rest = "head, biases, gains" if muon else "all else"
    labels = {"learning_rate": rest, "embedding_learning_rate": "embedding tables"}
    if muon:
        labels = {"muon_learning_rate": "matrices (Muon)"} | labels
    there = {name: label for name, label in labels.items() if any(name in row for row in run.train)}
    rate, of_tables = (
        column(run.train, name) for name in ("learning_rate", "embedding_learning_rate")
    )
    if "embedding_learning_rate" in there and np.array_equal(rate, of_tables, equal_nan=True):
        del there["embedding_learning_rate"]
        there["learning_rate"] = f"embedding tables, {rest}" if muon else "all weights"
    return there or {"learning_rate": rest}


def _cut_off(lines: Iterable[Line], top: float) -> str:
    """What is above the chart, if anything is."""
    highest = max(
        float(line.y[np.isfinite(line.y)].max(initial=top))
        for line in lines
        if line.kind != "faint"
    )
    return f" (its first steps, from {highest:.2f} down, are above)" if highest > top else ""


def _small_chart(runs: Sequence[Run], title: str, name: str) -> str:
    return _chart(title, [_small_line(run, name, i) for i, run in enumerate(runs)])


def _task_charts(runs: Sequence[Run]) -> list[str]:
    """A small chart for each number of the benchmark tasks that ran while training."""
    names = dict.fromkeys(
        name
        for run in runs
        for row in run.tasks
        for name in row
        if "." in name and "_stderr" not in name
    )
    return [
        _chart(
            name.replace(".", ", "),
            [
                Line(column(run.tasks, "step"), column(run.tasks, name), colour, dots=True)
                for colour, run in enumerate(runs)
            ],
        )
        for name in names
    ]


def _small_line(run: Run, name: str, colour: int, label: str = "") -> Line:
    return Line(
        thin(column(run.train, "step")), thin(column(run.train, name)), colour, "soft", label=label
    )


def _chart(title: str, lines: Sequence[Line], *, named: bool = False) -> str:
    """A small chart; nothing where there is no number to draw. `named`: with the lines' names."""
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    if not len(values):
        return ""
    # A single spike of the gradient must not flatten all the rest.
    high = float(min(values.max(), 3 * np.quantile(values, 0.98)))
    y_range = (0.0, 1.08 * high or 1.0)
    return line_chart(title, lines, x_label="steps", y_range=y_range, n_ticks=3, named=named)


def _seconds_unit(runs: Sequence[Run]) -> tuple[float, str]:
    longest = max(
        float(np.nanmax(column(rows, "seconds"), initial=0))
        for run in runs
        for rows in (run.train, run.evals)
    )
    for unit, name in ((3600.0, "hours"), (60.0, "minutes")):
        if longest >= 3 * unit:
            return unit, name
    return 1.0, "seconds"


def _baselines(run: Run) -> dict[str, float]:
    found = run.summary.get("baselines")
    pairs = found.items() if isinstance(found, dict) else ()
    return {
        str(name): float(value)
        for name, value in pairs
        if isinstance(value, int | float) and math.isfinite(value)
    }


def _bits_in_words(own: float | None, baselines: dict[str, float]) -> str:
    if own is None:
        return ""
    sentences = []
    if compressors := {name: baselines[name] for name in ("gzip", "xz") if name in baselines}:
        best = min(compressors, key=lambda name: compressors[name])
        share = own / compressors[best] - 1
        sentences.append(
            f"The model needs {abs(share):.0%} {'less' if share < 0 else 'more'} than "
            f"{_BASELINES[best][0]}."
        )
    if source := baselines.get("source"):
        sentences.append(
            f"Of its {own:.3f} bits, {source:.3f} are the source's own; {own - source:.3f} are "
            f"left to learn."
        )
    return " ".join(sentences)
