"""Shows the progress of a study: a live table on a terminal, one line for each ended run elsewhere;
and its result as lines."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.live import Live
from rich.table import Table

from lmsmith.study.announce import lines
from lmsmith.study.engines import Job
from lmsmith.study.ladder import Prediction
from lmsmith.study.plan import Study
from lmsmith.study.results import Result
from lmsmith.study.run import Studied, Watcher


class Shown(Watcher):
    """Prints on a console. `live`: the live display, on a terminal."""

    def __init__(self, console: Console, live: Live | None) -> None:
        self.console, self.live, self.n_ended = console, live, 0
        self.study: Study | None = None
        self._last: object = None

    def begin(self, study: Study) -> None:
        """Prints what the study does."""
        self.study = study
        self.n_ended = 0
        for line in lines(study):
            self.console.print(line)

    def ended(self, result: Result) -> None:
        self.n_ended += 1
        if self.live is None:
            self.console.print(line_of(result))

    def running(self, jobs: Sequence[Job], done: dict[Job, Result]) -> None:
        state = (len(done), [(arm.name, seed) for arm, seed in jobs])
        if self.live is not None and self.study is not None and state != self._last:
            self._last = state
            self.live.update(_table(self.study, jobs, list(done.values())), refresh=True)

    def predicted(self, prediction: Prediction) -> None:
        self.console.print(str(prediction))


@contextlib.contextmanager
def shown(console: Console) -> Iterator[Shown]:
    """Yields the watcher of a study that prints on `console`."""
    if not console.is_terminal or console.quiet:
        yield Shown(console, None)
        return
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield Shown(console, live)


def line_of(result: Result) -> str:
    """One ended run."""
    value = "" if result.value is None else f" {result.value:.4f}"
    error = f": {result.error}" if result.error else ""
    return f"{result.outcome:<9}{value} {result.arm}, seed {result.seed}{error}"


def summary(studied: Studied) -> list[str]:
    """The result of a study in lines: arms from best to worst, then verdicts and notes."""
    found = [
        f"{row.mean_in_words}  {row.name}"
        + "".join(f", {n} {word}" for word, n in row.others.items() if n)
        for row in rows(studied.study, studied.results)
    ]
    found += [str(verdict) for verdict in studied.verdicts]
    if studied.prediction is not None:
        found.append(str(studied.prediction))
    if studied.early:
        found.append("Every difference is shown, so the study ended before its last seed.")
    n_pairs = len(studied.verdicts)
    if n_pairs > 1:
        found.append(f"p-values are corrected for {n_pairs} comparisons (Holm).")
    if studied.interrupted:
        found.append(f"{studied.interrupted} runs were interrupted: the same command resumes them.")
    return found


class Row:
    """The results of one arm."""

    def __init__(self, name: str, results: Sequence[Result]) -> None:
        self.name, self.results = name, list(results)
        self.values = [result.value for result in results if result.value is not None]
        self.mean = sum(self.values) / len(self.values) if self.values else math.inf
        spread = sum((value - self.mean) ** 2 for value in self.values)
        self.deviation = math.sqrt(spread / (len(self.values) - 1)) if len(self.values) > 1 else 0.0
        self.others = {
            word: sum(result.outcome == word for result in results)
            for word in ("diverged", "failed", "pruned")
        }

    @property
    def mean_in_words(self) -> str:
        """ "1.2345 ± 0.0012", or a dash."""
        if not self.values:
            return "—".ljust(15)
        spread = f" ± {self.deviation:.4f}" if len(self.values) > 1 else ""
        return f"{self.mean:.4f}{spread}".ljust(15)


def rows(study: Study, results: Sequence[Result]) -> list[Row]:
    """The arms from best to worst. Arms without a value are last."""
    found = [Row(arm.name, [r for r in results if r.arm == arm.name]) for arm in study.arms]
    return sorted(found, key=lambda row: row.mean)


def _table(study: Study, jobs: Sequence[Job], results: Sequence[Result]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("arm", "done", "running", study.metric.replace("_", " "), "diverged, failed"):
        table.add_column(head, justify="left" if head == "arm" else "right")
    for row in rows(study, results):
        n_running = sum(arm.name == row.name for arm, _ in jobs)
        others = ", ".join(f"{n} {word}" for word, n in row.others.items() if n)
        table.add_row(
            row.name,
            f"{len(row.results)}/{len(study.seeds)}",
            str(n_running or ""),
            row.mean_in_words.strip(),
            others,
        )
    return table
