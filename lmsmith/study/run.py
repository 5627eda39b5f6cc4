"""Runs a study: its arms as processes, each on its own cores, restartable.

    results = run_study(read_study(Path("study.toml")), Path("studies/norms"))

Runs go seed by seed, so that all arms have the same number of seeds at any time. Each is a process
`lmsmith train RECIPE --out RUN` with `threads` threads, pinned to cores of its own where the system
allows it. So two runs at once disturb each other little, and budgets in seconds are fair. A run
that has ended is never repeated; one that was interrupted is resumed from its checkpoint.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli_w

from lmsmith import atomic
from lmsmith.config import nested
from lmsmith.errors import ConfigError, UsageError
from lmsmith.machine.limits import n_cores
from lmsmith.study.plan import Arm, Study
from lmsmith.study.results import Place, Result, read_result, values_of, write_results
from lmsmith.study.verdicts import LEVEL, Verdict, levels_of_looks, verdicts

Ended = Callable[[Result], None]
POLL_SECONDS = 0.05
MOST_RUNS = 200


@dataclass
class Running:
    """A process of a run, and the cores that it may use."""

    arm: Arm
    seed: int
    process: subprocess.Popen[str]
    cores: tuple[int, ...]
    output: Path


@dataclass
class Runner:
    """Starts runs while cores are free."""

    study: Study
    place: Place
    threads: int = 1
    at_once: int = 0  # 0: as many as the cores allow
    running: list[Running] = field(default_factory=list)

    def __post_init__(self) -> None:
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        cores = cores[: n_cores()] or list(range(n_cores()))
        groups = [tuple(cores[i : i + self.threads]) for i in range(0, len(cores), self.threads)]
        self.free = [group for group in groups if len(group) == self.threads] or [tuple(cores)]
        self.free = self.free[: self.at_once or len(self.free)]

    def start(self, arm: Arm, seed: int) -> None:
        """Starts or resumes a run on free cores."""
        cores, run = self.free.pop(0), self.place.run(arm, seed)
        if (run / "config.toml").exists():
            words = ["resume", str(run)]
        else:
            shutil.rmtree(run, ignore_errors=True)
            recipe = self.place.recipe(arm, seed)
            write_recipe(recipe, self.study, arm, seed, self.threads)
            words = ["train", *self.study.sources, str(recipe), "--out", str(run)]
        output = self.place.error(arm, seed).with_suffix(".running")
        threads = str(self.threads)
        with output.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "lmsmith", *words],
                env={**os.environ, "OMP_NUM_THREADS": threads, "NUMBA_NUM_THREADS": threads},
                stdout=stream,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # Ctrl-C reaches this process, which stops the others
            )
        if hasattr(os, "sched_setaffinity") and len(cores) == self.threads:
            os.sched_setaffinity(process.pid, cores)
        self.running.append(Running(arm, seed, process, cores, output))

    def ended(self) -> Iterator[Result]:
        """The results of the runs that have ended since the last call."""
        for one in [one for one in self.running if one.process.poll() is not None]:
            self.running.remove(one)
            self.free.append(one.cores)
            error = self.place.error(one.arm, one.seed)
            result = read_result(self.place, self.study, one.arm, one.seed)
            if result is None:  # there is no complete summary: the run failed
                one.output.replace(error)
                result = read_result(self.place, self.study, one.arm, one.seed)
                assert result is not None
            else:
                one.output.unlink(missing_ok=True)
            yield result

    def stop(self) -> None:
        """Asks the processes to save and stop; waits until they have."""
        for one in self.running:
            one.process.send_signal(signal.SIGINT)
        for one in self.running:
            one.process.wait()
            one.output.unlink(missing_ok=True)
        self.running.clear()


def run_study(
    study: Study,
    out: Path,
    *,
    threads: int = 1,
    at_once: int = 0,
    max_runs: int = MOST_RUNS,
    looks: Sequence[int] = (),
    ended: Ended = lambda result: None,
) -> list[Result]:
    """Runs what is missing of a study in the folder `out`; returns all results.

    `threads`: per run. `at_once`: runs at a time (default: as many as the cores allow). `looks`:
    numbers of seeds after which the study stops if every difference is already shown. `ended` is
    called after each run. Raises UsageError if `out` holds another study, ConfigError for more than
    `max_runs` runs; KeyboardInterrupt after the running ones have saved.
    """
    check_size(study, max_runs)
    place = open_place(study, out)
    done = {
        (arm.name, seed): result
        for arm in study.arms
        for seed in study.seeds
        if (result := read_result(place, study, arm, seed))
    }
    levels = dict(zip(looks, levels_of_looks(looks), strict=True)) if looks else {}
    runner = Runner(study, place, threads, at_once)
    try:
        for number, seed in enumerate(study.seeds, start=1):
            waiting = [arm for arm in study.arms if (arm.name, seed) not in done]
            last = number == len(study.seeds) or number in levels
            while waiting or (last and runner.running):
                while waiting and runner.free:
                    runner.start(waiting.pop(0), seed)
                for result in runner.ended():
                    done[result.arm, result.seed] = result
                    ended(result)
                    write_results(place, in_order(study, done), {"question": study.question})
                if not runner.free or not waiting:
                    time.sleep(POLL_SECONDS)
                if not waiting and not last:
                    break
            if number in levels and _decided(study, in_order(study, done), levels[number]):
                break
    except BaseException:
        runner.stop()
        raise
    results = in_order(study, done)
    write_results(place, results, {"question": study.question})
    return results


def in_order(study: Study, done: dict[tuple[str, int], Result]) -> list[Result]:
    """The results in the order of arms, then of seeds."""
    keys = [(arm.name, seed) for arm in study.arms for seed in study.seeds]
    return [done[key] for key in keys if key in done]


def verdicts_of(study: Study, results: Sequence[Result], level: float = LEVEL) -> list[Verdict]:
    """The verdicts of a study on its results so far."""
    return verdicts(values_of(results), study.baseline, level=level)


def check_size(study: Study, max_runs: int) -> None:
    """Raises ConfigError for a study of more than `max_runs` runs."""
    if study.n_runs > max_runs:
        raise ConfigError(
            f"{study.path} has {len(study.arms)} arms and {len(study.seeds)} seeds: "
            f"{study.n_runs} runs, more than --max-runs {max_runs}. Remove values of an axis, or "
            "raise --max-runs."
        )


def open_place(study: Study, out: Path) -> Place:
    """The folder of the study, new or continued. Raises UsageError if it holds another study."""
    file = out / "study.toml"
    content = study.path.read_bytes()
    if file.exists() and file.read_bytes() != content:
        raise UsageError(
            f"{out} holds another study: its study.toml differs from {study.path}. Choose another "
            "--out."
        )
    if out.exists() and not file.exists() and any(out.iterdir()):
        raise UsageError(f"{out} exists and holds no study: choose another --out.")
    for part in ("runs", "recipes", "errors"):
        (out / part).mkdir(parents=True, exist_ok=True)
    if not file.exists():
        atomic.write(file, content)
    return Place(out)


def write_recipe(path: Path, study: Study, arm: Arm, seed: int, threads: int) -> None:
    """Writes all settings of a run, its length included."""
    settings = study.settings_of(arm, seed) | length_of(study)
    settings = {"train.threads": threads, "train.yield_cores": "no"} | settings
    atomic.write(path, tomli_w.dumps(nested(settings)))


def length_of(study: Study) -> dict[str, Any]:
    """The settings that give a run its budget."""
    if study.budget == "seconds":
        return {"train.minutes": study.amount / 60}
    return {"train.tokens": int(study.amount)}


def _decided(study: Study, results: Sequence[Result], level: float) -> bool:
    found = verdicts_of(study, results, level)
    return bool(found) and all(verdict.shown for verdict in found)
