"""Runs a study: restartable, and no run that has ended is ever repeated.

    studied = run_study(read_study(Path("study.toml")), Path("studies/norms"))
    print(*studied.verdicts, sep="\\n")

Runs go seed by seed, so that all arms have about the same number of seeds at any time. A run that
was interrupted is resumed from its checkpoint. With `looks`, the study ends early if every
difference is already shown; the levels of `verdicts.levels_of_looks` keep the error rate.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from lmsmith import atomic
from lmsmith.config import read_toml
from lmsmith.errors import ConfigError, UsageError
from lmsmith.study.check import config_of
from lmsmith.study.engines import Engine, Job, Processes, RayTasks, stopping
from lmsmith.study.ladder import Prediction, fit_ladder, graded, held_out_arm
from lmsmith.study.plan import Arm, Study
from lmsmith.study.results import Place, Result, read_result, values_of, write_results
from lmsmith.study.verdicts import LEVEL, Verdict, levels_of_looks, verdicts
from lmsmith.text.sources import find_files
from lmsmith.train.stop import Noted

POLL_SECONDS = 0.1
MOST_RUNS = 200


class Watcher:
    """Is told about the progress of a study. Each method may be overridden."""

    def running(self, jobs: Sequence[Job], done: dict[Job, Result]) -> None:
        """Called several times a second."""

    def ended(self, result: Result) -> None:
        """Called after each run."""

    def predicted(self, prediction: Prediction) -> None:
        """Called before the held-out run of a scaling study starts."""


@dataclass(frozen=True)
class Studied:
    """What a study gave. `level`: of the verdicts; `early`: whether it ended before its last seed
    because every difference was shown; `interrupted`: number of runs without a result."""

    study: Study
    place: Place
    results: list[Result]
    verdicts: list[Verdict]
    level: float = LEVEL
    early: bool = False
    interrupted: int = 0
    prediction: Prediction | None = None
    report: Path | None = None


def run_study(
    study: Study,
    out: Path,
    *,
    threads: int = 1,
    at_once: int = 0,
    max_runs: int = MOST_RUNS,
    looks: Sequence[int] = (),
    engine: Literal["processes", "ray"] | Engine = "processes",
    watcher: Watcher | None = None,
) -> Studied:
    """Runs what is missing of a study in the folder `out`.

    `threads`: of each run. `at_once`: runs at a time (0: as many as the cores allow). `looks`:
    numbers of seeds after which to look at the verdicts. Raises UsageError if `out` holds another
    study, ConfigError for more than `max_runs` runs; KeyboardInterrupt after the running ones have
    saved.
    """
    levels, watcher = check_size(study, max_runs, looks), watcher or Watcher()
    place = open_place(study, out, threads)
    done: dict[Job, Result] = {}
    planned: list[Job] = []
    made = _engine(engine, place, threads, at_once)
    early, level, prediction = False, LEVEL, None
    with stopping(made) as signals:
        for stage in _stages(study, looks):
            if stage.held_out:
                prediction = fit_ladder(study, place, list(done.values()))
                watcher.predicted(prediction)
            planned += stage.jobs
            for job in stage.jobs:
                if result := read_result(place, study, *job):
                    done[job] = result
            waiting = [job for job in stage.jobs if job not in done]
            _run_jobs(made, signals, waiting, study, place, done, watcher)
            if stage.n_seeds in levels:
                level = levels[stage.n_seeds]
                found = _verdicts(study, done, level)
                if found and all(verdict.shown for verdict in found):
                    early = stage.n_seeds < max(levels)
                    break
    if prediction is not None:
        prediction = graded(prediction, list(done.values()))
    elif study.scaling:
        prediction = fit_ladder(study, place, list(done.values()))
    studied = Studied(
        study,
        place,
        _ordered(study, done),
        _verdicts(study, done, level),
        level,
        early,
        sum(job not in done for job in planned),
        prediction,
    )
    save(studied)
    return studied


@dataclass(frozen=True)
class _Stage:
    """Runs without a look at the results between them. `n_seeds`: seeds that are done then."""

    jobs: list[Job]
    n_seeds: int
    held_out: bool = False


def _stages(study: Study, looks: Sequence[int]) -> list[_Stage]:
    held_out = held_out_arm(study)
    if held_out is not None:
        ladder = [(a, s) for s in study.seeds for a in study.arms if a is not held_out]
        last = [(held_out, seed) for seed in study.seeds]
        return [_Stage(ladder, 0), _Stage(last, 0, held_out=True)]
    ends = list(looks) or [len(study.seeds)]
    starts = [0, *ends[:-1]]
    return [
        _Stage([(arm, seed) for seed in study.seeds[a:b] for arm in study.arms], b)
        for a, b in zip(starts, ends, strict=True)
    ]


def _run_jobs(
    engine: Engine,
    signals: Noted,
    waiting: list[Job],
    study: Study,
    place: Place,
    done: dict[Job, Result],
    watcher: Watcher,
) -> None:
    while waiting or engine.running:
        signals.check()
        while waiting and engine.free:
            engine.start(waiting.pop(0))
            signals.check()
        ended = list(engine.ended())
        for job in ended:
            if result := read_result(place, study, *job):
                done[job] = result
                watcher.ended(result)
        if ended:
            write_results(place, _ordered(study, done), _about(study))
        watcher.running(engine.running, done)
        if not ended:
            time.sleep(POLL_SECONDS)


def _ordered(study: Study, done: dict[Job, Result]) -> list[Result]:
    """The results in the order of arms, then of seeds."""
    by_name = {(result.arm, result.seed): result for result in done.values()}
    keys = [(arm.name, seed) for arm in study.arms for seed in study.seeds]
    return [by_name[key] for key in keys if key in by_name]


def _verdicts(study: Study, done: dict[Job, Result], level: float) -> list[Verdict]:
    if study.scaling:
        return []  # arms of a ladder differ in size: the law is the result
    values: dict[str, dict[int, float]] = {arm.name: {} for arm in study.arms}
    values |= values_of(_ordered(study, done))
    return verdicts(values, study.baseline, level=level)


def check_size(study: Study, max_runs: int, looks: Sequence[int]) -> dict[int, float]:
    """The level of each look. Raises ConfigError for a study of more than `max_runs` runs, and for
    looks that do not fit it."""
    if study.n_runs > max_runs:
        raise ConfigError(
            f"{study.path} has {len(study.arms)} arms and {len(study.seeds)} seeds: "
            f"{study.n_runs} runs, more than --max-runs {max_runs}. Remove values of an axis, or "
            "raise --max-runs."
        )
    if not looks:
        return {}
    levels = levels_of_looks(looks)
    if looks[-1] > len(study.seeds) or study.scaling:
        raise ConfigError(
            f"--looks {','.join(map(str, looks))} ends after {looks[-1]} seeds, but {study.path} "
            f"has {len(study.seeds)}. Set seeds = {looks[-1]}."
            if not study.scaling
            else f"--looks compares arms, and {study.path} fits a law to them: remove --looks."
        )
    return dict(zip(looks, levels, strict=True))


def open_place(study: Study, out: Path, threads: int) -> Place:
    """The folder of the study, new or continued, with a recipe for each run.

    Raises UsageError if it holds a study with other settings, DataError for a text that does not
    exist.
    """
    for source in study.sources:
        if not Path(source).exists():
            find_files([source])  # a corpus, or an error that names what is missing
    if out.exists() and not (out / "recipes").is_dir() and any(out.iterdir()):
        raise UsageError(f"{out} exists and holds no study: choose another --out.")
    place = Place(out)
    recipes: dict[Path, dict[str, Any]] = {}
    for arm in study.arms:
        for seed in study.seeds:
            recipes[place.recipe(arm, seed)] = recipe_of(study, arm, seed, threads)
    for path, recipe in recipes.items():
        if path.exists() and (there := read_toml(path)) != recipe:
            names = sorted(n for n in {*there, *recipe} if there.get(n) != recipe.get(n))
            raise UsageError(
                f"{out} holds a study whose run {path.stem} has other settings "
                f"({', '.join(f'{n}: {there.get(n)}, now {recipe.get(n)}' for n in names)}). "
                "Choose another --out."
            )
    place.make()
    for path, recipe in recipes.items():
        if not path.exists():
            atomic.write(path, _toml(recipe))
    atomic.write(out / "study.toml", study.path.read_bytes())
    return place


def write_recipe(place: Place, study: Study, job: Job, threads: int) -> None:
    """Writes the recipe of one run."""
    atomic.write(place.recipe(*job), _toml(recipe_of(study, *job, threads)))


def recipe_of(study: Study, arm: Arm, seed: int, threads: int) -> dict[str, Any]:
    """All settings of a run, by dotted name, its texts and its length included."""
    config, settings = config_of(study, arm, seed)
    fixed: dict[str, Any] = {"train.threads": threads, "train.yield_cores": "no"}
    if config.model.counted:
        fixed = {}
    if study.sources:
        fixed["data.sources"] = list(study.sources)
    return fixed | settings


def save(studied: Studied) -> None:
    """Writes results.json. Raises StorageError."""
    found = {
        **_about(studied.study),
        "level": studied.level,
        "ended_early": studied.early,
        "verdicts": [
            {**asdict(v), "shown": v.shown, "better": v.better, "in_words": str(v)}
            for v in studied.verdicts
        ],
        "prediction": studied.prediction and studied.prediction.as_dict(),
    }
    write_results(studied.place, studied.results, found)


def _about(study: Study) -> dict[str, Any]:
    return {
        "question": study.question,
        "metric": study.metric,
        "budget": {study.budget: study.amount},
        "baseline": study.baseline,
        "seeds": list(study.seeds),
        "arms": {arm.name: dict(arm.settings) for arm in study.arms},
    }


def _engine(
    engine: Literal["processes", "ray"] | Engine, place: Place, threads: int, at_once: int
) -> Engine:
    if not isinstance(engine, str):
        return engine
    return {"processes": Processes, "ray": RayTasks}[engine](place, threads, at_once)


def _toml(settings: Mapping[str, Any]) -> str:
    """`{"model.n_layer": 2}` as a TOML file: `[model] n_layer = 2`."""
    top: dict[str, Any] = {name: value for name, value in settings.items() if "." not in name}
    for name, value in settings.items():
        if "." in name:
            section, _, key = name.partition(".")
            top.setdefault(section, {})[key] = value
    return tomli_w.dumps(top)
