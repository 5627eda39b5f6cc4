"""What a resumed run changes: its length, and settings that may change on the way.

A checkpoint holds the config that it was trained with and the run's legs. `resume` compares:
RUN/config.toml, which may have been edited by hand, and the command line ask for a config; the
checkpoint says what the run had so far. What may change (`CHANGEABLE`, and the length) is applied
and logged. What may not is refused by name.

A leg is a stretch of steps under one plan. A run that is extended, or whose optimizer, schedule or
dropout change, begins a new leg. A leg's checkpoint is written before its first step, so that a run
which is killed then goes on with the leg.

The learning rate is a function of the step and of the number of steps (`optim/schedule.py`), before
and after an extension: a new leg has the learning rate that a run planned for the new number of
steps has at that step.
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
from lmsmith.data.batches.packing import batches_of
from lmsmith.data.corpus import Corpus
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.optim.rates import partial_note
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

log = logging.getLogger(__name__)

_LEARNT = ("optim.", "schedule.", "model.")  # settings that change what is learnt, not how fast


@dataclass(frozen=True)
class Resumed:
    """What a resumed run is to be. `step`: of the newest checkpoint; `n_before`: how many were
    planned until now.
    """

    config: RunConfig
    changed: dict[str, tuple[Any, Any]]  # by name: before and now; the length is told apart
    extends: bool  # the length is another one
    step: int
    n_before: int
    legs: list[dict[str, Any]]
    before: RunConfig  # what the checkpoint was trained with

    @property
    def new_leg(self) -> bool:
        return self.extends or any(name.startswith(_LEARNT) for name in self.changed)

    def planned(self, n_steps: int) -> Resumed:
        """With the number of steps that `--minutes` come to."""
        config = _rhythm(
            self.config.changed({"train.steps": n_steps}, where="the time there is"), self.before
        )
        legs = [*self.legs[:-1], self.legs[-1] | {"steps": n_steps}]
        return replace(self, config=config, legs=legs)


def resumed(
    place: Path, config: RunConfig, corpus: Corpus, changes: Mapping[str, Any], where: str
) -> Resumed | None:
    """What the run at `place` becomes; None where it is finished and stays so.

    `config`: of its config.toml. `changes`: settings, given in `where`. Reads only. Raises
    ConfigError for a setting that cannot change on the way, and for a length that cannot be;
    CheckpointError where there is nothing to go on from.
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
        raise CheckpointError(f"{place} is finished and holds no checkpoint to go on from.")
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
    """What a checkpoint says of its run besides how far it is."""
    return {"config": flatten(asdict(config)), "legs": legs}


def legs_of(about: Mapping[str, Any], step: int) -> list[dict[str, Any]]:
    """The legs for summary.json: each with its first and last step and what was changed when it
    began.
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
    """What changes, for the user to read."""
    config, lines = found.config, []
    lines += [
        f"changed  {name}: {_shown(old)} before, {_shown(new)} from step {found.step:,} on"
        for name, (old, new) in found.changed.items()
    ]
    if partial := partial_note(config.optim, found.changed, resumed=True):
        lines.append(f"note     {partial}")
    if found.extends:
        batches = batches_of(config, corpus.train, corpus.tokenizer)
        n, tokens = config.train.steps, (config.train.steps - found.step) * batches.tokens_per_batch
        minutes = f", what {config.train.minutes:g} minutes allow" if config.train.minutes else ""
        lines.append(
            f"training {n - found.step:,} more steps of {config.train.batch_size} x "
            f"{config.model.context_length} "
            f"tokens = {tokens:,}: {n:,} steps instead of {found.n_before:,}{minutes}; "
            + schedule_in_words(config.schedule, found.step, found.n_before, n)
            + f"; evaluations every {config.train.eval_every:,} steps"
        )
    return lines


def schedule_in_words(schedule: ScheduleConfig, step: int, n_before: int, n_steps: int) -> str:
    """What the learning rate does when a run of `n_before` steps becomes one of `n_steps` at
    `step`.
    """
    shape = schedule.shape
    if shape == "constant":
        return "constant: the learning rate stays at its peak"
    if shape == "inverse-sqrt":
        return (
            "inverse-sqrt: the learning rate goes on falling as 1/sqrt(step), as it would have "
            "in any case"
        )
    then = learning_rate_share(max(0, step - 1), n_before, schedule)
    now = learning_rate_share(step, n_steps, schedule)
    final = schedule.final_fraction
    return (
        f"{shape}: the learning rate goes from {then:.0%} of its peak to {now:.0%}, where a run "
        f"planned for {n_steps:,} steps has it at step {step:,}, and comes down to {final:.0%} at "
        f"step {n_steps:,}"
    )


def write_events(run: Path, found: Resumed, evaluated_step: int) -> None:
    """Tells metrics.jsonl what changes. Raises StorageError."""
    messages = [
        f"{name} was {_shown(old)} and is {_shown(new)}"
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
    """Marks the summary of a finished run as that of one that goes on. Raises StorageError."""
    summary = summary_of(run)
    if summary.get("finished") not in (None, "signal"):
        write_json(run / "summary.json", summary | {"finished": None})


def _before(config: RunConfig, checkpoint: Checkpoint | None) -> RunConfig:
    """The config that the checkpoint was trained with. Earlier versions did not say it: then
    that of config.toml.
    """
    if checkpoint and "config" in checkpoint.about:
        said = checkpoint.about["config"]
        known = dict(settings(MODEL_KINDS.get(said.get("model.kind", "gpt"))))
        kept = {name: value for name, value in said.items() if name in known or name in RENAMED}
        return RunConfig().changed(kept, where="the checkpoint")
    if checkpoint:
        log.warning(
            "note: the checkpoint at step %s is of an earlier version and holds no settings. "
            "Those in config.toml are used: whether they were edited cannot be checked",
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
    """The config with the length that is asked for, said once, and whether it is another one.

    `made`: how many steps the run has made, as its summary and its newest checkpoint say.
    """
    ours = [name for name in LENGTH if name in changes]
    if not ours:
        ours = [name for name in LENGTH if _value(before, name) != _value(now, name)]
        timed = bool(before.train.minutes) and before.train.minutes == now.train.minutes
        if timed and now.train.steps in made and ours == ["train.steps"]:
            ours = []  # a run with --minutes writes at its end how many steps these came to
        if not ours:
            return now, False
        ours = [name for name in ours if _value(now, name)] or ["train.steps"]
    if len(ours) > 1:
        raise ConfigError(
            f"{' and '.join(ours)} say the length of {place} {len(ours)} times: set one of them."
        )
    (name,) = ours
    if not _value(now, name):
        raise ConfigError(f"{name} = 0: wanted how long {place} is to be.")
    lengths = {other: 0 for other in LENGTH if other != name}
    now = now.changed(lengths, where="the run's length")
    same = (
        name == "train.steps" and now.train.steps == before.train.steps and not before.train.minutes
    )
    return now, finished or not same


def _check_extension(
    place: Path, before: RunConfig, checkpoint: Checkpoint | None, changed: Mapping[str, Any]
) -> None:
    """Raises ConfigError where the run cannot have another length."""
    train = before.train
    if train.initial_batch_size:
        raise ConfigError(
            f"train.initial_batch_size = {train.initial_batch_size}: the batches of {place} grow "
            f"with its number of "
            "steps, so that number stays as it is."
        )
    reached = checkpoint is not None and checkpoint.state.get("seconds_to_target") is not None
    if reached and "train.stop_at_val_loss" not in changed:
        raise ConfigError(
            f"{place} has reached its target, train.stop_at_val_loss = {train.stop_at_val_loss:g}, "
            "and ended. To train on, set a lower one as well, or --stop-at-val-loss 0."
        )


def _in_steps(place: Path, config: RunConfig, corpus: Corpus, step: int) -> RunConfig:
    """The length in steps, where it is not said in minutes. Raises ConfigError where the run has
    made as many.
    """
    train = config.train
    if train.minutes:
        return config
    tokens_a_step = batches_of(config, corpus.train, corpus.tokenizer).tokens_per_batch
    if train.epochs:
        n_steps, said = steps_of_epochs(config, corpus), f"train.epochs = {train.epochs:g}"
    elif train.tokens:
        n_steps, said = train.tokens // tokens_a_step, f"train.tokens = {train.tokens:,}"
    else:
        n_steps, said = train.steps, f"train.steps = {train.steps:,}"
    if n_steps <= step:
        raise ConfigError(
            f"{place} has made {step:,} steps ({step * tokens_a_step:,} tokens), and {said} is "
            f"its length in all, "
            "these included. Set more, or `lmsmith train` a shorter run."
        )
    length = {"train.steps": n_steps, "train.tokens": 0, "train.epochs": 0}
    return config.changed(length, where="the run's length")


def _rhythm(config: RunConfig, before: RunConfig) -> RunConfig:
    """Where the steps between evaluations and log lines are 0, or were chosen for another
    length: chosen anew.
    """
    n_steps, chosen = config.train.steps, dict[str, int]()
    if not n_steps:  # it is not known yet
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
    return config.changed(chosen, where="what was chosen")


def _changed(place: Path, before: RunConfig, now: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that differ, but for the length. Raises ConfigError for those that cannot
    change on the way.
    """
    kind = {"model.kind": (before.model.kind, now.model.kind)}
    if before.model.kind != now.model.kind:  # its other settings cannot be compared
        now = replace(now, model=before.model)
    names = [name for name, _ in settings(type(before.model)) if name not in LENGTH]
    found = {name: (_value(before, name), _value(now, name)) for name in names} | kind
    found = {name: (old, new) for name, (old, new) in found.items() if old != new}
    if refused := [name for name in found if name not in CHANGEABLE]:
        told = "; ".join(
            f"{name} was {_shown(found[name][0])} and is {_shown(found[name][1])}"
            for name in refused
        )
        raise ConfigError(
            f"{place / 'config.toml'} is not what {place} was trained with, and this cannot "
            f"change on the way: {told}. "
            "Set it back, or train a new run with it. Nothing was changed."
        )
    if now.train.truncated_bptt and "train.micro_batch_size" in found:
        raise ConfigError(
            f"{place} carries a state for each of its micro-batches: their size stays as it is."
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
    if not found.extends:  # the time there is goes on
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
