"""`train` starts a run, `resume` continues one: from what the user asked to a finished run folder.

request.py  sources and settings -> config        choose.py  what was left open
loop.py     the training itself                   finish.py  the summary
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith import atomic
from lmsmith.config import CHANGEABLE, RunConfig, read_toml
from lmsmith.data.gather import gather
from lmsmith.data.prepare import Corpus
from lmsmith.errors import ConfigError, UsageError
from lmsmith.parallel.process import FOREVER, Ranks, joined, place_in_environment
from lmsmith.run_folder import create, free_place, open_run, summary_of
from lmsmith.train.by_hand import for_reference
from lmsmith.train.choose import DEFAULT_MINUTES, describe, resolve
from lmsmith.train.finish import compress_seconds, finish, memory_in_words, saying_how_to_resume
from lmsmith.train.hook_state import record
from lmsmith.train.hooks.hook import Hook
from lmsmith.train.hooks.order import names_of
from lmsmith.train.init_from import copy_model
from lmsmith.train.log import say
from lmsmith.train.loop import Training
from lmsmith.train.machine import Machine, device_name, set_up_process, survey
from lmsmith.train.request import asked
from lmsmith.train.trackers import check_installed

CLOSING_SECONDS = 3.0
"""Kept free at the end of `--minutes` for the samples, the report and leaving Python."""

LEAST_SECONDS = 2.0
"""With less than this for steps, `--minutes` is refused."""


@dataclass(frozen=True)
class _Request:
    """What a new run is to be. `given`: the settings that are set."""

    config: RunConfig
    given: set[str]
    out: Path | None
    hooks: Sequence[Hook]
    started: float  # time.monotonic() from which --minutes counts
    reserve_seconds: float

    @property
    def budget(self) -> float:
        """Seconds from `started` for all but the run's end."""
        return self.config.train.minutes * 60 - CLOSING_SECONDS - self.reserve_seconds

    def place(self) -> Path:
        """Where the run goes. Raises UsageError, StorageError."""
        return free_place(self.out, Path(self.config.data.paths[0]).name.split(".")[0])


def train(
    sources: Sequence[str],
    changes: Mapping[str, Any],
    *,
    out: Path | None,
    console: Console,
    started: float | None = None,
    reserve_seconds: float = 0.0,
    hooks: Sequence[Hook] = (),
) -> tuple[Path, dict[str, Any]]:
    """Trains a model on `sources` and returns its run folder and summary.

    `changes`: settings by dotted name. `hooks`: your own, called between steps (`Hook`).
    `started`: the time.monotonic() from which `--minutes` counts; `reserve_seconds`: kept free at
    the end of them. Where torchrun starts lost processes again (`--max-restarts`), the run
    continues from its last checkpoint. Raises LmsmithError of every kind; where that comes before
    training begins, nothing appears at `out`.
    """
    started = time.monotonic() if started is None else started
    config, given = asked(sources, changes)
    names_of(hooks)
    if out is None and _restarts():
        raise UsageError(
            "torchrun's --max-restarts starts the same command again: name the run's folder with "
            "--out RUN, so that the run goes on there."
        )
    if out is not None and _may_go_on(out, config):
        return out, resume(out, console=console, hooks=hooks)
    if config.train.engine == "reference":
        config, notes = for_reference(config, given)
        for note in notes:
            say(console, f"note     {note}", indent=9)
    if config.model.kind == "ngram":
        _no_hooks(hooks)
        return _count(_Request(config, given, out, (), started, reserve_seconds), console)
    if config.train.start_from:
        of = config.train.start_from
        note = f"model and tokenizer of {of}, learning rates a tenth of the preset's if not set"
        say(_of_first(console, place_in_environment()), f"note     {note}", indent=9)
    if not (config.train.steps or config.train.tokens or config.train.minutes):
        config = config.changed({"train.minutes": DEFAULT_MINUTES}, where="the default")
    check_installed(config.train.track)
    request = _Request(config, given, out, hooks, started, reserve_seconds)
    with joined(place_in_environment(device_name(config))) as ranks:
        return _train(request, _of_first(console, ranks), ranks)


def resume(
    place: Path,
    changes: Mapping[str, Any] | None = None,
    *,
    console: Console,
    hooks: Sequence[Hook] = (),
    without_hooks: Collection[str] = (),
) -> dict[str, Any]:
    """Continues a run from its last whole checkpoint, or from step 0 where it has none yet.

    `changes`: settings by dotted name, of CHANGEABLE; they stay with the run. `hooks`: the run's
    own hooks, and new ones; `without_hooks`: names of hooks that it gives up. With `--minutes` the
    run has what is left of them. A run that has ended stays as it is. Returns its summary. Raises
    LmsmithError; UsageError where a hook of the run is missing.
    """
    started = time.monotonic()
    config, corpus = open_run(place)
    names_of(hooks)
    if config.model.kind == "ngram" and not summary_of(place):
        from lmsmith.train.counting import count

        _no_hooks(hooks)
        with saying_how_to_resume(place, console):
            return count(config, corpus, place, console)
    check_installed(config.train.track)
    with joined(place_in_environment(device_name(config))) as ranks:
        console = _of_first(console, ranks)
        return _resume(place, changes or {}, console, started, ranks, hooks, without_hooks)


def _train(request: _Request, console: Console, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """`train` on each rank: rank 0 makes the run folder, in which the others find all they need."""
    config = request.config
    if config.train.engine == "reference" and ranks.world > 1:
        raise ConfigError("the reference engine is one process: start it without torchrun, or train by --engine torch.")
    machine = survey(config, ranks)
    set_up_process(machine)
    made: list[tuple[RunConfig, Corpus]] = []

    def make() -> str:
        place = request.place()
        made.append(create(place, _filled(request, machine, console, ranks)))
        return str(place)

    place = Path(ranks.on_rank_zero(make, FOREVER))
    config, corpus = made[0] if made else open_run(place)
    if not made:  # rank 0 may have measured otherwise
        chosen = config.train
        machine = replace(machine, matmul=chosen.matmul, dtype=chosen.dtype, threads=chosen.threads)
        set_up_process(machine)
    with saying_how_to_resume(place, console):
        for line in describe(config, corpus, machine, ranks.world):
            say(console, line, indent=9)
        training = _training(config, corpus, place, console, machine, ranks, request.hooks)
        training.begin()
        if config.train.minutes:
            seconds = request.budget - compress_seconds(place / "tokens")
            training.context.deadline = request.started + seconds
        return place, finish(training)


def _filled(
    request: _Request, machine: Machine, console: Console, ranks: Ranks
) -> Callable[[Path], tuple[RunConfig, Corpus]]:
    """What fills a new run folder: tokens, the resolved config, weights to begin with."""

    def fill(folder: Path) -> tuple[RunConfig, Corpus]:
        config = request.config
        corpus = _gathered(config, folder, console)
        seconds = _seconds_for_steps(request, folder)
        if config.train.start_from:
            copy_model(config, folder)
        record(folder, request.hooks)
        with memory_in_words():
            found = resolve(config, request.given, corpus, machine, seconds, ranks.world)
        return found, corpus

    return fill


def _seconds_for_steps(request: _Request, folder: Path) -> float:
    """The time there is for steps. Raises ConfigError where `--minutes` leaves too little."""
    minutes = request.config.train.minutes
    if not minutes:
        return 300.0  # without a clock, a size as for some minutes
    spent = time.monotonic() - request.started
    rest = request.budget - compress_seconds(folder / "tokens") - spent
    if rest < LEAST_SECONDS:
        closing = minutes * 60 - rest - spent
        enough = math.ceil((spent + closing + 5 * LEAST_SECONDS) / 6) / 10
        raise ConfigError(
            f"train.minutes = {minutes:g} leaves no time to train: beginning took {spent:.0f} s "
            f"here, and closing the run takes {closing:.0f} s. Set --minutes {enough:g} or more, "
            "or --steps."
        )
    return 0.9 * rest  # a tenth goes to evaluations and checkpoints


def _resume(
    place: Path,
    changes: Mapping[str, Any],
    console: Console,
    started: float,
    ranks: Ranks,
    hooks: Sequence[Hook],
    without_hooks: Collection[str],
) -> dict[str, Any]:
    config, corpus = open_run(place)
    summary = summary_of(place)
    if summary.get("finished") not in (None, "signal"):
        at = f"at step {summary['steps']:,}"
        say(console, f"{place} is finished, {at}: there is nothing to go on with")
        return summary
    assert set(changes) <= CHANGEABLE, changes
    if config.train.carry_state and "train.micro_batch_size" in changes:
        raise ConfigError(f"{place} carries a state for each of its micro-batches: their size stays as it is.")
    config = config.changed(changes, where="the command line") if changes else config
    machine = survey(config, ranks)
    set_up_process(machine)
    with saying_how_to_resume(place, console):
        training = _training(config, corpus, place, console, machine, ranks, hooks)
        if training.restore(without_hooks=without_hooks):
            state = training.state
            say(console, f"resuming {place} at step {state.step:,} of {state.n_steps:,}")
        else:
            training.begin()
            say(console, f"{place} has no checkpoint yet: it begins at step 0")
        for event in training.context.events:
            say(console, f"note     {event}", indent=9)
        if changes and ranks.first:
            atomic.write(place / "config.toml", config.to_toml())
        if config.train.minutes:
            closing = CLOSING_SECONDS + compress_seconds(place / "tokens")
            seconds = config.train.minutes * 60 - closing - training.state.wall_seconds
            training.context.deadline = started + seconds
        return finish(training)


def _training(
    config: RunConfig,
    corpus: Corpus,
    place: Path,
    console: Console,
    machine: Machine,
    ranks: Ranks,
    hooks: Sequence[Hook],
) -> Training:
    if config.train.carry_state and ranks.world > 1:
        raise ConfigError("train.carry_state keeps its states in one process: start it without torchrun.")
    if config.train.batch_size % ranks.world or config.train.batch_start % ranks.world:
        raise ConfigError(
            f"train.batch_size = {config.train.batch_size} cannot be shared evenly by {ranks.world} "
            f"processes: set a multiple of {ranks.world}, or start another number of processes."
        )
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


def _count(request: _Request, console: Console) -> tuple[Path, dict[str, Any]]:
    """`train` of an n-gram model, which has neither steps nor a clock."""
    from lmsmith.train.counting import count, resolve_counting  # brings in the compiler

    def fill(folder: Path) -> tuple[RunConfig, Corpus]:
        corpus = _gathered(request.config, folder, console)
        return resolve_counting(request.config, request.given, corpus), corpus

    place = request.place()
    resolved, corpus = create(place, fill)
    with saying_how_to_resume(place, console):
        return place, count(resolved, corpus, place, console)


def _gathered(config: RunConfig, folder: Path, console: Console) -> Corpus:
    """The tokens of a run, written into its folder; says what is to be said of them."""
    corpus = gather(config.data, config.tokenizer, folder / "tokens")
    for note in corpus.counts.notes:
        say(console, f"note     {note}", indent=9)
    return corpus


def _no_hooks(hooks: Sequence[Hook]) -> None:
    if hooks:
        raise UsageError(
            f"the hook {hooks[0].name!r} runs between steps, and an n-gram model is counted in one "
            "pass: leave hooks=[...] out, or choose another preset."
        )


def _may_go_on(out: Path, config: RunConfig) -> bool:
    """Whether torchrun, told to restart lost processes, may have started this one for this run.

    How often it has is known on each machine alone. UsageError where the run there is another one.
    """
    if not _restarts() or not (out / "config.toml").is_file():
        return False
    path = out / "config.toml"
    theirs = RunConfig().changed(read_toml(path), where=str(path))
    asked_for = (config.data.paths, config.train.start_from)
    if (theirs.data.paths, theirs.train.start_from) != asked_for:
        raise UsageError(
            f"{out} holds a run on {', '.join(theirs.data.paths)}: torchrun's --max-restarts would "
            "go on with that one. Choose another --out, or `lmsmith resume` it."
        )
    return True


def _restarts() -> int:
    """How often torchrun starts lost processes again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def _of_first(console: Console, ranks: Ranks) -> Console:
    """Rank 0 speaks for all."""
    return console if ranks.first else Console(quiet=True)
