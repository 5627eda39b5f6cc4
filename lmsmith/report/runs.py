"""Writes a report on one or more runs: an HTML file with metrics, learning curves, bits per byte
against baselines, samples, settings and suggestions.

The file is self-contained (see `page.py`). The report on one run shows all of it; the report on
several compares them. Files that are missing, because a run is still training or was killed, are
listed at the top (see `reading.py`).

The loss and bits per byte of a run are those of its best evaluation, whose weights are in
RUN/model.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lmsmith import __version__, atomic, verified
from lmsmith.config import RunConfig
from lmsmith.errors import ConfigError, UsageError
from lmsmith.report.charts import N_COLOURS
from lmsmith.report.figures import bits_per_byte, curves
from lmsmith.report.forecast import forecast_section
from lmsmith.report.ladder import ladder
from lmsmith.report.objective import LIKELIHOOD, shown_of
from lmsmith.report.page import BEGINNING, duration, figure, page, short, table, text
from lmsmith.report.reading import Run, column, is_number, prompt_of, read_runs
from lmsmith.train.ended import cut_short, too_few_steps_note

if TYPE_CHECKING:
    from lmsmith.inspect.inspection import Inspection

_ENDED = {
    "steps": "ended after its planned steps",
    "tokens": "ended after its planned tokens",
    "time": "ended at its time limit",
    "target": "ended early at its target loss",
    "signal": "stopped by a signal",
    "counted": "all training tokens were counted",
}


def write_report(runs: Sequence[Path], out: Path, inspection: Inspection | None = None) -> Path:
    """Writes the report on these run folders to the file `out`, and returns `out`.

    `inspection`: what the model of a single run has learned, shown after its other sections.

    Raises UsageError without runs, CheckpointError for a path that is not a run folder,
    StorageError if `out` cannot be written.
    """
    atomic.check_replaceable(out, BEGINNING)
    if not runs:
        raise UsageError("a report needs at least one run folder: `lmsmith report RUN`.")
    read = read_runs(runs)
    title, sections = _one(read[0]) if len(read) == 1 else _several(read)
    footer = (
        f"<footer>Written by lmsmith {__version__} from "
        f"{', '.join(text(run.folder) for run in read)}. {_verified()}</footer>"
    )
    if inspection is None:
        atomic.write(out, page(f"{title} — lmsmith", "\n".join([*sections, footer])))
        return out
    from lmsmith.report.inspection import STYLE, inspection_sections

    body = "\n".join([*sections, *inspection_sections(inspection), footer])
    atomic.write(out, page(f"{title} — lmsmith", body, style=STYLE, pictures=True))
    return out


def _one(run: Run) -> tuple[str, list[str]]:
    return run.name, [
        f'<header><div class="brand">lmsmith '
        f"run</div><h1>{text(run.name)}</h1><p>{_in_a_sentence(run)}</p></header>",
        _notice(run.missing),
        _early(run),
        _tiles(run),
        curves([run]),
        bits_per_byte([run], [_bits(run)]),
        ladder(run.folder),
        _samples(run),
        _facts(run),
        forecast_section(run.summary),
        _headed("Settings", _settings(run, "config.toml")),
        _next_steps(run),
    ]


def _several(runs: list[Run]) -> tuple[str, list[str]]:
    title = f"{len(runs)} runs"
    return title, [
        f'<header><div class="brand">lmsmith report</div><h1>{title}</h1></header>',
        _notice([f"{run.name}: {what}" for run in runs for what in run.missing]),
        _comparison(runs),
        curves(runs),
        bits_per_byte(runs, [_bits(run) for run in runs]),
        _differences(runs),
        _headed("Samples", "".join(_last_sample(run) for run in runs)),
        _headed("Settings", "".join(_settings(run, run.name) for run in runs)),
    ]


def _in_a_sentence(run: Run) -> str:
    of = run.settings
    sentence = _model_in_words(of)
    mixed = [source["path"] for source in of.get("data.mixture", ())]
    if sources := of.get("data.sources") or mixed:
        names = [Path(source).name for source in sources]
        sentence += f", trained on {', '.join(names[:3])}" + (
            f" and {len(names) - 3} more" if len(names) > 3 else ""
        )
    if ended := run.summary.get("finished"):
        sentence += f"; {_ENDED.get(str(ended), ended)}"
    return text(sentence + ".")


def _model_in_words(settings: Mapping[str, Any]) -> str:
    """Kind and size of the model, or "A language model" if its settings cannot be read."""
    named = {name: value for name, value in settings.items() if name.startswith("model.")}
    try:
        model = RunConfig().changed(named, where="config.toml").model
    except ConfigError:
        return "A language model"
    return f"{model.description[:1].upper()}{model.description[1:]}: {model.describe()}"


def _init_from(run: Run) -> str:
    """Returns the run whose weights this one started from; empty if there is none."""
    source = str(run.settings.get("train.init_from", "none"))
    return "" if source == "none" else source


def _headed(title: str, section: str) -> str:
    return f"<h2>{title}</h2>{section}" if section else ""


def _early(run: Run) -> str:
    """Returns a notice that the run ended early or was too short to learn anything; "" if neither
    holds.
    """
    sentences = []
    if early := cut_short(run.summary):
        sentences.append(f"This run was {early}; it is not comparable with others.")
    if nothing := too_few_steps_note(run.summary, _init_from(run)):
        sentences.append(nothing[0].upper() + nothing[1:] + ".")
    items = "".join(f"<p>{text(sentence)}</p>" for sentence in sentences)
    return f'<div class="notice">{items}</div>' if items else ""


def _notice(missing: list[str]) -> str:
    items = "".join(f"<li>{text(what)}</li>" for what in missing)
    return (
        f'<div class="notice"><b>This report is incomplete.</b><ul>{items}</ul></div>'
        if missing
        else ""
    )


# Metrics of a run.


def _val_loss(run: Run) -> tuple[float | None, float | None]:
    """Returns the lowest validation loss, and its step."""
    if is_number(run.summary.get("best_val_loss")):
        return run.number("best_val_loss"), run.number("best_step")
    losses = column(run.evals, "val_loss")
    if np.isfinite(losses).any():
        at = int(np.nanargmin(losses))
        return float(losses[at]), float(run.evals[at]["step"])
    return run.number("val_loss"), None


def _bits(run: Run) -> float | None:
    """Bits per byte at the evaluation with the lowest validation loss."""
    if is_number(run.summary.get("best_val_bits_per_byte")):
        return run.number("best_val_bits_per_byte")
    _, step = _val_loss(run)
    at_best = column([row for row in run.evals if row["step"] == step], "val_bits_per_byte")
    return float(at_best[0]) if np.isfinite(at_best).any() else run.number("val_bits_per_byte")


def _verified() -> str:
    """What `lmsmith verify` found on this machine, with this version."""
    found = verified.latest(__version__)
    if found is None:
        return "This version is not verified on this machine: `lmsmith verify` does it."
    verdict = "all equivalences hold" if found["agree"] else "not all equivalences hold"
    return f"Verified on this machine on {text(found['date'])}: {verdict} ({text(found['hash'])})."


def _machine(run: Run) -> tuple[str, str]:
    """Device and dtype."""
    device, dtype = (
        run.summary.get(name) or run.settings.get(f"train.{name}") or "—"
        for name in ("device", "dtype")
    )
    return str(device), str(dtype)


def _tiles(run: Run) -> str:
    loss, step = _val_loss(run)
    shown = shown_of([run])
    perplexity = math.exp(min(loss, 700)) if loss is not None else None
    steps, seen, n_params = (
        run.number("steps", "step"),
        run.number("tokens_read") or run.number("tokens_seen", "tokens"),
        run.number("n_params"),
    )
    wall, mfu, threads = run.number("wall_seconds"), run.number("mfu"), run.number("threads")
    device, dtype = _machine(run)
    at = f"step {step:,.0f}" if step is not None else ""
    lead = (shown.best, figure(shown.value(loss), ".4f"), ", ".join(filter(None, (shown.unit, at))))
    of_likelihood = [
        ("bits per byte", figure(_bits(run), ".3f"), "a uniform guess needs 8"),
        (
            "perplexity",
            figure(perplexity, ",.3f" if perplexity and perplexity < 100 else ",.0f"),
            "per token",
        ),
    ]
    tiles = [
        lead,
        *(of_likelihood if shown is LIKELIHOOD else []),
        ("parameters", _count(n_params), figure(n_params, ",.0f") if n_params else ""),
        (
            "tokens per second",
            figure(run.number("tokens_per_second"), ",.0f"),
            f"{mfu:.0%} of peak FLOPS" if mfu else "",
        ),
        (
            "training time",
            duration(run.number("train_seconds", "seconds")),
            f"{duration(wall)} in total" if wall else "",
        ),
        ("steps", figure(steps, ",.0f"), f"{short(seen)} tokens" if seen else ""),
        (
            "device",
            text(device),
            text(dtype) + (f", {threads:.0f} thread{'s' * (threads != 1)}" if threads else ""),
        ),
    ]
    items = ""
    for name, value, note in tiles:
        opening = '<div class="lead">' if name in (shown.best, "bits per byte") else "<div>"
        items += (
            f'{opening}<dt>{name}</dt><dd class="figure">{value}</dd><dd '
            f'class="note">{note}</dd></div>'
        )
    return f'<dl class="tiles">{items}</dl>'


def _count(value: float | None) -> str:
    return "—" if value is None else short(value)


def _facts(run: Run) -> str:
    learned, n_train = run.number("tokens_seen", "tokens"), run.number("n_train_tokens")
    seen = run.number("tokens_read") or learned
    n_val, n_bytes = run.number("n_val_tokens"), run.number("n_val_bytes")
    memory, target = run.number("peak_memory_bytes"), run.number("seconds_to_target")
    shown = shown_of([run])
    facts = [
        (
            "tokens seen",
            seen,
            "{:,.0f}" + (f" ({seen / n_train:.3g} epochs)" if seen and n_train else ""),
        ),
        ("of them learned", learned if learned != seen else None, "{:,.0f}"),
        ("training tokens", n_train, "{:,.0f}"),
        ("validation tokens", n_val, "{:,.0f}" + (f" ({n_bytes:,.0f} bytes)" if n_bytes else "")),
        (f"final {shown.best}", shown.value(run.number("val_loss")), "{:.4f}"),
        ("target loss reached after", target and duration(target), "{} of training"),
        ("peak memory", memory and memory / 2**20, "{:,.0f} MiB"),
        ("tokenizer", run.summary.get("tokenizer") or run.settings.get("tokenizer"), "{}"),
        ("vocabulary", run.number("vocab_size"), "{:,.0f} tokens"),
        ("seed", run.settings.get("train.seed"), "{}"),
        ("parts of the run (steps)", _legs(run), "{}"),
    ]
    items = "".join(
        f"<div><dt>{name}</dt><dd>{text(form.format(value))}</dd></div>"
        for name, value, form in facts
        if value is not None
    )
    events = "".join(f"<li>{text(event)}</li>" for event in run.events)
    details = (
        f"<details><summary>Events<span>{len(run.events)}</span></summary><ul>{events}</ul></details>"
        if events
        else ""
    )
    return f'<h2>In numbers</h2><dl class="facts card">{items}</dl>{details}'


def _legs(run: Run) -> str | None:
    """Returns the steps of each part of an extended run, `0 to 30, 30 to 60`; None if there is one
    part.
    """
    legs = run.summary.get("legs")
    if not isinstance(legs, list) or len(legs) < 2:
        return None
    return ", ".join(
        f"{leg.get('from_step')} to {leg.get('to_step')}" for leg in legs if isinstance(leg, dict)
    )


def _comparison(runs: list[Run]) -> str:
    losses, names = [_val_loss(run)[0] for run in runs], shown_of(runs)
    early = [cut_short(run.summary) for run in runs]
    comparable = [loss for loss, why in zip(losses, early, strict=True) if not why]
    best = min(
        (loss for loss in comparable if loss is not None and math.isfinite(loss)), default=None
    )
    rows = []
    for i, (run, loss) in enumerate(zip(runs, losses, strict=True)):
        shown = figure(names.value(loss), ".4f")
        rows.append(
            [
                f'<span class="swatch" '
                f'style="background:var(--c{i % N_COLOURS})"></span>{text(run.name)}'
                + ('<div class="about">not comparable</div>' if early[i] else ""),
                f"<b>{shown}</b>" if loss is not None and loss == best and not early[i] else shown,
                figure(_bits(run), ".3f"),
                _count(run.number("n_params")),
                figure(run.number("steps", "step"), ",.0f"),
                figure(run.number("tokens_per_second"), ",.0f"),
                duration(run.number("train_seconds", "seconds")),
                text(", ".join(_machine(run))),
            ]
        )
    html = table(
        [
            "run",
            names.best,
            "bits per byte",
            "parameters",
            "steps",
            "tokens/s",
            "training time",
            "device",
        ],
        rows,
    )
    for run, why in zip(runs, early, strict=True):
        if why:
            nothing = too_few_steps_note(run.summary, _init_from(run))
            more = f"; {nothing}" if nothing else ""
            html += (
                f'<p class="about">{text(run.name)} is not comparable with the others: '
                f"{text(why + more)}.</p>"
            )
    texts = {
        (run.summary.get("tokenizer"), run.number("n_val_bytes")) for run in runs if run.summary
    }
    if len(texts) > 1:
        html += (
            '<p class="about">These runs differ in tokenizer or validation text. Losses per token '
            "are comparable only with the same tokenizer, bits per byte only on the same text.</p>"
        )
    return html


def _differences(runs: list[Run]) -> str:
    known = [run for run in runs if run.settings]
    names = dict.fromkeys(name for run in known for name in run.settings)
    rows = [
        [f"<code>{text(name)}</code>", *(text(run.settings.get(name, "—")) for run in known)]
        for name in names
        if len({str(run.settings.get(name)) for run in known}) > 1
    ]
    return _headed(
        "Settings that differ",
        table(["", *(text(run.name) for run in known)], rows) if rows else "",
    )


# Samples, settings, suggestions.


def _samples(run: Run) -> str:
    """Returns all samples in the order of training, the last ones unfolded."""
    sections, shown = [], shown_of([run])
    for i, (heading, texts) in enumerate(run.samples):
        step = heading.removeprefix("step ")
        losses = [row.get(shown.held_out) for row in run.evals if str(row["step"]) == step]
        loss = (
            f"<span>{shown.best} {losses[0]:.3f}</span>" if losses and is_number(losses[0]) else ""
        )
        opened = " open" if i == len(run.samples) - 1 else ""
        sections.append(
            f"<details{opened}><summary>{text(heading)}{loss}</summary>{_blocks(texts)}</details>"
        )
    return _headed("Samples", "".join(sections))


def _last_sample(run: Run) -> str:
    if not run.samples:
        return ""
    heading, texts = run.samples[-1]
    summary = f"<summary>{text(run.name)}<span>{text(heading)}</span></summary>"
    return f"<details>{summary}{_blocks(texts[:1])}</details>"


def _blocks(texts: Sequence[str]) -> str:
    return "".join(f'<pre class="sample" dir="auto">{text(sample)}</pre>' for sample in texts)


def _settings(run: Run, title: str) -> str:
    if not run.config:
        return ""
    return (
        f"<details><summary>{text(title)}</summary><pre>{text(run.config.strip())}</pre></details>"
    )


def _next_steps(run: Run) -> str:
    """Commands to try next, some of them suggested by the learning curves."""
    folder, again = shlex.quote(str(run.folder)), shlex.quote(str(run.folder / "config.toml"))
    prompt = shlex.quote(prompt_of(run.folder))
    steps = [*_from_the_curves(run, folder, f"lmsmith train {again}")]
    if run.settings.get("data.documents") == "conversations":
        steps.append(("Talk to it:", f"lmsmith chat {folder}"))
    else:
        generate = f"lmsmith generate {folder} {prompt} --n 3 --temperature 0.7"
        steps.append(("Generate text:", generate))
    steps.append(("Evaluate it on another text:", f"lmsmith eval {folder} --text FILE"))
    steps.append(("See what the model has learned:", f"lmsmith inspect {folder}"))
    steps.append(("Compare it with another run:", f"lmsmith report {folder} RUN"))
    items = "".join(f"<li>{what}<br><code>{text(command)}</code></li>" for what, command in steps)
    return f'<h2>What to try next</h2><ul class="next card">{items}</ul>'


def _from_the_curves(run: Run, folder: str, again: str) -> Iterator[tuple[str, str]]:
    if run.summary.get("finished") in (None, "signal"):
        yield (
            "If the run is no longer training, resume it from its last checkpoint:",
            f"lmsmith resume {folder}",
        )
    training, losses = column(run.train, "loss"), column(run.evals, "val_loss")
    best, last, n_steps = _val_loss(run)[0], run.number("val_loss"), run.number("steps", "step")
    muon = run.settings.get("optim.name") == "muon"
    rate = run.settings.get("optim.muon_learning_rate" if muon else "optim.learning_rate")
    if len(training) and not np.isfinite(training[-1]):
        lower = f" --learning-rate {rate / 3:.2g}" if isinstance(rate, int | float) else ""
        yield (
            "Training diverged: the loss is not a finite number. Try a lower learning rate:",
            again + lower,
        )
    elif shown_of([run]) is not LIKELIHOOD or run.settings.get("data.documents") == "conversations":
        return  # more text or steps of pre-training are not what helps
    elif best is not None and last is not None and last > 1.01 * best:
        yield (
            "Overfitting: the validation loss rose after its minimum, because the model began to "
            "memorize the training text. More text helps most; otherwise try dropout, a smaller "
            "model or fewer steps:",
            f"{again} --model.dropout 0.2",
        )
    elif len(losses) > 2 and losses[-1] == np.nanmin(losses) and n_steps and run.summary:
        yield (
            "The validation loss was still falling at the end, so train for longer:",
            f"{again} --steps {2 * n_steps:.0f}",
        )
