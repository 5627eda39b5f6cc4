"""The figures of a report: learning curves, and bits per byte against baselines.

A single run is drawn in two colours, for training and validation. Several runs have a colour each,
with a thick line for validation and a thin one for training. The training loss is smoothed by a
Gaussian with a standard deviation of a sixtieth of the run.

A loss chart shows the full curve, unless the steep fall in the first twentieth of the run would
take more than four fifths of the height. Then the start is cut off at the top, and the caption says
so.
"""

import math
from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from lmsmith.report.charts import N_COLOURS, Line, legend, line_chart, smooth, thin
from lmsmith.report.objective import Shown, shown_of
from lmsmith.report.page import text
from lmsmith.report.reading import Run, column
from lmsmith.train.ended import cut_short

AFTER_START = 1 / 5
"""Smallest share of a loss chart's height for the part after the first twentieth of the run."""

_SMALL = {
    "Gradient norm": "grad_norm",
    "Tokens per second": "tokens_per_second",
    "Groups without signal": "no_signal_share",
    "Tokens per answer": "answer_tokens",
    "KL from the start": "kl",
}
_MEANING = (
    "Bits needed to encode each byte of the text with the model's predictions; fewer are better."
)
_BASELINES = {
    "gzip": ("gzip -9", "compressor, window of 32 KiB"),
    "xz": ("xz -9e", "compressor, window of 64 MiB"),
    "source": ("entropy of the source", "lower bound: no model does better on average"),
}


def curves(runs: Sequence[Run], *, named: bool = False) -> str:
    """Charts of the loss by steps and by time, and small charts of learning rate, gradient norm and
    speed; "" for runs without metrics.

    `named`: label the lines with the run's name even if there is only one run.
    """
    if not any(run.train or run.evals for run in runs):
        return ""
    shared, shown = named or len(runs) > 1, shown_of(runs)
    by_step = [_main_lines(run, i, shared, shown, "step", 1) for i, run in enumerate(runs)]
    seconds, unit = _seconds_unit(runs)
    by_time = [_main_lines(run, i, shared, shown, "seconds", seconds) for i, run in enumerate(runs)]
    lines = [*chain(*by_step)]
    y_range = _loss_range(lines) if shown.falls else _complete_range(lines)
    title = f"{shown.title}{_cut_off(lines, y_range[1])}"
    charts = [
        line_chart(title, lines, x_label="steps", y_range=y_range),
        line_chart(
            f"{'Loss' if shown.falls else shown.title} by training time",
            [*chain(*by_time)],
            x_label=f"{unit} of training",
            y_range=y_range,
        ),
    ]
    small = [
        _learning_rates(runs),
        *(_small_chart(runs, title, name) for title, name in _SMALL.items()),
        "" if shown.falls else _small_chart(runs, "Policy loss", "loss"),
    ]
    small += [*preference_charts(runs), *_task_charts(runs)]
    if not shared:
        names, about = legend(by_step[0]), ""
    else:
        nothing = np.array([], dtype=np.float64)
        names = legend([Line(nothing, nothing, i, label=run.name) for i, run in enumerate(runs)])
        kind = "loss" if shown.falls else "reward"
        about = (
            f'<p class="about">Thick lines: {shown.best}. Thin lines: smoothed training {kind}.</p>'
        )
    return (
        f'<h2>Learning curves</h2>{about}{names}<div class="charts">{"".join(charts)}</div>'
        f'<div class="charts small">{"".join(small)}</div>'
    )


def bits_per_byte(runs: Sequence[Run], bits: Sequence[float | None]) -> str:
    """Returns a bar chart, worst first: a uniform guess, the compressors, the runs, and the entropy
    of the source if it is known.
    """
    known = [found for run in runs if (found := _baselines(run))]
    one_text = all(found == known[0] for found in known)
    baselines = known[0] if known and one_text else {}
    rows = [(8.0, "uniform guess", "every byte equally likely", "--quiet", "")]
    for name, baseline in baselines.items():
        shown, about = _BASELINES.get(name, (name, ""))
        rows.append((baseline, shown, about, "--floor" if name == "source" else "--quiet", ""))
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
            "These runs have different validation texts, so there is no common baseline of gzip, "
            "xz or the source."
        )
    paragraph = f'<p class="about">{_MEANING} {words}</p>'
    return (
        f"<h2>Bits per byte of validation text</h2>{paragraph}"
        f'<div class="scroll"><table class="bits"><tbody>{body}</tbody></table></div>'
    )


def _main_lines(
    run: Run, colour: int, shared: bool, shown: Shown, axis: str, unit: float
) -> list[Line]:
    """Training loss or reward (for a single run), the same smoothed, and the held-out values."""
    x, loss = thin(column(run.train, axis)) / unit, thin(column(run.train, shown.training))
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
        column(run.evals, shown.held_out),
        colour,
        dots=True,
        label=f"{name}validation",
    )
    raw = Line(x, loss, 1, "faint")
    return [smoothed, validation] if shared else [raw, smoothed, validation]


def preference_charts(runs: Sequence[Run]) -> list[str]:
    """Small charts of preference training: rewards (for a single run), margins, accuracies. Dots
    are the held-out values.
    """
    runs = [run for run in runs if any("rewards/margins" in row for row in run.evals)]
    if not runs:
        return []
    charts = []
    if len(runs) == 1:
        sides = list(enumerate(("chosen", "rejected")))
        lines = [_small_line(runs[0], f"rewards/{side}", i, side) for i, side in sides]
        dots = [_dots(runs[0], f"rewards/{side}", i) for i, side in sides]
        charts.append(_chart("Rewards", [*lines, *dots], named=True))
    for title, name in (("margins", "rewards/margins"), ("accuracies", "rewards/accuracies")):
        lines = [_small_line(run, name, colour) for colour, run in enumerate(runs)]
        dots = [_dots(run, name, colour) for colour, run in enumerate(runs)]
        charts.append(_chart(f"Reward {title}, dots: held out", [*lines, *dots]))
    return charts


def _dots(run: Run, name: str, colour: int) -> Line:
    return Line(column(run.evals, "step"), column(run.evals, name), colour, dots=True)


def _loss_range(lines: Sequence[Line]) -> tuple[float, float]:
    """Returns the y-range of a loss chart: lowest to highest loss with a margin, cut off at the top
    so that at least `AFTER_START` of the height is left for the part after the start.
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


def _complete_range(lines: Sequence[Line]) -> tuple[float, float]:
    """From the lowest to the highest value that is not faint, with a margin."""
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines if line.kind != "faint"])
    low, high = float(values.min(initial=1.0)), float(values.max(initial=0.0))
    room = 0.06 * (high - low) or 0.5
    return low - room, high + room


def _learning_rates(runs: Sequence[Run]) -> str:
    """For one run, the learning rate of each parameter group; for several, of the main group."""
    if len(runs) == 1:
        (run,) = runs
        labels = _rate_labels(run)
        lines = [_small_line(run, name, i, label) for i, (name, label) in enumerate(labels.items())]
        return _chart("Learning rate", lines, named=len(lines) > 1)
    lines = [_small_line(run, next(iter(_rate_labels(run))), i) for i, run in enumerate(runs)]
    return _chart("Learning rate of the main parameter group", lines)


def _rate_labels(run: Run) -> dict[str, str]:
    """Fields of metrics.jsonl that hold a learning rate, with the name of their parameter group;
    the main group first.

    Groups with equal rates share a line. Runs of older versions only have `learning_rate`.
    """
    muon = run.settings.get("optim.name") == "muon"
    rest = "head, biases, gains" if muon else "all other weights"
    labels = {"learning_rate": rest, "embedding_learning_rate": "embedding tables"}
    if muon:
        labels = {"muon_learning_rate": "matrices (Muon)"} | labels
    logged = {
        name: label for name, label in labels.items() if any(name in row for row in run.train)
    }
    rate, embedding_rate = (
        column(run.train, name) for name in ("learning_rate", "embedding_learning_rate")
    )
    if "embedding_learning_rate" in logged and np.array_equal(rate, embedding_rate, equal_nan=True):
        del logged["embedding_learning_rate"]
        logged["learning_rate"] = f"embedding tables, {rest}" if muon else "all weights"
    return logged or {"learning_rate": rest}


def _cut_off(lines: Iterable[Line], top: float) -> str:
    """Returns a note for the caption if the curve starts above the chart; else ""."""
    highest = max(
        float(line.y[np.isfinite(line.y)].max(initial=top))
        for line in lines
        if line.kind != "faint"
    )
    return f" (the first steps, from {highest:.2f}, are cut off)" if highest > top else ""


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
    """Returns a small chart; "" if there is nothing to draw. `named`: with a legend."""
    values = np.concatenate([line.y[np.isfinite(line.y)] for line in lines])
    if not len(values):
        return ""
    # A single spike of the gradient norm must not flatten the rest of the curve.
    highest, most = float(values.max()), 3 * float(np.quantile(values, 0.98))
    high = max(0.0, min(highest, most) if most > 0 else highest)
    low = min(0.0, 1.08 * float(values.min()))
    y_range = (low, 1.08 * high or (0.0 if low < 0 else 1.0))
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
            f"The model needs {abs(share):.0%} {'fewer' if share < 0 else 'more'} bits than "
            f"{_BASELINES[best][0]}."
        )
    if source := baselines.get("source"):
        sentences.append(
            f"Of its {own:.3f} bits per byte, {source:.3f} are the entropy of the source; "
            f"{own - source:.3f} are left to learn."
        )
    return " ".join(sentences)
