"""`train` starts a run and `resume` continues one.

request.py  sources and settings -> config        choose.py  chooses the settings left open
loop.py     the training loop                     finish.py  writes the summary
resume.py   loads a checkpoint and applies changed settings
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

from lmsmith.config import ModelConfig, RunConfig, read_toml
from lmsmith.data.corpus import Corpus
from lmsmith.data.prepare.run_sources import prepare_run
from lmsmith.distributed.ranks import FOREVER, Ranks, joined, ranks_from_environment
from lmsmith.errors import ConfigError, UsageError
from lmsmith.optim.rates import TOGETHER, note_on_rates, scale_all_groups
from lmsmith.plan.forecast import time_warning
from lmsmith.run_folder import create, new_run_path, open_run
from lmsmith.tokens import ahead
from lmsmith.train.by_hand import for_reference
from lmsmith.train.checks import refuse_early
from lmsmith.train.choose import DEFAULT_MINUTES, limited_by_time, resolve
from lmsmith.train.describe import describe
from lmsmith.train.device import Machine, device_name, set_up_process, survey
from lmsmith.train.finish import (
    CLOSING_SECONDS,
    LEAST_SECONDS,
    compress_seconds,
    explain_out_of_memory,
    explain_resume,
    finish,
)
from lmsmith.train.hook_state import record
from lmsmith.train.hooks.hook import Hook
from lmsmith.train.hooks.order import names_of
from lmsmith.train.init_from import copy_model
from lmsmith.train.legs import about, first_leg
from lmsmith.train.lock import held, held_by_first
from lmsmith.train.log import say
from lmsmith.train.objective import objective_of
from lmsmith.train.request import COMMAND_LINE, asked
from lmsmith.train.resume import count_again, new_training, resume_run
from lmsmith.train.trackers import check_installed

Gather = Callable[[RunConfig, Path, Console], tuple[RunConfig, Corpus]]
"""Writes a run's tokens into its folder, and perhaps the weights to start from into its `model/`.
Returns the config, in which only `model.vocab_size` may have changed, and the tokens.
"""


@dataclass(frozen=True)
class _Request:
    """A new run to start. `given`: names of the settings that the user set."""

    config: RunConfig
    given: set[str]
    out: Path | None
    hooks: Sequence[Hook]
    started: float  # time.monotonic() at which --minutes starts to count
    reserve_seconds: float
    note: Callable[[ModelConfig], str | None]
    gather: Gather

    @property
    def budget(self) -> float:
        """Seconds from `started` until the run must start to close."""
        return self.config.train.minutes * 60 - CLOSING_SECONDS - self.reserve_seconds

    def place(self) -> Path:
        """Returns a free folder for the run. Raises UsageError, StorageError."""
        return new_run_path(self.out, Path(self.config.data.paths[0]).name.split(".")[0])


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
    note_on: Callable[[ModelConfig], str | None] = lambda model: None,
    gather: Gather | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Trains a model on `sources` and returns its run folder and summary.

    `changes`: settings by dotted name, given in `where` (for errors). `hooks`: your own hooks,
    called between steps (`Hook`). `started`: the time.monotonic() at which `--minutes` starts to
    count; `reserve_seconds`: time to keep free at its end. `note_on`: returns a note about
    the model, printed at the start. `gather`: writes the run's tokens; default: those of text and
    shards. If torchrun restarts lost processes
    (`--max-restarts`), the run continues from its last checkpoint. Raises LmsmithError of every
    kind; if that happens before training starts, nothing appears at `out`.
    """
    started = time.monotonic() if started is None else started
    gather = gather or gather_text
    config, given = asked(sources, changes, where)
    names_of(hooks)
    if out is None and _restarts():
        raise UsageError(
            "torchrun's --max-restarts starts the same command again. Name the run's folder with "
            "--out RUN, so that the run continues there."
        )
    if out is not None and _may_continue(out, config):
        return out, resume(out, console=console, hooks=hooks)
    if config.train.engine == "reference":
        config, notes = for_reference(config, given)
        for note in notes:
            say(console, f"note     {note}", indent=9)
    if config.model.counted:
        _no_hooks(hooks)
        refuse_early(config, ranks_from_environment().world, given)
        request = _Request(config, given, out, (), started, reserve_seconds, note_on, gather)
        return _count(request, console)
    for hint in (_fine_tuning(config), note_on_rates(config.optim, given)):
        if hint:
            say(_of_first(console, ranks_from_environment()), f"note     {hint}", indent=9)
    if limited_by_time(config) and not config.train.minutes:
        config = config.changed({"train.minutes": DEFAULT_MINUTES}, where="the default")
    check_installed(config.train.track)
    request = _Request(config, given, out, hooks, started, reserve_seconds, note_on, gather)
    with joined(ranks_from_environment(device_name(config))) as ranks:
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
    """Continues a run from its last complete checkpoint, or from step 0 if it has none yet.

    `changes`: settings by dotted name, from CHANGEABLE or one of LENGTH. They stay with the run, as
    do edits of its config.toml. `hooks`: the run's own hooks and new ones; `without_hooks`: names
    of hooks to drop. A finished run continues only if its length changes. `train.minutes` counts
    from now on; without it, a run with `--minutes` has the rest of its time. Returns the run's
    summary. Raises ConfigError if a setting cannot change, before anything is written; UsageError
    if a hook of the run is missing, or another process trains the run.
    """
    started = time.monotonic()
    changes = dict(changes or {})
    if "train.threads" in changes:
        changes = {"train.yield_cores": "no"} | changes
    config, corpus = open_run(place)
    if TOGETHER in changes:
        peak = changes.pop(TOGETHER)
        changes |= scale_all_groups(config, peak, changes.keys(), where)
    names_of(hooks)
    if config.model.counted:
        _no_hooks(hooks)
        return count_again(place, config, corpus, changes, console)
    check_installed(config.changed(changes, where=where).train.track)
    with joined(ranks_from_environment(device_name(config))) as ranks:
        console = _of_first(console, ranks)
        return resume_run(place, changes, console, started, ranks, hooks, without_hooks, where)


def _fine_tuning(config: RunConfig) -> str:
    """Returns a note about the model to start from; "" without one. Raises UsageError for adapters
    without a model.
    """
    of, rank = config.train.init_from, config.lora.rank
    if rank and not of:
        raise UsageError(
            f"lora.rank = {rank} trains adapters for a model that exists. Name it with --from RUN, "
            "or leave lora.rank out."
        )
    if rank:
        return f"fine-tuning adapters of rank {rank} for {of}, with AdamW unless set"
    tenth = "learning rates are a tenth of the preset's unless set"
    return f"fine-tuning {of} with its tokenizer; {tenth}" if of else ""


def _train(request: _Request, console: Console, ranks: Ranks) -> tuple[Path, dict[str, Any]]:
    """`train` on each rank: rank 0 creates the run folder, the other ranks read it."""
    config = request.config
    refuse_early(config, ranks.world, request.given)
    ahead.wait()  # what compiles beside this process would slow down the measurements
    machine = survey(config, ranks)
    set_up_process(machine)
    made: list[tuple[RunConfig, Corpus]] = []

    def make() -> str:
        place = request.place()
        made.append(create(place, _filled(request, machine, console, ranks)))
        return str(place)

    place = Path(ranks.on_rank_zero(make, FOREVER))
    config, corpus = made[0] if made else open_run(place)
    if not made:  # use what rank 0 measured, which may differ from this rank
        chosen = config.train
        machine = replace(machine, matmul=chosen.matmul, dtype=chosen.dtype, threads=chosen.threads)
        set_up_process(machine)
    with (
        explain_resume(place, console),
        held_by_first(place, ranks, lambda message: say(console, message)),
    ):
        for line in describe(config, corpus, machine, ranks.world):
            say(console, line, indent=9)
        if late := _late(request, config, machine, ranks.world):
            say(console, f"warning  {late}", indent=9)
        if formats := request.note(config.model):
            say(console, f"note     {formats}", indent=9)
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
    """Returns the function that fills a new run folder: tokens, config, starting weights."""

    def fill(folder: Path) -> tuple[RunConfig, Corpus]:
        config, corpus = request.gather(request.config, folder, console)
        for note in corpus.counts.notes:
            say(console, f"note     {note}", indent=9)
        seconds = _seconds_for_steps(request, folder)
        if config.train.init_from and not (folder / "model").exists():
            copy_model(config, folder)
        record(folder, request.hooks)
        with explain_out_of_memory():
            found = resolve(config, request.given, corpus, machine, seconds, ranks.world)
        return found, corpus

    return fill


def _seconds_for_steps(request: _Request, folder: Path) -> float:
    """Returns the time for steps, in seconds. Raises ConfigError if `--minutes` leaves none."""
    minutes = request.config.train.minutes
    if not minutes:
        return 300.0  # without a time limit, choose sizes for a run of some minutes
    spent = time.monotonic() - request.started
    rest = request.budget - compress_seconds(folder / "tokens") - spent
    if rest < LEAST_SECONDS:
        closing = minutes * 60 - rest - spent
        enough = math.ceil((spent + closing + 5 * LEAST_SECONDS) / 6) / 10
        raise ConfigError(
            f"train.minutes = {minutes:g} leaves no time to train: setting up took {spent:.0f} s, "
            f"and closing the run takes {closing:.0f} s. Set --minutes {enough:g} or more, "
            "or --steps."
        )
    return 0.9 * rest  # a tenth is for evaluations and checkpoints


def _late(request: _Request, config: RunConfig, machine: Machine, world: int) -> str:
    """A warning if the length that the user set does not end within `--minutes`; else ""."""
    if not config.train.minutes or limited_by_time(request.config):
        return ""
    seconds = 0.9 * (request.budget - (time.monotonic() - request.started))
    return time_warning(config, seconds, gpu=machine.device.type == "cuda", world=world)


def _count(request: _Request, console: Console) -> tuple[Path, dict[str, Any]]:
    """`train` for an n-gram model, which has no steps and no time limit."""
    from lmsmith.train.counting import (  # imports the compiler, which is slow
        check_length,
        count,
        resolve_counting,
    )

    for note in check_length(request.config, request.given):
        say(console, f"note     {note}", indent=9)

    def fill(folder: Path) -> tuple[RunConfig, Corpus]:
        _, corpus = request.gather(request.config, folder, console)
        for note in corpus.counts.notes:
            say(console, f"note     {note}", indent=9)
        return resolve_counting(request.config, request.given, corpus), corpus

    place = request.place()
    resolved, corpus = create(place, fill)
    with (
        explain_resume(place, console),
        held(place, lambda message: say(console, message)),
    ):
        if formats := request.note(resolved.model):
            say(console, f"note     {formats}", indent=9)
        return place, count(resolved, corpus, place, console)


def gather_text(config: RunConfig, folder: Path, console: Console) -> tuple[RunConfig, Corpus]:
    """The `Gather` of runs on text and shards."""
    objective = objective_of(config)
    if not objective.is_cross_entropy:
        raise UsageError(
            f"train.objective = {config.train.objective!r} is what `{objective.command}` does. Use "
            "that command, or leave the setting out."
        )
    if config.data.documents == "conversations":
        raise UsageError(
            "data.documents = 'conversations' is what `lmsmith tune RUN CHATS` does. Use that "
            "command, or leave the setting out."
        )
    return config, prepare_run(config.data, config.tokenizer, folder / "tokens")


def _no_hooks(hooks: Sequence[Hook]) -> None:
    if hooks:
        raise UsageError(
            f"the hook {hooks[0].name!r} runs between training steps, and an n-gram model has "
            "none. Leave hooks=[...] out, or choose another preset."
        )


def _may_continue(out: Path, config: RunConfig) -> bool:
    """Returns whether torchrun may have restarted this process for the run at `out`.

    Only torchrun on each machine knows how often it restarts. Raises UsageError if `out` holds
    another run.
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
            f"{out} holds another run, on {', '.join(theirs.data.paths)}, and torchrun's "
            "--max-restarts would continue that one. Choose another --out, or `lmsmith resume` it."
        )
    return True


def _restarts() -> int:
    """Returns the number of times that torchrun may restart lost processes (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def _of_first(console: Console, ranks: Ranks) -> Console:
    """Returns the console on rank 0, a silent one on other ranks."""
    return console if ranks.first else Console(quiet=True)
