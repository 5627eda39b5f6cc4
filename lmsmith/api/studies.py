"""The call `study`: many runs, and verdicts with their noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lmsmith.api.progress import Shown, showing
from lmsmith.api.run import Folder, paths

if TYPE_CHECKING:
    from lmsmith.study.run import Studied


def study(
    study: Folder,
    sources: Folder | Sequence[Folder] = (),
    *,
    out: Folder | None = None,
    threads: int = 1,
    at_once: int = 0,
    max_runs: int = 200,
    looks: Sequence[int] = (),
    a_a: bool = False,
    engine: Literal["processes", "ray"] = "processes",
    progress: Shown = None,
) -> Studied:
    """Runs the study that a file describes, or what is missing of it; returns its verdicts.

        studied = lmsmith.api.study("recipes/studies/norm-placement.toml", "book.txt")
        print(*studied.verdicts, sep="\\n")

    `study`: a study file (.toml). `sources`: texts instead of those in the file. `out`: the study's
    folder (default: studies/NAME). `threads`: of each run; `at_once`: runs at a time (0: as many as
    the cores allow). `max_runs`: refuse larger studies. `looks`: numbers of seeds after which the
    study ends if every difference is shown. `a_a`: compare the baseline with itself. `engine`:
    processes on this machine, or tasks on a Ray cluster.

    The folder then holds results.json, report.html and report.png. Ctrl-C saves the running runs
    and raises KeyboardInterrupt; the same call continues. Raises ConfigError for a study that
    cannot give a verdict, UsageError if `out` holds another study, StorageError.
    """
    from lmsmith.report.study import write_study_report
    from lmsmith.study.plan import against_itself, read_study
    from lmsmith.study.run import run_study
    from lmsmith.study.search import finalists
    from lmsmith.study.show import shown

    file = Path(study)
    plan = read_study(file, paths(sources))
    place = Path(out) if out is not None else Path("studies") / (file.stem + "-a-a" * a_a)
    if a_a:
        plan = against_itself(plan)
    with showing(progress) as console, shown(console) as watcher:
        if plan.search:
            plan = finalists(plan, place, threads=threads, at_once=at_once, watcher=watcher)
        watcher.begin(plan)
        studied = run_study(
            plan,
            place,
            threads=threads,
            at_once=at_once,
            max_runs=max_runs,
            looks=looks,
            engine=engine,
            watcher=watcher,
        )
        return replace(studied, report=write_study_report(studied))
