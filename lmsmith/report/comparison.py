"""Compares runs, compressors and a uniform guess on one text, as a table and an HTML page. Can
train the runs first.
"""

from __future__ import annotations

import errno
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith import atomic
from lmsmith.config.presets import PRESETS
from lmsmith.errors import ConfigError, StorageError, UsageError
from lmsmith.evaluate.comparison import UNIFORM, Entry, Text, baselines, score_entry
from lmsmith.evaluate.compressors import COMPRESSORS
from lmsmith.evaluate.differences import Accuracy, Difference
from lmsmith.report.charts import N_COLOURS
from lmsmith.report.differences import difference_section
from lmsmith.report.figures import curves
from lmsmith.report.page import BEGINNING, duration, figure, page, short, table, text
from lmsmith.report.reading import read_runs
from lmsmith.run_folder import load_for_use, model_config, new_run_path, summary_of, tokenizer_of
from lmsmith.text.files import plural
from lmsmith.train.ended import cut_short, init_from, too_few_steps_note
from lmsmith.train.log import say
from lmsmith.train.start import train

HEAD = ("model", "type", "bits per byte", "parameters", "training time", "MB/s")
ALIASES = {"gpt": "modern"}
WASTED = "probability assigned to them counts against the model"


def train_all(
    sources: Sequence[str],
    changes: Mapping[str, Any],
    models: Sequence[str],
    *,
    minutes: float,
    out: Path | None,
    console: Console,
) -> list[Path]:
    """Trains each of `models` (presets, or gpt for modern) on the same text for the same time;
    returns their run folders, which are in the new folder `out`.

    `changes`: settings by dotted name, for all models. Raises UsageError for unknown models,
    ConfigError for minutes of 0 or less, KeyboardInterrupt if a signal stops a run.
    """
    unknown = [name for name in models if name not in PRESETS and name not in ALIASES]
    if unknown or not models:
        raise UsageError(
            f"--models {','.join(models)}: there is no preset "
            f"{', '.join(map(repr, unknown)) or 'in it'}. There are: "
            f"{', '.join([*ALIASES, *PRESETS])}."
        )
    if minutes <= 0:
        raise ConfigError(
            f"--minutes {minutes:g}: expected the minutes to train each model for, above 0."
        )
    place = new_run_path(out, "comparison")
    runs = []
    for name in dict.fromkeys(models):
        say(console, f"--- {name}")
        place.mkdir(parents=True, exist_ok=True)
        asked = dict(changes) | {"preset": ALIASES.get(name, name), "train.minutes": minutes}
        run, summary = train(sources, asked, out=place / name, console=console)
        if summary["finished"] == "signal":
            raise KeyboardInterrupt
        runs.append(run)
    return runs


def compare_runs(runs: Sequence[Path], on: Text) -> list[Entry]:
    """Scores the runs and the baselines on a text; returns the rows of the table, best first.

    Holds one model in memory at a time. A run without a model or tokenizer is an error before any
    run is scored.
    """
    for run in runs:
        tokenizer_of(run)
    entries = baselines(on)
    for run, name in zip(runs, run_names(runs), strict=True):
        model, tokenizer, content = load_for_use(run)
        boundaries = content.get("data", {}).get("documents", "stream")
        config, summary = model_config(content["model"]), summary_of(run)
        options = {"boundaries": boundaries, "begin": content.get("begin"), "summary": summary}
        reasons = cut_short(summary), too_few_steps_note(summary, init_from(run))
        early = "; ".join(filter(None, reasons))
        entry = score_entry(name, model, tokenizer, config, on, **options)
        entries.append(replace(entry, not_comparable=early))
        del model
    return sorted(entries, key=lambda entry: entry.bits_per_byte)


def check_output_path(out: Path, beginning: str | bytes = BEGINNING) -> None:
    """Raises UsageError or StorageError if the page cannot be written to `out`. Called first, so
    that no work is lost. `beginning`: of files that may be replaced.
    """
    if out.is_dir():
        raise UsageError(
            f"--out {out} is a folder: name the HTML file, such as {out / 'comparison.html'}."
        )
    if not out.parent.is_dir():
        raise StorageError(atomic.explain(FileNotFoundError(errno.ENOENT, ""), out))
    if not os.access(out.parent, os.W_OK):
        raise StorageError(atomic.explain(PermissionError(errno.EACCES, ""), out))
    atomic.check_replaceable(out, beginning)


def comparison_rows(entries: Iterable[Entry]) -> list[list[str]]:
    """Returns the table's cells, for a page or a terminal, under `HEAD`."""
    return [
        [
            entry.name,
            entry.what,
            f"{entry.bits_per_byte:.3f}" if math.isfinite(entry.bits_per_byte) else "infinite",
            "—" if entry.n_params is None else short(entry.n_params),
            duration(entry.train_seconds),
            figure(entry.bytes_per_second and entry.bytes_per_second / 1e6, ".3g"),
        ]
        for entry in entries
    ]


def comparison_notes(entries: Iterable[Entry]) -> list[str]:
    """Remarks on entries: not comparable, infinite, or with unknown text."""
    notes = []
    for entry in entries:
        if entry.not_comparable:
            notes.append(f"{entry.name} is not comparable with the others: {entry.not_comparable}")
        if entry.n_impossible and entry.n_tokens:
            share = entry.n_impossible / entry.n_tokens
            notes.append(
                f"{entry.name} gives {share:.2%} of the tokens probability zero, so its bits per "
                "byte are infinite"
            )
        if entry.n_unknown:
            bits = f"8 bits per byte and their positions, {entry.unknown_bits:,.0f} bits in total"
            notes.append(
                f"{plural(entry.n_unknown, 'unit')} of the text unknown to the tokenizer of "
                f"{entry.name} cost {bits}"
            )
        if entry.n_ids_without_token:
            notes.append(
                f"{plural(entry.n_ids_without_token, 'id')} of {entry.name} without a token: "
                f"{WASTED}"
            )
    return notes


def measure(on: Text) -> str:
    """Returns the length of the text in bytes, and how many of them are not UTF-8."""
    odd = (
        f"; {on.n_invalid:,} of them are not valid UTF-8 and count unchanged"
        if on.n_invalid
        else ""
    )
    return f"{len(on.data):,} bytes, the same for all models{odd}"


def equal_time(runs: Sequence[Path], sources: Sequence[str], minutes: float) -> str:
    """Returns a sentence on how `train_all` trained the models."""
    counted = [run.name for run in runs if summary_of(run).get("finished") == "counted"]
    once = f"; {', '.join(counted)} read the text once" if counted else ""
    time = f"{minutes:g} minute{'' if minutes == 1 else 's'}"
    return f"each model trained on {', '.join(sources)} for {time} on this machine{once}"


def comparison_page(
    entries: Sequence[Entry],
    on: Text,
    trained: Sequence[Path] = (),
    about: str = "",
    differences: Sequence[Difference] = (),
    accuracies: Sequence[Accuracy] = (),
    item_notes: Sequence[str] = (),
) -> str:
    """Returns the HTML page: a bar chart, the tables, and learning curves.

    `trained`: runs on the same text with the same tokenizer, to draw learning curves of. `about`: a
    sentence on how they were trained.
    """
    with_curves = [run for run in read_runs(trained) if run.train]
    names = [run.name for run in with_curves]  # a model has the same colour in all charts
    names += [
        entry.name for entry in entries if entry.n_params is not None and entry.name not in names
    ]
    finite = [entry for entry in entries if math.isfinite(entry.bits_per_byte)]
    full = max(entry.bits_per_byte for entry in finite)
    bars = ""
    for entry in finite:
        colour = (
            f"--c{names.index(entry.name) % N_COLOURS}" if entry.n_params is not None else "--quiet"
        )
        bars += (
            f"<tr{' class=own' if entry.n_params is not None else ''}><th "
            f'scope="row">{text(entry.name)}</th>'
            f'<td class="bars"><span class="bar" '
            f'style="width:{100 * entry.bits_per_byte / full:.2f}%;'
            f'background:var({colour})"></span></td><td>{entry.bits_per_byte:.3f}</td>'
            f'<td class="about">{text(entry.what)}'
            f"{'; not comparable' if entry.not_comparable else ''}</td></tr>"
        )
    cells = [[text(cell) for cell in row] for row in comparison_rows(entries)]
    notes = "".join(f'<p class="about">{text(note)}.</p>' for note in comparison_notes(entries))
    body = (
        f'<header><div class="brand">lmsmith comparison</div><h1>{text(on.name)}</h1>'
        f"<p>{measure(on)}. Fewer bits per byte are better.</p>"
        + (f"<p>{text(about[0].upper() + about[1:])}.</p>" if about else "")
        + "</header>"
        f'<h2>Bits per byte</h2><div class="scroll"><table '
        f'class="bits"><tbody>{bars}</tbody></table></div>'
        f"<h2>In numbers</h2>{table(HEAD, cells)}{notes}"
        f"{difference_section(differences, accuracies, item_notes)}"
        f"{curves(with_curves, named=True)}"
    )
    return page(f"{on.name} — lmsmith comparison", body)


def items_page(
    accuracies: Sequence[Accuracy], differences: Sequence[Difference], notes: Sequence[str]
) -> str:
    """The HTML page of a comparison on task items alone."""
    tasks = ", ".join(dict.fromkeys(row.task for row in accuracies))
    header = (
        '<header><div class="brand">lmsmith comparison</div>'
        f"<h1>{text(tasks)}</h1><p>The same items for all models.</p></header>"
    )
    body = header + difference_section(differences, accuracies, notes)
    return page(f"{tasks} — lmsmith comparison", body)


def run_names(runs: Sequence[Path]) -> list[str]:
    """Distinct names: the folder's name; for equal names the path; for equal paths, numbered."""
    short_names = [Path(os.path.abspath(run)).name for run in runs]
    names, seen = [], Counter((UNIFORM, *COMPRESSORS))
    for run, name in zip(runs, short_names, strict=True):
        longer = name if short_names.count(name) == 1 else str(run)
        seen[longer] += 1
        names.append(longer if seen[longer] == 1 else f"{longer} ({seen[longer]})")
    return names
