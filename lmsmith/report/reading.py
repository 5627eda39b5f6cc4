"""Run folders as they are found: finished, still going, killed, with files missing or a last line
half written.

A report is wanted most when something went wrong, so reading never fails for what a run may have
left behind: what is not there is listed in `Run.missing`, in words for the user. Only a path that
is no run folder at all is an error.

`metrics.jsonl` of a resumed run may hold a step twice, once from before the kill and once from
after the resume; the later line counts.
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
    """What a run folder holds. Rows of `train`, `evals` and `tasks` are the lines of
    metrics.jsonl, in the order of steps.
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
        """The first of these keys that is a number in summary.json or, failing that, in the
        latest lines of metrics.
        """
        latest = sorted([*self.train[-1:], *self.evals[-1:]], key=lambda row: -row["step"])
        for row in (self.summary, *latest):
            for name in names:
                if is_number(row.get(name)):
                    return float(row[name])
        return None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, with names that tell them apart. Raises CheckpointError for a path that is no
    run folder.
    """
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.folder)
    return runs


def read_run(folder: Path) -> Run:
    """The run in `folder`. Raises CheckpointError for a path that is no run folder."""
    is_run = any((folder / name).exists() for name in ("metrics.jsonl", "config.toml"))
    if not is_run:
        from lmsmith.run_folder import refuse_foreign  # with torch, which a report does without

        refuse_foreign(folder)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise CheckpointError(
            f"{folder} {what}: wanted a run folder, as `lmsmith train ... --out {folder}` makes "
            f"one."
        )
    if not is_run:
        raise CheckpointError(
            f"{folder} is not a run folder: it has neither metrics.jsonl nor config.toml. Give "
            f"the folder that "
            "`lmsmith train` wrote."
        )
    run = Run(folder, folder.resolve().name)
    _read_summary(run)
    _read_metrics(run)
    _read_config(run)
    run.samples = split_samples(_text(run, "samples.md", "no samples"))
    return run


def prompt_of(folder: Path) -> str:
    """Some words to begin a text with: those at the start of a line of the run's validation
    text.
    """
    try:
        with (folder / "tokens" / "validation.txt").open(encoding="utf-8", errors="ignore") as file:
            begin = file.read(5000)
    except OSError:  # of ready shards it may be too large to have been written out
        begin = ""
    lines = begin.splitlines()  # the first one may begin in the middle of a word
    for line in [*lines[1:], *lines[:1]]:
        if found := re.match(r"\w{1,12}( \w{1,12}){0,3}", line.strip()):
            return found.group()
    return "Once upon a time"


def column(rows: Iterable[dict[str, Any]], name: str) -> Numbers:
    """One field of all rows; not a number where a row lacks it."""
    return np.array(
        [row[name] if is_number(row.get(name)) else math.nan for row in rows], dtype=np.float64
    )


def is_number(value: Any) -> bool:
    """A finite number; JSON has true, and Python's reader takes NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def split_samples(markdown: str) -> list[tuple[str, list[str]]]:
    """`## heading`s with the fenced blocks below each; a block may end with the file instead of
    its fence.
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
    run.config = _text(run, "config.toml", "its settings are not known")
    if run.config:
        try:
            run.settings = read_toml(run.folder / "config.toml")
        except ConfigError as error:
            run.missing.append(str(error))


def _read_metrics(run: Run) -> None:
    if run.summary.get("finished") == "counted":  # n-grams: no updates, so no curves
        return
    lines = _text(run, "metrics.jsonl", "no curves").splitlines()
    rows, n_broken = [], 0
    for i, line in enumerate(lines):
        try:
            row = foreign_json.parse(line)
        except ValueError:
            if i == len(lines) - 1:
                run.missing.append("The last line of metrics.jsonl is cut off and left out.")
            else:
                n_broken += bool(line.strip())
            continue
        if isinstance(row, dict):
            rows.append(row)
    if n_broken:
        run.missing.append(f"{n_broken} lines of metrics.jsonl are not JSON and left out.")
    run.train = _by_step(rows, "train")
    run.evals = _by_step(rows, "eval")
    run.tasks = _by_step(rows, "tasks")
    run.events = [str(row.get("message", "")) for row in rows if row.get("kind") == "event"]
    if lines and not run.train:
        run.missing.append("metrics.jsonl has no update yet.")
    if run.train and not run.evals:
        run.missing.append(
            "There is no evaluation yet, so no validation loss and no bits per byte."
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
        "the run is still going or was killed; figures are those of its last lines",
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
                "summary.json is damaged; figures are those of the last lines of metrics.jsonl."
            )


def _text(run: Run, name: str, consequence: str) -> str:
    """The file's text, "" where there is none: then `run.missing` says so."""
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
