"""From what the user asked for, sources and settings, to a config and the settings that are set.

What is left open here is chosen in `choose.py`, once the text and the machine are known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lmsmith.config import LENGTH, NeuralConfig, RunConfig, read_toml
from lmsmith.config.presets import has_size, preset, sized
from lmsmith.errors import ConfigError, UsageError
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.optim.rates import TOGETHER, scaled_together
from lmsmith.tokens.files import FILE_NAME as TOKENIZER_FILE
from lmsmith.train.init_from import begun_with

COMMAND_LINE = "the command line"


def asked(
    sources: Sequence[str], changes: Mapping[str, Any], place: str = COMMAND_LINE
) -> tuple[RunConfig, set[str]]:
    """The config that sources (text, at most one recipe) and settings ask for, and the settings
    set.

    `place`: where `changes` were given, for errors.
    Later wins: preset, recipe, command line. A run's own config.toml is a recipe; if the run had
    --minutes, it also holds the number of steps they came to, and that number repeats the run.
    Raises ConfigError, UsageError.
    """
    recipes = [source for source in sources if source.endswith(".toml")]
    if len(recipes) > 1:
        raise UsageError(f"{' and '.join(recipes)} are {len(recipes)} recipes: name one.")
    recipe = (
        _with_tokenizer_beside(read_toml(Path(recipes[0])), Path(recipes[0])) if recipes else {}
    )
    _check_lengths(changes, place)
    rate_place = place if TOGETHER in changes else "".join(recipes)
    peak, fixed, recipe, changes = _together(recipe, changes)
    wanted = recipe | dict(changes)
    # A mistake is blamed on the one of the two that holds it.
    where = dict.fromkeys(recipe, recipes[0] if recipes else "") | dict.fromkeys(changes, place)
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


def _check_lengths(changes: Mapping[str, Any], place: str) -> None:
    """Raises ConfigError for a length of zero that the user gave.

    Files may hold a zero: before `auto` had a word, they wrote it.
    """
    for name in (*LENGTH, "train.epochs"):
        if str(changes.get(name, "auto")).strip() in ("0", "0.0"):
            raise ConfigError(
                f"{name} = {changes[name]} in {place}: wanted more than 0. Leave it out to let "
                "lmsmith choose the length."
            )


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
    """`learning_rate` of all groups, the rates that it does not move, and recipe and changes
    without it.

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
    """The recipe, with a tokenizer that lies beside it named from here: config.toml of an
    imported run says `model`.
    """
    name = recipe.get("tokenizer")
    beside = path.parent / name if isinstance(name, str) and name else path
    return recipe | {"tokenizer": str(beside)} if (beside / TOKENIZER_FILE).is_file() else recipe


def _one_length(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Keeps one way to say the run's length; the command line wins. Raises ConfigError."""
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
    """Keeps one way to say the batch's size; the command line wins. Raises ConfigError."""
    if not config.train.batch_tokens or "train.batch_size" not in given:
        return config, given
    ours = {"train.batch_size", "train.batch_tokens"} & set(changes)
    if ours == {"train.batch_tokens"}:
        return config, given - {"train.batch_size"}
    if ours == {"train.batch_size"}:
        return config.changed({"train.batch_tokens": 0}, where="the batch"), given
    raise ConfigError(
        f"train.batch_tokens = {config.train.batch_tokens} and train.batch_size = "
        f"{config.train.batch_size} both say "
        "how large a batch is: set one of them."
    )
