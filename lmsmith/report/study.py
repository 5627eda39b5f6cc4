"""The report of a study: one HTML file with the question, verdicts in words, curves with bands over
seeds, final losses with intervals, divergences, samples, settings, and how to repeat it.

The file is self-contained (see `page.py`). `study_picture.py` draws its curves as PNG.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lmsmith import __version__, atomic
from lmsmith.report.charts import N_COLOURS, Line, legend, line_chart
from lmsmith.report.page import duration, page, short, table, text
from lmsmith.report.reading import Run
from lmsmith.report.study_curves import AXES, ArmCurves, curves_of
from lmsmith.report.study_picture import write_picture
from lmsmith.study.announce import power_sentence
from lmsmith.study.run import Studied
from lmsmith.study.show import Row, rows
from lmsmith.study.verdicts import mean_interval

WIDTH, HALF = 150, 70  # of a drawn interval, in units of its picture


def write_study_report(studied: Studied) -> Path:
    """Writes report.html, and report.png if matplotlib is installed, into the study's folder.

    Returns the path of report.html. Raises StorageError.
    """
    arms = curves_of(studied)
    best = rows(studied.study, studied.results)
    colours = {arm.name: i for i, arm in enumerate(studied.study.arms)}
    title = studied.study.question or studied.place.out.name
    body = "\n".join(
        [
            f'<header><div class="brand">lmsmith study</div><h1>{text(title)}</h1>'
            f"<p>{text(_in_a_sentence(studied))}</p></header>",
            _words(studied),
            _finals(studied, best, colours),
            _differences(studied),
            _charts(arms),
            _ladder(studied),
            _failures(best),
            _samples(arms),
            _settings(arms),
            _repeat(studied),
            f"<footer>Written by lmsmith {__version__} from {text(studied.place.out)}.</footer>",
        ]
    )
    out = studied.place.out / "report.html"
    atomic.write(out, page(f"{title} — lmsmith", body))
    write_picture(arms, title, studied.place.out / "report.png")
    return out


def _in_a_sentence(studied: Studied) -> str:
    study = studied.study
    seeds = len({result.seed for result in studied.results})
    kind = study.budget.replace("_", " ").replace("flops", "training FLOPs")
    sentence = f"{len(study.arms)} arms, {seeds} seeds each, {short(study.amount)} {kind} per run"
    if study.sources:
        sentence += f", on {', '.join(Path(source).name for source in study.sources[:3])}"
    return sentence + "."


def _words(studied: Studied) -> str:
    """Verdicts in words, and how they were made."""
    study, found = studied.study, []
    for verdict in studied.verdicts:
        mark = "<b>✓</b> " if verdict.shown else ""
        found.append(f"<li>{mark}{text(verdict)}</li>")
    if studied.prediction is not None:
        found.append(f"<li>{text(studied.prediction)}</li>")
    if not found:
        found.append("<li>There is no verdict: no two arms have two seeds in common.</li>")
    n = len(studied.verdicts)
    notes = []
    if n:
        notes.append(
            "Arms are compared in pairs of runs with the same seed. Brackets hold the "
            f"{100 * studied.level:.4g}% interval of the difference by Student's t; lower is "
            "better."
            + (f" p-values are corrected for {n} comparisons (Holm)." if n > 1 else "")
            + " No difference shown does not mean that there is none."
        )
        notes.append(f"Planned: {power_sentence(study)}.")
    if studied.early:
        notes.append("Every difference was shown, so the study ended before its last seed.")
    about = "".join(f'<p class="about">{text(note)}</p>' for note in notes)
    return f'<h2>Verdicts</h2><div class="notice"><ul>{"".join(found)}</ul></div>{about}'


def _finals(studied: Studied, best: Sequence[Row], colours: dict[str, int]) -> str:
    """A row for each arm, best first: mean, interval, runs."""
    known = {row.name: mean_interval(row.values) for row in best if row.values}
    ends = [end for interval in known.values() for end in interval] or [0.0, 1.0]
    low, high = min(ends), max(ends)
    cells = []
    for row in best:
        swatch = (
            '<span style="display:flex;align-items:center"><span class="swatch" '
            f'style="flex:none;background:var(--c{colours[row.name] % N_COLOURS})"></span>'
            f"<span>{text(row.name)}</span></span>"
        )
        bad = ", ".join(f"{n} {word}" for word, n in row.others.items() if n)
        if row.name not in known:
            cells.append([swatch, "—", "", "—", str(len(row.results)), text(bad), "—", "—"])
            continue
        a, b = known[row.name]
        drawn = _interval(row.mean, a, b, low, high, f"var(--c{colours[row.name] % N_COLOURS})")
        seconds = sum(result.seconds for result in row.results) / len(row.results)
        n_params = max(result.n_params for result in row.results)
        cells.append(
            [
                swatch,
                f"<b>{row.mean:.4f}</b>",
                drawn,
                f"{a:.4f} to {b:.4f}" if len(row.values) > 1 else "—",
                str(len(row.results)),
                text(bad or "—"),
                short(n_params),
                duration(seconds),
            ]
        )
    metric = studied.study.metric.replace("val_", "").replace("_", " ").replace("best ", "best, ")
    head = ["arm", f"{metric}", "", "95% interval", "runs", "diverged", "parameters", "training"]
    return f"<h2>Final losses</h2>{table(head, cells)}" + (
        '<p class="about">Mean over seeds, with the interval of the mean by Student\'s t. These '
        "intervals include the effect of the seed, which pairs of runs share; differences are "
        "below.</p>"
    )


def _differences(studied: Studied) -> str:
    verdicts, level = studied.verdicts, f"{100 * studied.level:.4g}%"
    if not verdicts:
        return ""
    scale = max(max(abs(v.paired.low), abs(v.paired.high)) for v in verdicts) or 1.0
    cells = []
    for verdict in verdicts:
        d = verdict.paired
        colour = "var(--c0)" if verdict.shown else "var(--soft)"
        words = f"<b>{text(verdict.better)} is better</b>" if verdict.better else "none shown"
        low, high = d.bootstrap
        cells.append(
            [
                f"{text(verdict.a)} minus {text(verdict.b)}",
                words,
                f"{d.difference:+.4f}",
                _interval(d.difference, d.low, d.high, -scale, scale, colour, zero=True),
                f"{d.low:+.4f} to {d.high:+.4f}<br>{low:+.4f} to {high:+.4f}",
                "< 0.001" if verdict.p < 0.001 else f"{verdict.p:.3f}",
            ]
        )
    head = ["pair", "difference", "mean", "", f"{level} intervals<br>t; bootstrap", "p"]
    name = studied.study.metric.replace("val_", "").replace("_", " ")
    return f"<h2>Differences in {text(name)}</h2>{table(head, cells)}"


def _interval(
    at: float, low: float, high: float, left: float, right: float, colour: str, zero: bool = False
) -> str:
    """An interval as a line with a dot, between the ends `left` and `right` of the scale."""
    middle, scale = WIDTH / 2, 2 * HALF / ((right - left) or 1.0)
    a, b, c = (middle - HALF + scale * (value - left) for value in (low, at, high))
    axis = (
        f'<path d="M{middle} 0V18" style="stroke:var(--soft);stroke-dasharray:2 2"/>'
        if zero
        else ""
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} 18" width="{WIDTH}" height="18" role="img" '
        f'aria-label="{low:.4f} to {high:.4f}">{axis}'
        f'<path d="M{a:.1f} 9H{max(c, a + 0.5):.1f}" style="stroke:{colour};stroke-width:3"/>'
        f'<circle cx="{b:.1f}" cy="9" r="4.5" style="fill:{colour}"/></svg>'
    )


def _charts(arms: Sequence[ArmCurves]) -> str:
    drawn = [arm for arm in arms if len(arm.mean)]
    if not drawn:
        return ""
    values = np.concatenate([arm.mean[np.isfinite(arm.mean)] for arm in drawn])
    late = np.concatenate([arm.mean[len(arm.mean) // 5 :] for arm in drawn])
    late = late[np.isfinite(late)]
    if not len(late):
        return ""
    low, high = float(values.min()), float(min(values.max(), 3 * np.median(late) - 2 * late.min()))
    room = 0.06 * (high - low) or 0.5
    charts = [
        line_chart(
            f"Validation bits per byte by {word}",
            [
                Line(x, arm.mean, arm.colour, dots=True, label=arm.name, band=(arm.low, arm.high))
                for arm in drawn
                if len(x := arm.axes[axis]) == len(arm.mean)
            ],
            x_label=axis,
            y_range=(max(0.0, low - room), high + room),
        )
        for axis, word in AXES.items()
    ]
    nothing = np.array([], dtype=np.float64)
    names = legend([Line(nothing, nothing, arm.colour, label=arm.name) for arm in drawn])
    return (
        '<h2>Learning curves</h2><p class="about">Mean over seeds; bands: one standard deviation '
        f'on each side.</p>{names}<div class="charts">{"".join(charts)}</div>'
    )


def _ladder(studied: Studied) -> str:
    """Loss by compute, with the prediction of a held-out run."""
    found = studied.prediction
    if found is None or not found.points:
        return ""
    unit = min(c for c, _ in found.points)
    points = sorted(found.points)
    x = np.array([c / unit for c, _ in points])
    lines = [Line(x, np.array([loss for _, loss in points]), 0, "soft", True, "runs of the fit")]
    ys = [loss for _, loss in points]
    if found.arm:
        at = np.full(3, found.compute / unit)
        ends = np.array([found.low, found.loss, found.high])
        lines.append(Line(at, ends, 1, dots=True, label="prediction and its 90% interval"))
        actual = np.array(found.actual)
        lines.append(Line(np.full(len(actual), at[0]), actual, 2, "soft", True, "held-out runs"))
        ys += [*ends.tolist(), *found.actual]
    room = 0.06 * (max(ys) - min(ys)) or 0.1
    chart = line_chart(
        "Loss by compute",
        lines,
        x_label=f"training compute, in units of {unit:.3g} FLOPs",
        y_range=(min(ys) - room, max(ys) + room),
        log2_x=True,
        named=True,
    )
    return f'<h2>Scaling</h2><div class="charts">{chart}</div>'


def _failures(best: Sequence[Row]) -> str:
    bad = [result for row in best for result in row.results if result.value is None]
    if not bad:
        return ""
    items = "".join(
        f"<li>{text(result.arm)}, seed {result.seed}: {text(result.outcome)}"
        f"{': ' + text(result.error) if result.error else ''}</li>"
        for result in bad
    )
    return f'<h2>Diverged and failed runs</h2><div class="notice"><ul>{items}</ul></div>'


def _samples(arms: Sequence[ArmCurves]) -> str:
    found = "".join(_sample(arm.name, run) for arm in arms for run in arm.runs[:1] if run.samples)
    return f"<h2>Samples</h2>{found}" if found else ""


def _sample(name: str, run: Run) -> str:
    heading, texts = run.samples[-1]
    return (
        f"<details><summary>{text(name)}<span>{text(run.name)}, {text(heading)}</span></summary>"
        f'<pre class="sample" dir="auto">{text(texts[0])}</pre></details>'
    )


def _settings(arms: Sequence[ArmCurves]) -> str:
    found = "".join(
        f"<details><summary>{text(arm.name)}<span>{text(run.name)}</span></summary>"
        f"<pre>{text(run.config.strip())}</pre></details>"
        for arm in arms
        for run in arm.runs[:1]
        if run.config
    )
    return f"<h2>Settings</h2>{found}" if found else ""


def _repeat(studied: Studied) -> str:
    out, study = studied.place.out, studied.study
    texts = " ".join(shlex.quote(source) for source in study.sources)
    recipe = studied.place.recipe(study.arms[0], study.seeds[0])
    steps = [
        (
            "Repeat the study in another folder:",
            f"lmsmith study {shlex.quote(str(out / 'study.toml'))} {texts} --out AGAIN",
        ),
        ("Repeat one run:", f"lmsmith train {shlex.quote(str(recipe))} --out RUN"),
        (
            "Measure the noise: the baseline against itself, with other seeds:",
            f"lmsmith study {shlex.quote(str(out / 'study.toml'))} {texts} --a-a",
        ),
    ]
    items = "".join(f"<li>{what}<br><code>{text(command)}</code></li>" for what, command in steps)
    return f'<h2>How to repeat it</h2><ul class="next card">{items}</ul>'
