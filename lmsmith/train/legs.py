"""Decides what a resumed run changes: its length, and settings that may change while it trains.

The checkpoint holds the config that the run was trained with until now. RUN/config.toml, which the
user may have edited, and the command line give the new config. `resumed` compares the two. It
applies and logs allowed changes (`CHANGEABLE`, and the length), and refuses others by name.

A leg is a range of steps under one plan. A run that is extended, or whose optimizer, schedule or
dropout changes, starts a new leg. The checkpoint of a new leg is written before its first step, so
that a run which is then killed continues with that leg.

The learning rate depends only on the step and the number of steps (`optim/schedule.py`). A new leg
therefore has the learning rate that a run planned for the new number of steps has at that step.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lmsmith.checkpoint import Checkpoint, newest
from lmsmith.config import (
    CHANGEABLE,
    LENGTH,
    MODEL_KINDS,
    RunConfig,
    ScheduleConfig,
    flatten,
    settings,
)
from lmsmith.config.aliases import RENAMED
from lmsmith.data.corpus import Corpus
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.optim.rates import note_on_rates
from lmsmith.optim.schedule import learning_rate_share
from lmsmith.run_folder import summary_of
from lmsmith.strict_json import write_json
from lmsmith.train.by_hand import for_reference
from lmsmith.train.choose import (
    LEAST_EVALUATIONS,
    MOST_EVALUATIONS,
    N_LOG_LINES,
    steps_of_epochs,
)
from lmsmith.train.log import MetricsFile
from lmsmith.train.objective import objective_of

log = logging.getLogger(__name__)

_LEARNT = ("optim.", "schedule.", "model.")  # settings that change what the run learns


@dataclass(frozen=True)
class Resumed:
    """The plan of a resumed run. `step`: step of the newest checkpoint; `n_before`: steps planned
    until now.
    """

    config: RunConfig
    changed: dict[str, tuple[Any, Any]]  # old and new value by name, without the length
    extends: bool  # whether the length changes
    step: int
    n_before: int
    legs: list[dict[str, Any]]
    before: RunConfig  # the config of the checkpoint

    @property
    def new_leg(self) -> bool:
        return self.extends or any(name.startswith(_LEARNT) for name in self.changed)

    def planned(self, n_steps: int) -> Resumed:
        """Returns this plan with the number of steps that fit into `--minutes`."""
        config = _rhythm(
            self.config.changed({"train.steps": n_steps}, where="the available time"), self.before
        )
        legs = [*self.legs[:-1], self.legs[-1] | {"steps": n_steps}]
        return replace(self, config=config, legs=legs)


def resumed(
    place: Path, config: RunConfig, corpus: Corpus, changes: Mapping[str, Any], where: str
) -> Resumed | None:
    """Plans the resumed run at `place`; None if it is finished and stays so. Only reads files.

    `config`: from its config.toml. `changes`: new settings, given in `where` (for errors). Raises
    ConfigError for a setting that cannot change or an impossible length; CheckpointError if there
    is no checkpoint to resume from.
    """
    checkpoint, summary = newest(place), summary_of(place)
    finished = summary.get("finished") not in (None, "signal")
    before = _before(config, checkpoint)
    now = config.changed(changes, where=where)
    made = (summary.get("steps"), checkpoint.step if checkpoint else None)
    now, extends = _length(place, before, now, changes, made, finished=finished)
    changed = _changed(place, before, now)
    now = _rhythm(now, before)
    retargeted = summary.get("finished") == "target" and "train.stop_at_val_loss" in changed
    if finished and not extends and not retargeted:
        return None
    if finished and not checkpoint:
        raise CheckpointError(f"{place} is finished and has no checkpoint to resume from.")
    if extends:
        _check_extension(place, before, checkpoint, changed)
        now = _rhythm(_in_steps(place, now, corpus, checkpoint.step if checkpoint else 0), before)
    if now.train.engine == "reference":
        for_reference(now, {*changed})
    if not checkpoint:
        n_before = before.train.steps
        return Resumed(now, changed, extends, 0, n_before, [first_leg(now)], before)
    legs = checkpoint.about.get("legs") or [first_leg(before)]
    n_before = int(checkpoint.state["n_steps"])
    found = Resumed(now, changed, extends, checkpoint.step, n_before, legs, before)
    return _with_leg(found, checkpoint) if found.new_leg else found


def first_leg(config: RunConfig) -> dict[str, Any]:
    return {
        "from_step": 0,
        "wall_seconds": 0.0,
        "steps": config.train.steps,
        "minutes": config.train.minutes or None,
    }


def about(config: RunConfig, legs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the `about` of a checkpoint: the config and the legs of its run."""
    return {"config": flatten(asdict(config)), "legs": legs}


def legs_of(about: Mapping[str, Any], step: int) -> list[dict[str, Any]]:
    """Returns the legs for summary.json: first and last step of each, and what changed at its
    start.
    """
    legs = about.get("legs", [])
    ends = [leg["from_step"] for leg in legs[1:]] + [step]
    return [
        {
            "from_step": leg["from_step"],
            "to_step": end,
            **{k: v for k, v in leg.items() if k != "wall_seconds"},
        }
        for leg, end in zip(legs, ends, strict=True)
    ]


def plan_lines(found: Resumed, corpus: Corpus) -> list[str]:
    """Returns the lines that tell the user what changes."""
    config, lines = found.config, []
    lines += [
        f"changed  {name}: {_shown(new)} from step {found.step:,} on (was {_shown(old)})"
        for name, (old, new) in found.changed.items()
    ]
    if partial := note_on_rates(config.optim, found.changed, resumed=True):
        lines.append(f"note     {partial}")
    if found.extends:
        batches = objective_of(config).batches(corpus)
        n, tokens = config.train.steps, (config.train.steps - found.step) * batches.tokens_per_batch
        minutes = f" (fits into {config.train.minutes:g} minutes)" if config.train.minutes else ""
        lines.append(
            f"training {n - found.step:,} more steps of {config.train.batch_size} x "
            f"{config.model.context_length} "
            f"tokens = {tokens:,} tokens: {n:,} steps instead of {found.n_before:,}{minutes}; "
            + schedule_in_words(config.schedule, found.step, found.n_before, n)
            + f"; evaluation every {config.train.eval_every:,} steps"
        )
    return lines


def schedule_in_words(schedule: ScheduleConfig, step: int, n_before: int, n_steps: int) -> str:
    """Says what the learning rate does when a run of `n_before` steps is extended to `n_steps` at
    `step`.
    """
    shape = schedule.shape
    if shape == "constant":
        return "constant: the learning rate stays at its peak"
    if shape == "inverse-sqrt":
        return (
            "inverse-sqrt: the learning rate keeps falling as 1/sqrt(step), independent of the "
            "length"
        )
    then = learning_rate_share(max(0, step - 1), n_before, schedule)
    now = learning_rate_share(step, n_steps, schedule)
    final = schedule.final_fraction
    return (
        f"{shape}: the learning rate changes from {then:.0%} to {now:.0%} of its peak, the value "
        f"of a {n_steps:,}-step run at step {step:,}, and ends at {final:.0%} at step {n_steps:,}"
    )


def write_events(run: Path, found: Resumed, evaluated_step: int) -> None:
    """Writes what changes to metrics.jsonl, as events. Raises StorageError."""
    messages = [
        f"{name} changed from {_shown(old)} to {_shown(new)}"
        for name, (old, new) in found.changed.items()
    ]
    if found.extends:
        n = found.config.train.steps
        words = schedule_in_words(found.config.schedule, found.step, found.n_before, n)
        messages.append(f"{n:,} steps instead of {found.n_before:,}; {words}")
    if messages:
        with MetricsFile(
            run / "metrics.jsonl", step=found.step, evaluated_step=evaluated_step
        ) as metrics:
            for message in messages:
                metrics.write(kind="event", step=found.step, message=message)


def reopen(run: Path) -> None:
    """Marks a finished run as unfinished in its summary. Raises StorageError."""
    summary = summary_of(run)
    if summary.get("finished") not in (None, "signal"):
        write_json(run / "summary.json", summary | {"finished": None})


def _before(config: RunConfig, checkpoint: Checkpoint | None) -> RunConfig:
    """Returns the config that the checkpoint was trained with. If the checkpoint is from an earlier
    version and has no config, the one in config.toml.
    """
    if checkpoint and "config" in checkpoint.about:
        said = checkpoint.about["config"]
        known = dict(settings(MODEL_KINDS.get(said.get("model.kind", "gpt"))))
        kept = {name: value for name, value in said.items() if name in known or name in RENAMED}
        return RunConfig().changed(kept, where="the checkpoint")
    if checkpoint:
        log.warning(
            "note: the checkpoint at step %s comes from an earlier version and holds no settings. "
            "Using those in config.toml; whether they were edited cannot be checked",
            f"{checkpoint.step:,}",
        )
    if checkpoint and not config.train.minutes and isinstance(checkpoint.state.get("n_steps"), int):
        return config.changed({"train.steps": checkpoint.state["n_steps"]}, where="the checkpoint")
    return config


def _length(
    place: Path,
    before: RunConfig,
    now: RunConfig,
    changes: Mapping[str, Any],
    made: tuple[Any, Any],
    *,
    finished: bool,
) -> tuple[RunConfig, bool]:
    """Returns the config with a single length setting, and whether the length changes.

    `made`: the steps made so far, by the summary and by the newest checkpoint.
    """
    ours = [name for name in LENGTH if name in changes]
    if not ours:
        ours = [name for name in LENGTH if _value(before, name) != _value(now, name)]
        timed = bool(before.train.minutes) and before.train.minutes == now.train.minutes
        if timed and now.train.steps in made and ours == ["train.steps"]:
            ours = []  # a run with --minutes writes its number of steps at its end
        if not ours:
            return now, False
        ours = [name for name in ours if _value(now, name)] or ["train.steps"]
    if len(ours) > 1:
        raise ConfigError(
            f"{' and '.join(ours)} set the length of {place} {len(ours)} times: set only one."
        )
    (name,) = ours
    if not _value(now, name):
        raise ConfigError(f"{name} = 0: expected the new length of {place}, more than 0.")
    lengths = {other: 0 for other in LENGTH if other != name}
    now = now.changed(lengths, where="the run's length")
    same = (
        name == "train.steps" and now.train.steps == before.train.steps and not before.train.minutes
    )
    return now, finished or not same


def _check_extension(
    place: Path, before: RunConfig, checkpoint: Checkpoint | None, changed: Mapping[str, Any]
) -> None:
    """Raises ConfigError if the length of the run cannot change."""
    train = before.train
    if train.initial_batch_size:
        raise ConfigError(
            f"the batch size of {place} grows with its number of steps "
            f"(train.initial_batch_size = {train.initial_batch_size}), so its length cannot "
            "change."
        )
    reached = checkpoint is not None and checkpoint.state.get("seconds_to_target") is not None
    if reached and "train.stop_at_val_loss" not in changed:
        raise ConfigError(
            f"{place} reached its target, train.stop_at_val_loss = {train.stop_at_val_loss:g}, "
            "and ended. To train further, also set a lower target, or --stop-at-val-loss 0."
        )


def _in_steps(place: Path, config: RunConfig, corpus: Corpus, step: int) -> RunConfig:
    """Returns the config with its length in steps, unless it is given in minutes.

    Raises ConfigError if the run has already made at least this number of steps.
    """
    train = config.train
    if train.minutes:
        return config
    tokens_a_step = objective_of(config).batches(corpus).tokens_per_batch
    if train.epochs:
        n_steps, length = steps_of_epochs(config, corpus), f"train.epochs = {train.epochs:g}"
    elif train.tokens:
        n_steps, length = train.tokens // tokens_a_step, f"train.tokens = {train.tokens:,}"
    else:
        n_steps, length = train.steps, f"train.steps = {train.steps:,}"
    if n_steps <= step:
        raise ConfigError(
            f"{place} has already made {step:,} steps ({step * tokens_a_step:,} tokens), and "
            f"{length} is its total length, including these. Set more, or `lmsmith train` a "
            "shorter run."
        )
    changes = {"train.steps": n_steps, "train.tokens": 0, "train.epochs": 0}
    return config.changed(changes, where="the run's length")


def _rhythm(config: RunConfig, before: RunConfig) -> RunConfig:
    """Chooses the steps between evaluations and between log lines again, if they are 0 or were
    chosen for another length.
    """
    n_steps, chosen = config.train.steps, dict[str, int]()
    if not n_steps:  # not known yet
        return config
    shares = {
        "train.eval_every": range(MOST_EVALUATIONS, LEAST_EVALUATIONS - 1, -1),
        "train.log_every": [N_LOG_LINES],
    }
    for name, of_a_run in shares.items():
        kept = [n for n in of_a_run if _value(before, name) == max(1, before.train.steps // n)]
        untouched = _value(config, name) == _value(before, name) and n_steps != before.train.steps
        if not _value(config, name) or (kept and untouched):
            chosen[name] = max(1, n_steps // (kept or of_a_run)[0])
    return config.changed(chosen, where="the chosen settings")


def _changed(place: Path, before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Returns the settings that differ, without the length. Raises ConfigError for those that
    cannot change.
    """
    kind = {"model.kind": (before.model.kind, now.model.kind)}
    if before.model.kind != now.model.kind:  # its other settings cannot be compared
        now = replace(now, model=before.model)
    names = [name for name, _ in settings(type(before.model)) if name not in LENGTH]
    found = {name: (_value(before, name), _value(now, name)) for name in names} | kind
    found = {name: (old, new) for name, (old, new) in found.items() if old != new}
    if refused := [name for name in found if name not in CHANGEABLE]:
        differences = "; ".join(
            f"{name} was {_shown(found[name][0])} and is now {_shown(found[name][1])}"
            for name in refused
        )
        raise ConfigError(
            f"{place / 'config.toml'} differs from what {place} was trained with, in settings that "
            f"a run cannot change: {differences}. "
            "Restore the old values, or train a new run. Nothing was changed."
        )
    if now.train.truncated_bptt and "train.micro_batch_size" in found:
        raise ConfigError(
            f"{place} keeps a recurrent state for each of its micro-batches "
            f"(train.truncated_bptt), so train.micro_batch_size cannot change."
        )
    return found


def _with_leg(found: Resumed, checkpoint: Checkpoint) -> Resumed:
    changed = {name: [_as_json(old), _as_json(new)] for name, (old, new) in found.changed.items()}
    if found.extends and not found.config.train.minutes:
        changed["train.steps"] = [found.n_before, found.config.train.steps]
    leg = {
        "from_step": found.step,
        "wall_seconds": checkpoint.state.get("wall_seconds") or 0.0,
        "steps": found.config.train.steps,
        "minutes": found.config.train.minutes or None,
        "changed": changed,
    }
    if not found.extends:  # the same minutes continue
        leg["wall_seconds"] = found.legs[-1]["wall_seconds"]
    return replace(found, legs=[*found.legs, leg])


def _value(config: RunConfig, name: str) -> Any:
    return operator.attrgetter(name)(config)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
