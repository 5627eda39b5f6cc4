"""Beginning a run and going on with one: from what the user asked to a finished run folder."""

from __future__ import annotations

import json
import math
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith import atomic
from lmsmith.config import CHANGEABLE, RunConfig, read_toml
from lmsmith.data.gather import gather
from lmsmith.data.prepare import Corpus
from lmsmith.errors import ConfigError, TrainingError, UsageError
from lmsmith.evaluate.compressors import compressed_bits_per_byte
from lmsmith.parallel.process import FOREVER, Ranks, joined, place_in_environment
from lmsmith.presets import has_size, preset, sized
from lmsmith.train.by_hand import for_reference
from lmsmith.train.choose import DEFAULT_MINUTES, describe, resolve
from lmsmith.train.log import say
from lmsmith.train.loop import Training
from lmsmith.train.machine import Machine, device_name, survey
from lmsmith.train.run import create, free_place, open_run, summary_of
from lmsmith.train.start_from import begun_with, copy_model
from lmsmith.train.step import is_out_of_memory
from lmsmith.train.trackers import check_installed

CLOSING_SECONDS = 3.0
"""Kept free at the end of `--minutes` for the samples, the report and leaving Python."""

LEAST_SECONDS = 2.0
"""With less than this for updates, `--minutes` is refused."""

COMPRESS_SECONDS_A_BYTE = 1.2e-6  # gzip -9 and xz -9e on English text


def asked(sources: Sequence[str], changes: Mapping[str, Any]) -> tuple[RunConfig, set[str]]:
    """The config that sources (text, at most one recipe) and the command line ask for, and which settings are set.

    Later wins: preset, recipe, command line. A run's own config.toml is a recipe; if the run had --minutes, it holds
    the number of steps that these came to as well, and that number repeats the run. Raises ConfigError, UsageError.
    """
    recipes = [source for source in sources if source.endswith(".toml")]
    if len(recipes) > 1:
        raise UsageError(f"{' and '.join(recipes)} are {len(recipes)} recipes: name one.")
    recipe = read_toml(Path(recipes[0])) if recipes else {}
    wanted = recipe | dict(changes)
    where = " and ".join([*recipes, *(["the command line"] if changes else [])])
    named = {key: value for key, value in wanted.items() if key == "preset"}
    base = preset(RunConfig().changed(named, where=where).preset)
    size = base.changed({k: v for k, v in wanted.items() if k == "model.size"}, where=where).model.size
    derived = sized(base, size) if size else _shape(base, wanted)
    named_again = changes if "model.size" in changes else wanted  # the command line's size is later than the recipe
    config = base.changed(recipe | derived | dict(named_again), where=where)
    texts = tuple(source for source in sources if not source.endswith(".toml"))
    if texts:
        config = replace(config, data=replace(config.data, sources=texts, source=()))
    if not config.data.paths:
        raise UsageError(
            f"the recipe {recipes[0]} names no text (data.sources): name text files beside it."
            if recipes
            else "there is no text to train on: name files or folders."
        )
    given = set(wanted)
    if config.train.start_from:
        config, given = begun_with(config, given)
    return _one_batch(_one_length(config, changes), given, changes)


def _one_length(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """What the run's length is said by, alone: the command line's before the recipe's. Raises ConfigError."""
    said = [f"train.{key}" for key in ("minutes", "steps", "tokens") if getattr(config.train, key)]
    ours = [key for key in said if key in changes] or said
    if ours == said and set(said) == {"train.minutes", "train.steps"} and not set(said) & set(changes):
        ours = ["train.steps"]  # of a run's own config.toml
    if len(ours) > 1:
        raise ConfigError(f"{' and '.join(ours)} say the run's length {len(ours)} times: set one of them.")
    return config.changed({key: 0 for key in said if key not in ours}, where="the run's length")


def _one_batch(config: RunConfig, given: set[str], changes: Mapping[str, Any]) -> tuple[RunConfig, set[str]]:
    """How large a batch is, said once: by the command line before the recipe. Raises ConfigError."""
    if not config.train.batch_tokens or "train.batch_size" not in given:
        return config, given
    ours = {"train.batch_size", "train.batch_tokens"} & set(changes)
    if ours == {"train.batch_tokens"}:
        return config, given - {"train.batch_size"}
    if ours == {"train.batch_size"}:
        return config.changed({"train.batch_tokens": 0}, where="the batch"), given
    raise ConfigError(
        f"train.batch_tokens = {config.train.batch_tokens} and train.batch_size = {config.train.batch_size} both say "
        "how large a batch is: set one of them."
    )


def _shape(base: RunConfig, wanted: Mapping[str, Any]) -> dict[str, int]:
    """Where one of width and heads is set and the other will be chosen: one that goes with it until then."""
    given = {"model.d_model", "model.n_head"} & set(wanted)
    if has_size(base.preset) or len(given) != 1 or base.model.kind != "gpt":
        return {}
    (name,) = given
    try:
        number = int(wanted[name])
    except (TypeError, ValueError):  # `changed` tells of it
        return {}
    if name == "model.n_head":
        return {"model.d_model": 64 * max(1, number)}
    return {"model.n_head": max([h for h in range(1, 7) if number % (2 * h) == 0], default=1)}


def train(
    sources: Sequence[str],
    changes: Mapping[str, Any],
    *,
    out: Path | None,
    console: Console,
    started: float | None = None,
    reserve_seconds: float = 0.0,
) -> tuple[Path, dict[str, Any]]:
    """Trains a model on `sources` and returns its run folder and summary.

    `changes`: settings by dotted name. `started`: the time.monotonic() from which `--minutes` counts.
    `reserve_seconds`: kept free at the end of them for what the caller has yet to do. Where torchrun starts lost
    processes again (`--max-restarts`), the run goes on at its last checkpoint. Raises LmsmithError of every kind;
    where that comes before training begins, nothing appears at `out`.
    """
    started = time.monotonic() if started is None else started
    config, given = asked(sources, changes)
    if out is None and _restarts():
        raise UsageError(
            "torchrun's --max-restarts starts the same command again: name the run's folder with --out RUN, so that "
            "the run goes on there."
        )
    if out is not None and _may_go_on(out, config):
        return out, resume(out, console=console)
    if config.train.engine == "reference":
        config, notes = for_reference(config, given)
        for note in notes:
            say(console, f"note     {note}", indent=9)
    if config.model.kind == "ngram":
        return _count(config, given, out, console)
    if config.train.start_from:
        note = f"model and tokenizer of {config.train.start_from}, learning rates a tenth of the preset's if not set"
        say(_of_first(console, place_in_environment()), f"note     {note}", indent=9)
    if not (config.train.steps or config.train.tokens or config.train.minutes):
        config = config.changed({"train.minutes": DEFAULT_MINUTES}, where="the default")
    check_installed(config.train.track)
    with joined(place_in_environment(device_name(config))) as ranks:
        return _train(config, given, out, _of_first(console, ranks), started, reserve_seconds, ranks)


def _may_go_on(out: Path, config: RunConfig) -> bool:
    """Whether torchrun, which has been told to, may have started this process in the place of a lost one of this run.

    How often it has is known on each machine for itself alone. UsageError where the run there is another one.
    """
    if not _restarts() or not (out / "config.toml").is_file():
        return False
    theirs = RunConfig().changed(read_toml(out / "config.toml"), where=str(out / "config.toml"))
    if (theirs.data.paths, theirs.train.start_from) != (config.data.paths, config.train.start_from):
        raise UsageError(
            f"{out} holds a run on {', '.join(theirs.data.paths)}: torchrun's --max-restarts would go on with that "
            "one. Choose another --out, or `lmsmith resume` it."
        )
    return True


def _restarts() -> int:
    """How often torchrun starts lost processes again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def _count(config: RunConfig, given: set[str], out: Path | None, console: Console) -> tuple[Path, dict[str, Any]]:
    """`train` of an n-gram model, which has neither updates nor a clock."""
    from lmsmith.train.counting import count, resolve_counting  # brings in the compiler

    def fill(folder: Path) -> tuple[RunConfig, Corpus]:
        corpus = gather(config.data, config.tokenizer, folder / "tokens")
        for note in corpus.counts.notes:
            say(console, f"note     {note}", indent=9)
        return resolve_counting(config, given, corpus), corpus

    place = free_place(out, Path(config.data.paths[0]).name.split(".")[0])
    resolved, corpus = create(place, fill)
    with _or_resume(place, console):
        return place, count(resolved, corpus, place, console)


def _train(
    config: RunConfig,
    given: set[str],
    out: Path | None,
    console: Console,
    started: float,
    reserve_seconds: float,
    ranks: Ranks,
) -> tuple[Path, dict[str, Any]]:
    """`train` in each of `ranks`: the first one makes the run folder, in which the others find all they need."""
    if config.train.engine == "reference" and ranks.world > 1:
        raise ConfigError("the reference engine is one process: start it without torchrun, or train by --engine torch.")
    machine = survey(config, ranks)
    budget = config.train.minutes * 60 - CLOSING_SECONDS - reserve_seconds

    def fill(folder: Path) -> tuple[RunConfig, Corpus]:
        corpus = gather(config.data, config.tokenizer, folder / "tokens")
        for note in corpus.counts.notes:
            say(console, f"note     {note}", indent=9)
        spent = time.monotonic() - started
        rest = budget - compress_seconds(folder / "tokens") - spent
        if config.train.minutes and rest < LEAST_SECONDS:
            closing = config.train.minutes * 60 - rest - spent
            enough = math.ceil((spent + closing + 5 * LEAST_SECONDS) / 6) / 10
            raise ConfigError(
                f"train.minutes = {config.train.minutes:g} leaves no time to train: beginning took {spent:.0f} s here, "
                f"and closing the run takes {closing:.0f} s. Set --minutes {enough:g} or more, or --steps."
            )
        # A tenth goes to evaluations and saves; without a clock, a size as for some minutes.
        seconds = 0.9 * rest if config.train.minutes else 300.0
        if config.train.start_from:
            copy_model(config, folder)
        with _memory_in_words():
            return resolve(config, given, corpus, machine, seconds, ranks.world), corpus

    made: list[tuple[RunConfig, Corpus]] = []

    def make() -> str:
        place = free_place(out, Path(config.data.paths[0]).name.split(".")[0])
        made.append(create(place, fill))
        return str(place)

    place = Path(ranks.first_makes(make, FOREVER))
    config, corpus = made[0] if made else open_run(place)
    with _or_resume(place, console):
        for line in describe(config, corpus, machine, ranks.world):
            say(console, line, indent=9)
        training = _training(config, corpus, place, console, machine, ranks)
        training.begin()
        if config.train.minutes:
            training.deadline = started + budget - compress_seconds(place / "tokens")
        return place, _finish(training, config)


def resume(place: Path, changes: Mapping[str, Any] | None = None, *, console: Console) -> dict[str, Any]:
    """Goes on with a run from its last whole checkpoint, or from its beginning where it has none yet.

    `changes`: settings by dotted name, of CHANGEABLE; they stay with the run.
    With `--minutes` the run has what is left of them after the time it had trained for. A run that has ended stays as
    it is. Returns its summary.
    """
    started = time.monotonic()
    config, corpus = open_run(place)
    if config.model.kind == "ngram" and not summary_of(place):
        from lmsmith.train.counting import count

        with _or_resume(place, console):
            return count(config, corpus, place, console)
    check_installed(config.train.track)
    with joined(place_in_environment(device_name(config))) as ranks:
        return _resume(place, changes or {}, _of_first(console, ranks), started, ranks)


def _resume(place: Path, changes: Mapping[str, Any], console: Console, started: float, ranks: Ranks) -> dict[str, Any]:
    config, corpus = open_run(place)
    summary = summary_of(place)
    if summary.get("finished") not in (None, "signal"):
        say(console, f"{place} is finished, at step {summary['steps']:,}: there is nothing to go on with")
        return summary
    assert set(changes) <= CHANGEABLE, changes
    if config.train.carry_state and "train.micro_batch_size" in changes:
        raise ConfigError(f"{place} carries a state for each of its micro-batches: their size stays as it is.")
    if changes:
        if "train.threads" in changes:
            changes = {"train.yield_cores": "no"} | dict(changes)
        config = config.changed(changes, where="the command line")
        if ranks.first:
            atomic.write(place / "config.toml", config.to_toml())
    with _or_resume(place, console):
        training = _training(config, corpus, place, console, survey(config, ranks), ranks)
        if training.restore():
            so_far = training.so_far
            say(console, f"resuming {place} at step {so_far.step:,} of {so_far.n_steps:,}")
        else:
            training.begin()
            say(console, f"{place} has no checkpoint yet: it begins at step 0")
        if config.train.minutes:
            closing = CLOSING_SECONDS + compress_seconds(place / "tokens")
            training.deadline = started + config.train.minutes * 60 - closing - training.so_far.wall_seconds
        return _finish(training, config)


def _of_first(console: Console, ranks: Ranks) -> Console:
    """One process speaks for all."""
    return console if ranks.first else Console(quiet=True)


def _training(
    config: RunConfig, corpus: Corpus, place: Path, console: Console, machine: Machine, ranks: Ranks
) -> Training:
    if config.train.carry_state and ranks.world > 1:
        raise ConfigError("train.carry_state keeps its states in one process: start it without torchrun.")
    if config.train.batch_size % ranks.world or config.train.batch_start % ranks.world:
        raise ConfigError(
            f"train.batch_size = {config.train.batch_size} cannot be shared evenly by {ranks.world} processes: set a "
            f"multiple of {ranks.world}, or start another number of processes."
        )
    peak_flops = machine.flops * ranks.world
    return Training(config, corpus, place, console, device=machine.device, peak_flops=peak_flops, ranks=ranks)


def _finish(training: Training, config: RunConfig) -> dict[str, Any]:
    """Trains a run to its end and writes its summary, compressors' scores on the same text included."""
    summary, place = training.go(), training.run
    if not training.ranks.first:
        return summary
    text = place / "tokens" / "validation.txt"  # of ready shards it may be too large to have been written out
    if summary["finished"] != "signal" and text.exists():
        summary["baselines"] = compressed_bits_per_byte(text.read_bytes())
    if summary["finished"] == "time":  # what repeats this run without a clock
        steps = {"train.steps": summary["steps"]}
        atomic.write(place / "config.toml", config.changed(steps, where="the clock").to_toml())
    atomic.write(place / "summary.json", json.dumps(summary, indent=1) + "\n")  # last: it says that the run has ended
    return summary


@contextmanager
def _or_resume(place: Path, console: Console) -> Iterator[None]:
    """Says how to go on where a run is ended before its time, and puts memory that does not suffice into words."""
    try:
        with _memory_in_words():
            yield
    except KeyboardInterrupt:
        say(console, f"`lmsmith resume {shlex.quote(str(place))}` goes on from what is saved")
        raise


@contextmanager
def _memory_in_words() -> Iterator[None]:
    """Puts memory that does not suffice into words."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise TrainingError(
            "this machine's memory does not suffice. Set a smaller --train.micro_batch_size (the batch stays as it "
            "is; `lmsmith resume` takes it too), --train.recompute yes, or a smaller --model.context_length or model."
        ) from error


def compress_seconds(tokens: Path) -> float:
    """About how long the compressors take on a run's validation text, if it has that as text."""
    text = tokens / "validation.txt"
    return text.stat().st_size * COMPRESS_SECONDS_A_BYTE if text.exists() else 0.0
