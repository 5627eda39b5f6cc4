"""Reads run folders in any state: finished, still training or killed, with missing files or an
incomplete last line.

A report is most useful when something went wrong, so reading succeeds for anything that a run may
leave behind. `Run.missing` lists the missing files and values, in sentences for the user. Only a
path that is not a run folder is an error.

`metrics.jsonl` of a resumed run may hold a step twice, from before and after it was resumed; the
later line counts.
"""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith import foreign_json
from lmsmith.config import read_toml
from lmsmith.errors import CheckpointError, ConfigError

Numbers = npt.NDArray[np.float64]


@dataclass
class Run:
    """The contents of a run folder. `train`, `evals` and `tasks` hold the lines of metrics.jsonl of
    these kinds, sorted by step.
    """

    folder: Path
    name: str
    config: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    train: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    samples: list[tuple[str, list[str]]] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def number(self, *names: str) -> float | None:
        """Returns the value of the first of these keys that has a number, in summary.json or else
        in the latest lines of metrics.jsonl.
        """
        latest = sorted([*self.train[-1:], *self.evals[-1:]], key=lambda row: -row["step"])
        for row in (self.summary, *latest):
            for name in names:
                if is_number(row.get(name)):
                    return float(row[name])
        return None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads runs and gives them distinct names. Raises CheckpointError for a path that is not a
    run folder.
    """
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.folder)
    return runs


def read_run(folder: Path) -> Run:
    """Reads the run in `folder`. Raises CheckpointError for a path that is not a run folder."""
    is_run = any((folder / name).exists() for name in ("metrics.jsonl", "config.toml"))
    if not is_run:
        from lmsmith.run_folder import (
            refuse_other_formats,
        )  # imports torch, which a report does not need

        refuse_other_formats(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(
            f"{folder} {what}: expected a run folder, as `lmsmith train ... --out {folder}` "
            "writes it."
        )
    if not is_run:
        raise CheckpointError(
            f"{folder} is not a run folder: it has neither metrics.jsonl nor config.toml. Give "
            "the folder that `lmsmith train` wrote."
        )
    run = Run(folder, folder.resolve().name)
    _read_summary(run)
    _read_metrics(run)
    _read_config(run)
    run.samples = split_samples(_text(run, "samples.md", "no samples"))
    return run


def prompt_of(folder: Path) -> str:
    """Returns a few words to use as a prompt: the start of a line of the run's validation text."""
    try:
        with (folder / "tokens" / "validation.txt").open(encoding="utf-8", errors="ignore") as file:
            begin = file.read(5000)
    except OSError:  # a run on token shards may have no validation.txt
        begin = ""
    lines = begin.splitlines()  # the first line may begin in the middle of a word
    for line in [*lines[1:], *lines[:1]]:
        if match := re.match(r"\w{1,12}( \w{1,12}){0,3}", line.strip()):
            return match.group()
    return "Once upon a time"


def column(rows: Iterable[dict[str, Any]], name: str) -> Numbers:
    """One field of all rows; NaN for rows without it."""
    return np.array(
        [row[name] if is_number(row.get(name)) else math.nan for row in rows], dtype=np.float64
    )


def is_number(value: Any) -> bool:
    """Returns whether `value` is a finite number. Excludes booleans, and the NaN that Python's JSON
    reader accepts.
    """
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def split_samples(markdown: str) -> list[tuple[str, list[str]]]:
    """Splits samples.md into `## ` headings, each with the fenced blocks below it. The last block
    may lack its closing fence.
    """
    sections: list[tuple[str, list[str]]] = []
    fence, block = "", list[str]()
    for line in markdown.split("\n"):  # not splitlines: samples may hold any character
        if fence:
            if re.fullmatch(r"`{3,}\s*", line) and len(line.strip()) >= len(fence):
                sections[-1][1].append("\n".join(block))
                fence = ""
            else:
                block.append(line)
        elif line.startswith("## "):
            sections.append((line[3:].strip(), []))
        elif (opening := re.match(r"`{3,}", line)) and sections:
            fence, block = opening.group(), []
    if fence:
        sections[-1][1].append("\n".join(block))
    return [section for section in sections if section[1]]


def _read_config(run: Run) -> None:
    run.config = _text(run, "config.toml", "the settings are unknown")
    if run.config:
        try:
            run.settings = read_toml(run.folder / "config.toml")
        except ConfigError as error:
            run.missing.append(str(error))


def _read_metrics(run: Run) -> None:
    if run.summary.get("finished") == "counted":  # n-gram models have no steps, so no curves
        return
    lines = _text(run, "metrics.jsonl", "no curves").splitlines()
    rows, n_broken = [], 0
    for i, line in enumerate(lines):
        try:
            row = foreign_json.parse(line)
        except ValueError:
            if i == len(lines) - 1:
                run.missing.append("The last line of metrics.jsonl is incomplete and is ignored.")
            else:
                n_broken += bool(line.strip())
            continue
        if isinstance(row, dict):
            rows.append(row)
    if n_broken:
        run.missing.append(f"{n_broken} lines of metrics.jsonl are not JSON and are ignored.")
    run.train = _by_step(rows, "train")
    run.evals = _by_step(rows, "eval")
    run.tasks = _by_step(rows, "tasks")
    run.events = [str(row.get("message", "")) for row in rows if row.get("kind") == "event"]
    if lines and not run.train:
        run.missing.append("metrics.jsonl has no training step yet.")
    if run.train and not run.evals:
        run.missing.append(
            "There is no evaluation yet, and therefore no validation loss or bits per byte."
        )


def _by_step(rows: Iterable[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    latest = {
        row["step"]: row for row in rows if row.get("kind") == kind and is_number(row.get("step"))
    }
    return [latest[step] for step in sorted(latest)]


def _read_summary(run: Run) -> None:
    text = _text(
        run,
        "summary.json",
        "the run is still training or was killed; the numbers are from its latest metrics",
    )
    if text:
        try:
            summary = foreign_json.parse(text)
        except ValueError:
            summary = None
        if isinstance(summary, dict):
            run.summary = summary
        else:
            run.missing.append(
                "summary.json is damaged; the numbers are from the last lines of metrics.jsonl."
            )


def _text(run: Run, name: str, consequence: str) -> str:
    """Returns the text of a file of the run. If there is none, returns "" and adds to
    `run.missing`.
    """
    try:
        text = (run.folder / name).read_text(encoding="utf-8", errors="replace")
        if text.strip():
            return text
        run.missing.append(f"{name} is empty: {consequence}.")
    except FileNotFoundError:
        run.missing.append(f"There is no {name}: {consequence}.")
    except OSError as error:
        run.missing.append(f"{name} cannot be read ({error.strerror}): {consequence}.")
    return ""
