"""`train` starts a run, `resume` continues one: from what the user asked to a finished run folder.

request.py  sources and settings -> config        choose.py  what was left open
loop.py     the training itself                   finish.py  the summary
resume.py   from a run and changes to a run that continues
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

from lmsmith.config import RunConfig, read_toml
from lmsmith.data.corpus import Corpus
from lmsmith.data.prepare.run_sources import prepare_run
from lmsmith.distributed.ranks import FOREVER, Ranks, joined, place_in_environment
from lmsmith.errors import ConfigError, UsageError
from lmsmith.optim.rates import TOGETHER, partial_note, scaled_together
from lmsmith.run_folder import create, free_place, open_run
from lmsmith.train.by_hand import for_reference
from lmsmith.train.checks import refuse_early
from lmsmith.train.choose import DEFAULT_MINUTES, describe, resolve
from lmsmith.train.device import Machine, device_name, set_up_process, survey
from lmsmith.train.finish import (
    CLOSING_SECONDS,
    LEAST_SECONDS,
    compress_seconds,
    finish,
    memory_in_words,
    saying_how_to_resume,
)
from lmsmith.train.hook_state import record
from lmsmith.train.hooks.hook import Hook
from lmsmith.train.hooks.order import names_of
from lmsmith.train.init_from import copy_model
from lmsmith.train.legs import about, first_leg
from lmsmith.train.lock import held, held_by_first
from lmsmith.train.log import say
from lmsmith.train.request import COMMAND_LINE, asked
from lmsmith.train.resume import count_again, new_training, resume_run
from lmsmith.train.trackers import check_installed


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
    where: str = COMMAND_LINE,
) -> tuple[Path, dict[str, Any]]:
    """Trains a model on `sources` and returns its run folder and summary.

    `changes`: settings by dotted name, given in `where`. `hooks`: your own, called between steps
    (`Hook`). `started`: the time.monotonic() from which `--minutes` counts; `reserve_seconds`: kept
    free at the end of them. Where torchrun starts lost processes again (`--max-restarts`), the run
    continues from its last checkpoint. Raises LmsmithError of every kind; where that comes before
    training begins, nothing appears at `out`.
    """
    started = time.monotonic() if started is None else started
    config, given = asked(sources, changes, where)
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
    if config.model.counted:
        _no_hooks(hooks)
        refuse_early(config, place_in_environment().world, given)
        return _count(_Request(config, given, out, (), started, reserve_seconds), console)
    if config.train.init_from:
        of = config.train.init_from
        note = f"model and tokenizer of {of}, learning rates a tenth of the preset's if not set"
        say(_of_first(console, place_in_environment()), f"note     {note}", indent=9)
    length = config.train
    if not (length.steps or length.tokens or length.epochs or length.minutes):
        config = config.changed({"train.minutes": DEFAULT_MINUTES}, where="the default")
    if partial := partial_note(config.optim, given):
        say(_of_first(console, place_in_environment()), f"note     {partial}", indent=9)
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
    where: str = COMMAND_LINE,
) -> dict[str, Any]:
    """Continues a run from its last complete checkpoint, or from step 0 where it has none yet.

    `changes`: settings by dotted name, of CHANGEABLE or one of LENGTH; they stay with the run, as
    do changes made in its config.toml by hand. `hooks`: the run's own hooks, and new ones;
    `without_hooks`: names of hooks that it gives up. A finished run continues if its length is
    another one, and otherwise stays as it is. `train.minutes` counts from now on; without it, a run
    with `--minutes` has what is left of them. Returns the run's summary. Raises ConfigError before
    anything is written where a setting cannot change; UsageError where a hook of the run is
    missing, or another process trains the run.
    """
    started = time.monotonic()
    changes = dict(changes or {})
    if "train.threads" in changes:
        changes = {"train.yield_cores": "no"} | changes
    config, corpus = open_run(place)
    if TOGETHER in changes:
        peak = changes.pop(TOGETHER)
        changes |= scaled_together(config, peak, changes.keys(), where)
    names_of(hooks)
    if config.model.counted:
        _no_hooks(hooks)
        return count_again(place, config, corpus, changes, console)
    check_installed(config.changed(changes, where=where).train.track)
    with joined(place_in_environment(device_name(config))) as ranks:
        console = _of_first(console, ranks)
        return resume_run(place, changes, console, started, ranks, hooks, without_hooks, where)


def _train(request: _Request, console: Console, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """`train` on each rank: rank 0 makes the run folder, in which the others find all they need."""
    config = request.config
    refuse_early(config, ranks.world, request.given)
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
    with (
        saying_how_to_resume(place, console),
        held_by_first(place, ranks, lambda message: say(console, message)),
    ):
        for line in describe(config, corpus, machine, ranks.world):
            say(console, line, indent=9)
        training = new_training(config, corpus, place, console, machine, ranks, request.hooks)
        training.context.about = about(config, [first_leg(config)])
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
        if config.train.init_from:
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


def _count(request: _Request, console: Console) -> tuple[Path, dict[str, Any]]:
    """`train` of an n-gram model, which has neither steps nor a clock."""
    from lmsmith.train.counting import (  # brings in the compiler
        check_length,
        count,
        resolve_counting,
    )

    for note in check_length(request.config, request.given):
        say(console, f"note     {note}", indent=9)

    def fill(folder: Path) -> tuple[RunConfig, Corpus]:
        corpus = _gathered(request.config, folder, console)
        return resolve_counting(request.config, request.given, corpus), corpus

    place = request.place()
    resolved, corpus = create(place, fill)
    with (
        saying_how_to_resume(place, console),
        held(place, lambda message: say(console, message)),
    ):
        return place, count(resolved, corpus, place, console)


def _gathered(config: RunConfig, folder: Path, console: Console) -> Corpus:
    """The tokens of a run, written into its folder; says what is to be said of them."""
    corpus = prepare_run(config.data, config.tokenizer, folder / "tokens")
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
    asked_for, is_there = (
        (of.data.paths, of.data.validation, of.train.init_from) for of in (config, theirs)
    )
    if is_there != asked_for:
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
