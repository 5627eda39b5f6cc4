"""From what the user asked for, sources and settings, to a config and the settings that are set.

What is left open here is chosen in `choose.py`, once the text and the machine are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmsmith.config import RunConfig, read_toml
from lmsmith.errors import ConfigError, UsageError
from lmsmith.presets import has_size, preset, sized
from lmsmith.train.init_from import begun_with


def asked(sources: Sequence[str], changes: Mapping[str, Any]) -> tuple[RunConfig, set[str]]:
    """The config that sources (text, at most one recipe) and settings ask for, and the settings set.

    Later wins: preset, recipe, command line. A run's own config.toml is a recipe; if the run had
    --minutes, it also holds the number of steps they came to, and that number repeats the run.
    Raises ConfigError, UsageError.
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
    """Keeps one way to say the run's length; the command line wins. Raises ConfigError."""
    said = [f"train.{key}" for key in ("minutes", "steps", "tokens") if getattr(config.train, key)]
    ours = [key for key in said if key in changes] or said
    if ours == said and set(said) == {"train.minutes", "train.steps"} and not set(said) & set(changes):
        ours = ["train.steps"]  # of a run's own config.toml
    if len(ours) > 1:
        raise ConfigError(f"{' and '.join(ours)} say the run's length {len(ours)} times: set one of them.")
    return config.changed({key: 0 for key in said if key not in ours}, where="the run's length")


def _one_batch(config: RunConfig, given: set[str], changes: Mapping[str, Any]) -> tuple[RunConfig, set[str]]:
    """Keeps one way to say the batch's size; the command line wins. Raises ConfigError."""
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
    """Where one of width and heads is set: a value of the other that fits, until it is chosen."""
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
