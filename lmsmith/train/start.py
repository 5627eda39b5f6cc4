"""Beginning a run and going on with one: from what the user asked to a finished run folder."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from lmsmith import atomic
from lmsmith.config import RunConfig, read_toml
from lmsmith.data.prepare import Corpus, prepare
from lmsmith.errors import ConfigError, UsageError
from lmsmith.evaluate.compressors import compressed_bits_per_byte
from lmsmith.presets import preset
from lmsmith.train.choose import DEFAULT_MINUTES, Machine, describe, resolve, survey
from lmsmith.train.loop import Training
from lmsmith.train.run import create, free_place, open_run

CLOSING_SECONDS = 3.0
"""Kept free at the end of `--minutes` for the samples, the report and leaving Python."""

COMPRESS_SECONDS_A_BYTE = 1.2e-6  # gzip -9 and xz -9e on English text


def asked(sources: Sequence[str], changes: Mapping[str, Any]) -> tuple[RunConfig, set[str]]:
    """The config that sources (text, and at most one recipe) and the command line ask for, and which settings are set.

    Later wins: preset, recipe, command line. Raises ConfigError, UsageError.
    """
    recipes = [source for source in sources if source.endswith(".toml")]
    if len(recipes) > 1:
        raise UsageError(f"{' and '.join(recipes)} are two recipes: name one.")
    recipe = read_toml(Path(recipes[0])) if recipes else {}
    name = changes.get("preset", recipe.get("preset", RunConfig.preset))
    config = preset(name)
    if recipe:
        config = config.changed(recipe, where=recipes[0])
    config = config.changed(changes, where="the command line")
    texts = tuple(source for source in sources if not source.endswith(".toml"))
    if texts:
        config = replace(config, data=replace(config.data, sources=texts))
    if not config.data.sources:
        raise UsageError(
            "there is no text to train on: name files or folders."
            if not recipes
            else f"the recipe {recipes[0]} names no data.sources: name text files beside it."
        )
    lengths = [f"train.{key}" for key in ("minutes", "steps", "tokens") if getattr(config.train, key)]
    given = set(changes) or set()
    if len(lengths) > 1:  # one from the command line replaces another from the recipe
        ours = [key for key in lengths if key in given]
        if len(ours) != 1:
            raise ConfigError(f"{' and '.join(lengths)} say the run's length twice: set one of them.")
        config = config.changed({key: 0 for key in lengths if key not in ours}, where="the command line")
    return config, given | set(recipe)


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

    `changes`: settings by dotted name. `started`: the time.monotonic() from which `--minutes` counts. `reserve_seconds`:
    kept free at the end of it for what the caller has yet to do.
    """
    started = time.monotonic() if started is None else started
    config, given = asked(sources, changes)
    place = free_place(out, Path(config.data.sources[0]).stem.split(".")[0] or "text")
    if not (config.train.steps or config.train.tokens or config.train.minutes):
        config = config.changed({"train.minutes": DEFAULT_MINUTES}, where="the default")
    machine = survey(config)
    budget = config.train.minutes * 60 - CLOSING_SECONDS - reserve_seconds

    def fill(folder: Path) -> tuple[RunConfig, Corpus]:
        corpus = prepare(config.data, config.tokenizer, folder / "tokens")
        for note in corpus.counts.notes:
            console.print(f"note     {note}", highlight=False, soft_wrap=True)
        rest = budget - compress_seconds(corpus) - (time.monotonic() - started)
        if config.train.minutes and rest < 2:
            raise ConfigError(
                f"train.minutes = {config.train.minutes:g} leaves no time to train: reading the text and closing the run "
                f"take {config.train.minutes * 60 - rest:.0f} s here. Allow more minutes, or give --steps."
            )
        # A tenth goes to evaluations and saves; without a clock, a size as for some minutes.
        seconds = 0.9 * rest if config.train.minutes else 300.0
        return resolve(config, given, corpus, machine, seconds), corpus

    config, corpus = create(place, fill)
    for line in describe(config, corpus, machine):
        console.print(line, highlight=False, soft_wrap=True)
    deadline = started + budget - compress_seconds(corpus) if config.train.minutes else None
    return place, finish(config, corpus, place, console, machine, deadline)


def resume(place: Path, *, console: Console, started: float | None = None) -> dict[str, Any]:
    """Goes on with a run from its last whole checkpoint, or from its beginning where it has none yet."""
    started = time.monotonic() if started is None else started
    config, corpus = open_run(place)
    machine = survey(config)
    deadline = started + config.train.minutes * 60 - CLOSING_SECONDS if config.train.minutes else None
    return finish(config, corpus, place, console, machine, deadline, resumed=True)


def finish(
    config: RunConfig,
    corpus: Corpus,
    place: Path,
    console: Console,
    machine: Machine,
    deadline: float | None,
    *,
    resumed: bool = False,
) -> dict[str, Any]:
    """Trains a run to its end and writes its summary, compressors' scores on the same text included."""
    training = Training(
        config, corpus, place, console, device=machine.device, peak_flops=machine.flops, deadline=deadline
    )
    if resumed and training.restore():
        so_far = training.so_far
        console.print(f"resuming {place} at step {so_far.step:,} of {so_far.n_steps:,}", highlight=False)
        if deadline is not None:
            training.deadline = deadline - so_far.wall_seconds
    summary = training.go()
    if summary["finished"] != "signal":
        text = (place / "tokens" / "validation.txt").read_bytes()
        summary["baselines"] = compressed_bits_per_byte(text)
        atomic.write(place / "summary.json", json.dumps(summary, indent=1) + "\n")
    return summary


def compress_seconds(corpus: Corpus) -> float:
    """About how long the compressors take on the validation text."""
    return corpus.counts.n_val_bytes * COMPRESS_SECONDS_A_BYTE
