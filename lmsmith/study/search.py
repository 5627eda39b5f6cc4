"""Searches a large space with optuna (`pip install 'lmsmith[study]'`), then compares the best arms.

    [search]
    trials = 30
    finalists = 3                       # compared afterwards with all seeds, as in any study
    seed = 0                            # of the trials; the finalists have seeds of their own

    [search.space]
    "optim.learning_rate" = {low = 1e-4, high = 1e-1, log = true}
    "model.n_layer" = {low = 1, high = 4}          # whole numbers if both ends are
    "model.norm" = ["rmsnorm", "layernorm"]        # one of these

Trials are drawn by the tree-structured Parzen estimator (Bergstra et al. 2011). A trial whose
validation loss is worse than the median of the trials before it, at the same evaluation, is stopped
(`MedianPruner`). The value of a trial is the best of many noisy ones, so it is biased: only the
finalists, with seeds that the search has not seen, give verdicts.

OUT/search/ holds the trials as a study does; OUT/search/optuna.log is optuna's journal, with which
an interrupted search continues.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmsmith import foreign_json
from lmsmith.errors import ConfigError
from lmsmith.study.check import config_of
from lmsmith.study.engines import Command, Job, Processes, command_of, stopping
from lmsmith.study.plan import Arm, Study
from lmsmith.study.results import Place, Result, read_result
from lmsmith.study.run import POLL_SECONDS, Watcher, write_recipe

KEYS = ("trials", "finalists", "seed", "space")
WARM_UP_TRIALS = 4  # trials that the pruner only watches


def check_search(study: Study) -> None:
    """Raises ConfigError for a table [search] that cannot be searched."""
    path, search = study.path, study.search
    if unknown := set(search) - set(KEYS):
        raise ConfigError(f"{path}: [search] has {', '.join(unknown)}: expected {', '.join(KEYS)}.")
    for name, least in (("trials", 2), ("finalists", 2), ("seed", 0)):
        value = search.get(name, least)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ConfigError(f"{path}: search.{name} = {value!r}: expected {least} or more.")
    if search.get("seed", 0) in study.seeds:
        raise ConfigError(f"{path}: search.seed is one of seeds, but finalists need unseen ones.")
    if len(study.seeds) < 2:
        raise ConfigError(f"{path}: one seed cannot tell a difference from noise. Set seeds = 3.")
    ranges = space_of(study)
    if not ranges:
        raise ConfigError(f"{path}: [search.space] is empty: there is nothing to search.")
    for end in (0, -1):
        point = {
            name: (r[end] if isinstance(r, list) else r["low" if end == 0 else "high"])
            for name, r in ranges.items()
        }
        config_of(study, Arm("first" if end == 0 else "last", point), study.seeds[0])


def space_of(study: Study) -> dict[str, list[Any] | dict[str, Any]]:
    """Setting -> values, or a range. Raises ConfigError for ranges that make no sense."""
    found: dict[str, list[Any] | dict[str, Any]] = {}
    for name, given in _ranges(study.search.get("space", {})).items():
        good: Any = isinstance(given, list) and len(given) > 0
        if isinstance(given, Mapping):
            low: Any = given.get("low")
            high: Any = given.get("high")
            good = (
                set(given) <= {"low", "high", "log"}
                and all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
                and low < high
                and (low > 0 or not given.get("log"))
            )
        if not good:
            raise ConfigError(
                f"{study.path}: search.space {name!r} is {given!r}: expected a list of values, or "
                "{low = X, high = Y, log = true}, with low < high."
            )
        found[name] = given if isinstance(given, list) else dict(given)
    return found


def finalists(
    study: Study,
    out: Path,
    *,
    threads: int = 1,
    at_once: int = 0,
    watcher: Watcher | None = None,
    command: Command = command_of,
) -> Study:
    """Searches, or continues a search; returns the study of the best arms.

    Raises ConfigError if optuna is not installed, or if fewer than two trials finished.
    """
    optuna, watcher = _optuna(), watcher or Watcher()
    place = Place(out / "search")
    place.make()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = optuna.storages.journal
    search = optuna.create_study(
        storage=optuna.storages.JournalStorage(
            journal.JournalFileBackend(str(place.out / "optuna.log"))
        ),
        sampler=optuna.samplers.TPESampler(seed=study.search.get("seed", 0)),
        pruner=optuna.pruners.MedianPruner(n_startup_trials=WARM_UP_TRIALS),
        study_name="search",
        load_if_exists=True,
    )
    states = optuna.trial.TrialState
    for trial in search.get_trials(states=[states.RUNNING]):  # of a search that was interrupted
        search.tell(trial.number, state=states.FAIL)
    engine = Processes(place, threads, at_once, command)
    _search(study, search, engine, place, threads, watcher, states)
    best = sorted(search.get_trials(states=[states.COMPLETE]), key=lambda trial: trial.value)
    best = best[: study.search.get("finalists", 3)]
    if len(best) < 2:
        raise ConfigError(
            f"{len(best)} of the trials in {place.out} finished, and a comparison needs two. Their "
            f"errors are in {place.out / 'errors'}."
        )
    arms = tuple(Arm(f"trial {trial.number}", dict(trial.params)) for trial in best)
    return replace(study, arms=arms, search={}, baseline=arms[0].name)


def _search(
    study: Study,
    search: Any,
    engine: Processes,
    place: Place,
    threads: int,
    watcher: Watcher,
    states: Any,
) -> None:
    """Runs trials until `search.trials` have ended."""
    n_trials, running = study.search.get("trials", 20), dict[Job, Any]()
    pruned: set[Job] = set()
    n_ended = len(search.get_trials(states=[states.COMPLETE, states.PRUNED]))
    n_started = n_ended
    with stopping(engine) as signals:
        while n_ended < n_trials:
            signals.check()
            while engine.free and n_started < n_trials:
                trial = search.ask()
                arm = Arm(f"trial {trial.number}", _drawn(trial, space_of(study)))
                job = (arm, study.search.get("seed", 0))
                write_recipe(place, study, job, threads)
                engine.start(job)
                signals.check()
                running[job] = trial
                n_started += 1
            for job, trial in running.items():
                if job not in pruned and _worse(place, job, trial):
                    pruned.add(job)
                    engine.stop_one(job)
            for job in engine.ended():
                trial, result = running.pop(job), read_result(place, study, *job)
                if result is not None and result.value is not None:
                    search.tell(trial, result.value)
                else:
                    search.tell(trial, state=states.PRUNED)  # pruned, diverged or failed
                result = result or Result(job[0].name, job[1], "pruned", None, 0, 0, 0, 0)
                watcher.ended(replace(result, arm=f"{job[0].name} {_in_words(job[0].settings)}"))
                n_ended += 1
            time.sleep(POLL_SECONDS)


def _drawn(trial: Any, space: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, given in space.items():
        if isinstance(given, list):
            found[name] = trial.suggest_categorical(name, given)
            continue
        low, high, log = given["low"], given["high"], bool(given.get("log"))
        whole = isinstance(low, int) and isinstance(high, int)
        suggest = trial.suggest_int if whole else trial.suggest_float
        found[name] = suggest(name, low, high, log=log)
    return found


def _worse(place: Place, job: Job, trial: Any) -> bool:
    """Reports the evaluations so far; whether the trial should stop."""
    path = place.run(*job) / "metrics.jsonl"
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    losses = []
    for line in text.splitlines():
        try:
            row = foreign_json.parse(line)
        except ValueError:  # the last line may be incomplete
            continue
        if row.get("kind") == "eval":
            losses.append(row.get("val_loss"))
    for number, loss in enumerate(losses):
        trial.report(float(loss) if isinstance(loss, int | float) else math.inf, number)
    return bool(losses) and bool(trial.should_prune())


def _in_words(settings: Mapping[str, Any]) -> str:
    shown = (
        f"{name.rpartition('.')[2]}={value:.4g}"
        if isinstance(value, float)
        else f"{name.rpartition('.')[2]}={value}"
        for name, value in settings.items()
    )
    return f"({', '.join(shown)})"


def _ranges(space: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Like `flatten`, but a table with `low` is a value."""
    found: dict[str, Any] = {}
    for name, value in space.items():
        nested = isinstance(value, Mapping) and not {"low", "high"} & set(value)
        found |= _ranges(value, f"{prefix}{name}.") if nested else {prefix + name: value}
    return found


def _optuna() -> Any:
    try:
        import optuna
        import optuna.storages.journal
    except ImportError as error:
        raise ConfigError(
            "[search] needs optuna, which is not installed: `pip install 'lmsmith[study]'`."
        ) from error
    return optuna
