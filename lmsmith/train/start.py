"""Beginning a run and going on with one: from what the user asked to a finished run folder."""

from __future__ import annotations

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
from lmsmith.config import NeuralConfig, RunConfig, read_toml
from lmsmith.config.presets import has_size, preset, sized
from lmsmith.data.corpus import Corpus
from lmsmith.data.prepare.run_sources import prepare_run as gather
from lmsmith.errors import ConfigError, TrainingError, UsageError
from lmsmith.evaluate.compressors import compressed_bits_per_byte
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.optim.rates import TOGETHER, partial_note, scaled_together
from lmsmith.parallel.process import FOREVER, LONG, Ranks, joined, place_in_environment
from lmsmith.strict_json import write_json
from lmsmith.tokens.files import FILE_NAME as TOKENIZER_FILE
from lmsmith.train.by_hand import for_reference
from lmsmith.train.checks import check_ranks, refuse_early
from lmsmith.train.choose import DEFAULT_MINUTES, describe, resolve, seconds_a_step_of_share
from lmsmith.train.init_from import begun_with, copy_model
from lmsmith.train.legs import (
    Resumed,
    about,
    first_leg,
    legs_of,
    plan_lines,
    reopen,
    resumed,
    write_events,
)
from lmsmith.train.lock import held, held_by_first
from lmsmith.train.log import say
from lmsmith.train.loop import Training
from lmsmith.train.machine import Machine, device_name, survey
from lmsmith.train.run import create, free_place, open_run, summary_of
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
    recipe = (
        _with_tokenizer_beside(read_toml(Path(recipes[0])), Path(recipes[0])) if recipes else {}
    )
    rate_place = "the command line" if TOGETHER in changes else "".join(recipes)
    peak, fixed, recipe, changes = _together(recipe, changes)
    wanted = recipe | dict(changes)
    # A mistake is blamed on the one of the two that holds it.
    where = dict.fromkeys(recipe, recipes[0] if recipes else "") | dict.fromkeys(
        changes, "the command line"
    )
    named = {key: value for key, value in wanted.items() if key == "preset"}
    base = preset(RunConfig().changed(named, where=where).preset)
    if "model.kind" in wanted:
        base = base.changed({"model.kind": wanted["model.kind"]}, where=where)
    derived = _derived(base, wanted, where)
    where = dict.fromkeys(derived, "what was chosen") | where
    named_again = (
        changes if "model.size" in changes else wanted
    )  # the command line's size is later than the recipe
    config = base.changed(recipe | derived | dict(named_again), where=where)
    texts = tuple(source for source in sources if not source.endswith(".toml"))
    if texts:
        config = replace(config, data=replace(config.data, sources=texts, mixture=()))
    if not config.data.paths:
        raise UsageError(
            f"the recipe {recipes[0]} names no text (data.sources): name text files beside it."
            if recipes
            else "there is no text to train on: name files or folders."
        )
    given = set(wanted)
    if peak is not None:
        rates = scaled_together(config, peak, fixed, rate_place)
        config, given = config.changed(rates, where=rate_place), given | set(rates)
    if config.train.init_from:
        config, given = begun_with(config, given)
    return _one_batch(_one_length(config, changes), given, changes)


def _derived(
    base: RunConfig, wanted: Mapping[str, Any], where: Mapping[str, str]
) -> dict[str, Any]:
    """Settings that follow from `model.size`, or from one given setting of the model."""
    if "model.size" in wanted:
        model = base.changed({"model.size": wanted["model.size"]}, where=where).model
        if isinstance(model, GPTConfig) and model.size:
            return sized(base, model.size)
    if has_size(base.preset) or not isinstance(base.model, NeuralConfig):
        return {}
    return base.model.fitting(wanted)


def _together(
    recipe: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[Any, set[str], dict[str, Any], dict[str, Any]]:
    """`learning_rate` of all groups, the rates that it does not move, and recipe and changes without it.

    It does not move the rates that are set where it is set, or later.
    """
    peak = changes.get(TOGETHER, recipe.get(TOGETHER))
    fixed = {*changes, *(() if TOGETHER in changes else recipe)}
    plain = (
        {name: value for name, value in asked.items() if name != TOGETHER}
        for asked in (recipe, changes)
    )
    return peak, fixed, *plain


def _with_tokenizer_beside(recipe: dict[str, Any], path: Path) -> dict[str, Any]:
    """The recipe, with a tokenizer that lies beside it named from here: config.toml of an imported run says `model`."""
    name = recipe.get("tokenizer")
    beside = path.parent / name if isinstance(name, str) and name else path
    return recipe | {"tokenizer": str(beside)} if (beside / TOKENIZER_FILE).is_file() else recipe


def _one_length(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """What the run's length is said by, alone: the command line's before the recipe's. Raises ConfigError."""
    said = [
        f"train.{key}"
        for key in ("minutes", "steps", "tokens", "epochs")
        if getattr(config.train, key)
    ]
    ours = [key for key in said if key in changes] or said
    if (
        ours == said
        and set(said) == {"train.minutes", "train.steps"}
        and not set(said) & set(changes)
    ):
        ours = ["train.steps"]  # of a run's own config.toml
    if len(ours) > 1:
        raise ConfigError(
            f"{' and '.join(ours)} say the run's length {len(ours)} times: set one of them."
        )
    return config.changed({key: 0 for key in said if key not in ours}, where="the run's length")


def _one_batch(
    config: RunConfig, given: set[str], changes: Mapping[str, Any]
) -> tuple[RunConfig, set[str]]:
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
    if config.model.counted:
        refuse_early(config, place_in_environment().world, given)
        return _count(config, given, out, console)
    if config.train.init_from:
        note = f"model and tokenizer of {config.train.init_from}, learning rates a tenth of the preset's if not set"
        say(_of_first(console, place_in_environment()), f"note     {note}", indent=9)
    train = config.train
    if not (train.steps or train.tokens or train.epochs or train.minutes):
        config = config.changed({"train.minutes": DEFAULT_MINUTES}, where="the default")
    if partial := partial_note(config.optim, given):
        say(_of_first(console, place_in_environment()), f"note     {partial}", indent=9)
    check_installed(config.train.track)
    with joined(place_in_environment(device_name(config))) as ranks:
        return _train(
            config, given, out, _of_first(console, ranks), started, reserve_seconds, ranks
        )


def _may_go_on(out: Path, config: RunConfig) -> bool:
    """Whether torchrun, which has been told to, may have started this process in the place of a lost one of this run.

    How often it has is known on each machine for itself alone. UsageError where the run there is another one.
    """
    if not _restarts() or not (out / "config.toml").is_file():
        return False
    theirs = RunConfig().changed(read_toml(out / "config.toml"), where=str(out / "config.toml"))
    asked_for, is_there = (
        (of.data.paths, of.data.validation, of.train.init_from) for of in (config, theirs)
    )
    if is_there != asked_for:
        raise UsageError(
            f"{out} holds a run on {', '.join(theirs.data.paths)}: torchrun's --max-restarts would go on with that "
            "one. Choose another --out, or `lmsmith resume` it."
        )
    return True


def _restarts() -> int:
    """How often torchrun starts lost processes again."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))


def _count(
    config: RunConfig, given: set[str], out: Path | None, console: Console
) -> tuple[Path, dict[str, Any]]:
    """`train` of an n-gram model, which has neither updates nor a clock."""
    from lmsmith.train.counting import (  # brings in the compiler
        check_length,
        count,
        resolve_counting,
    )

    for note in check_length(config, given):
        say(console, f"note     {note}", indent=9)

    def fill(folder: Path) -> tuple[RunConfig, Corpus]:
        corpus = gather(config.data, config.tokenizer, folder / "tokens")
        for note in corpus.counts.notes:
            say(console, f"note     {note}", indent=9)
        return resolve_counting(config, given, corpus), corpus

    place = free_place(out, Path(config.data.paths[0]).name.split(".")[0])
    resolved, corpus = create(place, fill)
    with _or_resume(place, console), held(place, lambda message: say(console, message)):
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
    refuse_early(config, ranks.world, given)
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
        if config.train.init_from:
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
    with (
        _or_resume(place, console),
        held_by_first(place, ranks, lambda message: say(console, message)),
    ):
        for line in describe(config, corpus, machine, ranks.world):
            say(console, line, indent=9)
        training = _training(config, corpus, place, console, machine, ranks)
        training.about = about(config, [first_leg(config)])
        training.begin()
        if config.train.minutes:
            training.deadline = started + budget - compress_seconds(place / "tokens")
        return place, _finish(training, config)


def resume(
    place: Path, changes: Mapping[str, Any] | None = None, *, console: Console
) -> dict[str, Any]:
    """Goes on with a run from its last whole checkpoint, or from its beginning where it has none yet.

    `changes`: settings by dotted name, of CHANGEABLE or one of LENGTH; they stay with the run, as do changes made in
    its config.toml by hand. A finished run goes on if its length is another one, and else stays as it is.
    `train.minutes` counts from now on; without it, a run with `--minutes` has what is left of them after the time it
    had trained for. Returns the run's summary. Raises ConfigError before anything is written where something cannot be
    changed, UsageError where another process trains the run.
    """
    started = time.monotonic()
    changes = changes or {}
    if "train.threads" in changes:
        changes = {"train.yield_cores": "no"} | dict(changes)
    config, corpus = open_run(place)
    if config.model.counted:
        return _count_again(place, config, corpus, changes, console)
    check_installed(config.changed(changes, where="the command line").train.track)
    with joined(place_in_environment(device_name(config))) as ranks:
        return _resume(place, changes, _of_first(console, ranks), started, ranks)


def _count_again(
    place: Path, config: RunConfig, corpus: Corpus, changes: Mapping[str, Any], console: Console
) -> dict[str, Any]:
    """`resume` of an n-gram model: what a kill interrupted is counted from the beginning."""
    from lmsmith.train.counting import count

    if changes:
        raise UsageError(
            f"{place} is an n-gram model, which counts its text once: there is nothing that {', '.join(changes)} could "
            "change. Train a new one."
        )
    refuse_early(config, place_in_environment().world)
    if summary := summary_of(place):
        say(
            console, f"{place} is finished: its text is counted, and there is nothing to go on with"
        )
        return summary
    with _or_resume(place, console), held(place, lambda message: say(console, message)):
        return count(config, corpus, place, console)


def _resume(
    place: Path, changes: Mapping[str, Any], console: Console, started: float, ranks: Ranks
) -> dict[str, Any]:
    config, corpus = open_run(place)
    minutes = config.changed(changes, where="the command line").train.minutes
    (restarted,) = ranks.most(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")))
    if (
        restarted and minutes == config.train.minutes
    ):  # torchrun says it again; what is left of them is what counts
        changes = {name: value for name, value in changes.items() if name != "train.minutes"}
    found = resumed(place, config, corpus, changes)
    if found is None:
        summary = summary_of(place)
        say(
            console,
            f"{place} is finished, at step {summary['steps']:,}: there is nothing to go on with; "
            f"`lmsmith resume {shlex.quote(str(place))} --steps N` (or --minutes, --tokens) makes it longer",
        )
        return summary
    check_ranks(found.config, ranks.world)
    with (
        _or_resume(place, console),
        held_by_first(place, ranks, lambda message: say(console, message)),
    ):
        config, corpus = open_run(place)  # as whoever trained it until now has left it
        found = resumed(place, config, corpus, changes)
        ranks.wait(LONG)  # all have read what the first one may now change
        if found is None:
            return summary_of(place)
        machine = survey(found.config, ranks)
        closing = CLOSING_SECONDS + compress_seconds(place / "tokens")
        if found.extends and found.config.train.minutes:
            found = _in_time(found, corpus, machine, closing + time.monotonic() - started, ranks)
        training = _training(found.config, corpus, place, console, machine, ranks)
        training.about = about(found.config, found.legs)
        _go_on(training, found, config)
        if minutes := found.config.train.minutes:
            spent = training.so_far.wall_seconds - found.legs[-1]["wall_seconds"]
            training.deadline = started + minutes * 60 - closing - spent
        return _finish(training, found.config)


def _go_on(training: Training, found: Resumed, config: RunConfig) -> None:
    """Takes up the newest checkpoint and, in a new leg, writes it anew. `config`: as config.toml had it."""
    place, console, so_far = training.run, training.console, training.so_far
    restored = training.restore()
    if not restored:
        training.begin()
        so_far.n_steps = found.config.train.steps
        say(console, f"{place} has no checkpoint yet: it begins at step 0")
    elif found.extends or not found.config.train.minutes:
        so_far.n_steps = found.config.train.steps
    if "train.stop_at_val_loss" in found.changed:
        so_far.seconds_to_target = math.inf
    for line in plan_lines(found, training.corpus):
        say(console, line, indent=9)
    if restored:
        say(console, f"resuming {place} at step {so_far.step:,} of {so_far.n_steps:,}")
    if training.ranks.first and found.config != config:
        atomic.write(place / "config.toml", found.config.to_toml())
    training.leg_start = min(found.legs[-1]["from_step"], so_far.step)
    if restored and found.new_leg:
        training.save_anew()
    if training.ranks.first:
        reopen(place)
        write_events(place, found, so_far.evaluated_step)


def _in_time(
    found: Resumed, corpus: Corpus, machine: Machine, spent: float, ranks: Ranks
) -> Resumed:
    """A new leg with the number of steps that fit its minutes. `spent`: seconds of them that are not for steps.

    Raises ConfigError where none fit.
    """
    config = found.config
    rest = config.train.minutes * 60 - spent

    def measure() -> str:
        if rest < LEAST_SECONDS:
            raise ConfigError(
                f"train.minutes = {config.train.minutes:g} leaves no time to train: beginning and closing the run take "
                f"{spent:.0f} s. Set --minutes {math.ceil((spent + 5 * LEAST_SECONDS) / 6) / 10:g} or more, or --steps."
            )
        with _memory_in_words():
            seconds = seconds_a_step_of_share(config, corpus, machine, ranks.world)
        return str(
            found.step + max(1, int(0.9 * rest / seconds))
        )  # a tenth goes to evaluations and saves

    return found.planned(int(ranks.first_makes(measure)))


def _of_first(console: Console, ranks: Ranks) -> Console:
    """One process speaks for all."""
    return console if ranks.first else Console(quiet=True)


def _training(
    config: RunConfig, corpus: Corpus, place: Path, console: Console, machine: Machine, ranks: Ranks
) -> Training:
    check_ranks(config, ranks.world)
    peak_flops = machine.flops * ranks.world
    return Training(
        config, corpus, place, console, device=machine.device, peak_flops=peak_flops, ranks=ranks
    )


def _finish(training: Training, config: RunConfig) -> dict[str, Any]:
    """Trains a run to its end and writes its summary, compressors' scores on the same text included."""
    summary, place = training.go(), training.run
    summary["legs"] = legs_of(training.about, summary["steps"])
    if not training.ranks.first:
        return summary
    text = (
        place / "tokens" / "validation.txt"
    )  # of ready shards it may be too large to have been written out
    if summary["finished"] != "signal" and text.exists():
        summary["baselines"] = compressed_bits_per_byte(text.read_bytes())
    if summary["finished"] == "time":  # what repeats this run without a clock
        steps = {"train.steps": summary["steps"]}
        atomic.write(place / "config.toml", config.changed(steps, where="the clock").to_toml())
    write_json(place / "summary.json", summary)  # last: it says that the run has ended
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
            "is; `lmsmith resume` takes it too), --train.activation_checkpointing yes, or a smaller --model.context_length or model."
        ) from error


def compress_seconds(tokens: Path) -> float:
    """About how long the compressors take on a run's validation text, if it has that as text."""
    text = tokens / "validation.txt"
    return text.stat().st_size * COMPRESS_SECONDS_A_BYTE if text.exists() else 0.0
