"""Resumes a run from its newest checkpoint, with the changes that `legs.py` allows."""

from __future__ import annotations

import math
import os
import shlex
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith import atomic
from lmsmith.config import RunConfig
from lmsmith.data.corpus import Corpus
from lmsmith.distributed.ranks import LONG, Ranks, ranks_from_environment
from lmsmith.errors import ConfigError, UsageError
from lmsmith.run_folder import open_run, summary_of
from lmsmith.train.checks import check_ranks, refuse_early
from lmsmith.train.choose import seconds_a_step_of_share
from lmsmith.train.device import Machine, set_up_process, survey
from lmsmith.train.finish import (
    CLOSING_SECONDS,
    LEAST_SECONDS,
    compress_seconds,
    explain_out_of_memory,
    explain_resume,
    finish,
)
from lmsmith.train.hooks.hook import Hook
from lmsmith.train.legs import Resumed, about, plan_lines, reopen, resumed, write_events
from lmsmith.train.lock import held, held_by_first
from lmsmith.train.log import say
from lmsmith.train.loop import Training


def resume_run(
    place: Path,
    changes: Mapping[str, Any],
    console: Console,
    started: float,
    ranks: Ranks,
    hooks: Sequence[Hook],
    without_hooks: Collection[str],
    where: str,
) -> dict[str, Any]:
    """`lmsmith.train.start.resume` on each rank. `started`: when `train.minutes` start to count."""
    config, corpus = open_run(place)
    changes = _minutes_counted_once(changes, config, ranks, where)
    found = resumed(place, config, corpus, changes, where)
    if found is None:
        return _finished(place, console)
    check_ranks(found.config, ranks.world)
    with (
        explain_resume(place, console),
        held_by_first(place, ranks, lambda message: say(console, message)),
    ):
        config, corpus = open_run(place)  # again, because another process may just have ended
        found = resumed(place, config, corpus, changes, where)
        ranks.wait(LONG)  # all ranks have read the files before rank 0 changes them
        if found is None:
            return summary_of(place)
        machine = survey(found.config, ranks)
        set_up_process(machine)
        closing = CLOSING_SECONDS + compress_seconds(place / "tokens")
        if found.extends and found.config.train.minutes:
            found = _in_time(found, corpus, machine, closing + time.monotonic() - started, ranks)
        training = new_training(found.config, corpus, place, console, machine, ranks, hooks)
        training.context.about = about(found.config, found.legs)
        _continue(training, found, config, without_hooks)
        if minutes := found.config.train.minutes:
            spent = training.state.wall_seconds - found.legs[-1]["wall_seconds"]
            training.context.deadline = started + minutes * 60 - closing - spent
        return finish(training)


def new_training(
    config: RunConfig,
    corpus: Corpus,
    place: Path,
    console: Console,
    machine: Machine,
    ranks: Ranks,
    hooks: Sequence[Hook],
) -> Training:
    """Creates a run to begin or restore. Raises ConfigError if the ranks cannot share a batch."""
    check_ranks(config, ranks.world)
    return Training(
        config,
        corpus,
        place,
        console,
        device=machine.device,
        peak_flops=machine.flops * ranks.world,
        ranks=ranks,
        hooks=hooks,
    )


def count_again(
    place: Path, config: RunConfig, corpus: Corpus, changes: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """Resumes an n-gram model: after an interruption, counts from the beginning."""
    from lmsmith.train.counting import count  # imports the compiler, which is slow

    if changes:
        raise UsageError(
            f"{place} is an n-gram model, which is counted once, so {', '.join(changes)} cannot "
            "change. Train a new one."
        )
    refuse_early(config, ranks_from_environment().world)
    if summary := summary_of(place):
        say(console, f"{place} is finished: an n-gram model is counted once and cannot continue")
        return summary
    with (
        explain_resume(place, console),
        held(place, lambda message: say(console, message)),
    ):
        return count(config, corpus, place, console)


def _minutes_counted_once(
    changes: Mapping[str, Any], config: RunConfig, ranks: Ranks, where: str
) -> dict[str, Any]:
    """Drops `train.minutes` if torchrun has restarted the command: the first start's time limit
    still applies.
    """
    minutes = config.changed(changes, where=where).train.minutes
    (restarted,) = ranks.max(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    again = restarted and minutes == config.train.minutes
    return {k: v for k, v in changes.items() if not (again and k == "train.minutes")}


def _finished(place: Path, console: Console) -> dict[str, Any]:
    """Says that the run is finished and how to extend it; returns the summary."""
    summary = summary_of(place)
    say(
        console,
        f"{place} is finished at step {summary['steps']:,}; to train further, set a new length: "
        f"`lmsmith resume {shlex.quote(str(place))} --steps N` (or --minutes, --tokens)",
    )
    return summary


def _continue(
    training: Training, found: Resumed, config: RunConfig, without_hooks: Collection[str]
) -> None:
    """Loads the newest checkpoint; for a new leg, writes it again. `config`: as in config.toml."""
    context = training.context
    place, console = context.run, context.console
    restored = training.restore(without_hooks=without_hooks)
    if not restored:
        training.begin()
        say(console, f"{place} has no checkpoint yet: starting at step 0")
    state = training.state
    if not restored or found.extends or not found.config.train.minutes:
        state.n_steps = found.config.train.steps
    if "train.stop_at_val_loss" in found.changed:
        state.seconds_to_target = math.inf
    for line in plan_lines(found, context.corpus):
        say(console, line, indent=9)
    if restored:
        say(console, f"resuming {place} at step {state.step:,} of {state.n_steps:,}")
    for event in context.events:
        say(console, f"note     {event}", indent=9)
    if context.ranks.first and found.config != config:
        atomic.write(place / "config.toml", found.config.to_toml())
    context.leg_start = min(found.legs[-1]["from_step"], state.step)
    if restored and found.new_leg:
        training.rewrite_checkpoint()
    if context.ranks.first:
        reopen(place)
        write_events(place, found, state.evaluated_step)


def _in_time(
    found: Resumed, corpus: Corpus, machine: Machine, spent: float, ranks: Ranks
) -> Resumed:
    """Plans a new leg with the steps that fit into its minutes.

    `spent`: seconds of these minutes that are not available for steps. Raises ConfigError if too
    few remain.
    """
    config = found.config
    rest = config.train.minutes * 60 - spent

    def measure() -> str:
        if rest < LEAST_SECONDS:
            enough = math.ceil((spent + 5 * LEAST_SECONDS) / 6) / 10
            raise ConfigError(
                f"train.minutes = {config.train.minutes:g} leaves no time to train: setting up and "
                f"closing the run take {spent:.0f} s. Set --minutes {enough:g} or more, or --steps."
            )
        with explain_out_of_memory():
            seconds = seconds_a_step_of_share(config, corpus, machine, ranks.world)
        fit = int(0.9 * rest / seconds)  # a tenth is for evaluations and checkpoints
        return str(found.step + max(1, fit))

    return found.planned(int(ranks.on_rank_zero(measure)))
