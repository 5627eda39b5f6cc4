"""Builds the config of a run from the user's sources and settings.

Settings left open here are chosen in `choose.py`, once the text and the machine are known.
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
from lmsmith.optim.rates import TOGETHER, scale_all_groups
from lmsmith.tokens.files import FILE_NAME as TOKENIZER_FILE
from lmsmith.train.init_from import with_initial_model

COMMAND_LINE = "the command line"


def asked(
    sources: Sequence[str], changes: Mapping[str, Any], place: str = COMMAND_LINE
) -> tuple[RunConfig, set[str]]:
    """Returns the config for sources (text, at most one recipe) and settings, and the names of the
    settings that were set.

    `place`: where `changes` were given, for errors. In a conflict, the last of these wins: preset,
    recipe, command line. A run's own config.toml is a recipe; after a run with --minutes it also
    holds the number of steps, which repeats the run. Raises ConfigError, UsageError.
    """
    recipes = [source for source in sources if source.endswith(".toml")]
    if len(recipes) > 1:
        raise UsageError(f"{' and '.join(recipes)} are {len(recipes)} recipes: name only one.")
    recipe = (
        _with_tokenizer_beside(read_toml(Path(recipes[0])), Path(recipes[0])) if recipes else {}
    )
    _check_lengths(changes, place)
    rate_place = place if TOGETHER in changes else "".join(recipes)
    peak, fixed, recipe, changes = _together(recipe, changes)
    wanted = recipe | dict(changes)
    # Where each setting was given, so that errors name the right place.
    where = dict.fromkeys(recipe, recipes[0] if recipes else "") | dict.fromkeys(changes, place)
    named = {key: value for key, value in wanted.items() if key == "preset"}
    base = preset(RunConfig().changed(named, where=where).preset)
    if "model.kind" in wanted:
        base = base.changed({"model.kind": wanted["model.kind"]}, where=where)
    derived = _derived(base, wanted, where)
    where = dict.fromkeys(derived, "the chosen settings") | where
    named_again = (
        changes if "model.size" in changes else wanted
    )  # model.size on the command line overrides the recipe
    config = base.changed(recipe | derived | dict(named_again), where=where)
    texts = tuple(source for source in sources if not source.endswith(".toml"))
    if texts:
        config = replace(config, data=replace(config.data, sources=texts, mixture=()))
    if not config.data.paths:
        raise UsageError(
            f"the recipe {recipes[0]} names no text (data.sources). Name text files after it."
            if recipes
            else "there is no text to train on: name files or folders."
        )
    given = set(wanted)
    if peak is not None:
        rates = scale_all_groups(config, peak, fixed, rate_place)
        config, given = config.changed(rates, where=rate_place), given | set(rates)
    if config.train.init_from:
        config, given = with_initial_model(config, given)
    return _one_batch(_one_length(config, changes), given, changes)


def _check_lengths(changes: Mapping[str, Any], place: str) -> None:
    """Raises ConfigError if the user set a length to zero.

    Config files may hold a zero: earlier versions wrote 0 for "auto".
    """
    for name in (*LENGTH, "train.epochs"):
        if str(changes.get(name, "auto")).strip() in ("0", "0.0"):
            raise ConfigError(
                f"{name} = {changes[name]} in {place}: expected more than 0. Leave it out to let "
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
    """Separates the setting `learning_rate`, which scales the rates of all parameter groups.

    Returns its value, the names of the settings that it leaves unchanged (those given in the same
    place, or in a later one), and recipe and changes without it.
    """
    peak = changes.get(TOGETHER, recipe.get(TOGETHER))
    fixed = {*changes, *(() if TOGETHER in changes else recipe)}
    plain = (
        {name: value for name, value in asked.items() if name != TOGETHER}
        for asked in (recipe, changes)
    )
    return peak, fixed, *plain


def _with_tokenizer_beside(recipe: dict[str, Any], path: Path) -> dict[str, Any]:
    """Returns the recipe with its tokenizer as a path from the working directory, if the tokenizer
    is a folder beside the recipe. (The config.toml of an imported run names its tokenizer `model`.)
    """
    name = recipe.get("tokenizer")
    beside = path.parent / name if isinstance(name, str) and name else path
    return recipe | {"tokenizer": str(beside)} if (beside / TOKENIZER_FILE).is_file() else recipe


def _one_length(config: RunConfig, changes: Mapping[str, Any]) -> RunConfig:
    """Keeps one length setting; the command line wins over the recipe. Raises ConfigError."""
    lengths = [
        f"train.{key}"
        for key in ("minutes", "steps", "tokens", "epochs")
        if getattr(config.train, key)
    ]
    ours = [key for key in lengths if key in changes] or lengths
    if (
        ours == lengths
        and set(lengths) == {"train.minutes", "train.steps"}
        and not set(lengths) & set(changes)
    ):
        ours = ["train.steps"]  # a run's own config.toml has both
    if len(ours) > 1:
        raise ConfigError(
            f"{' and '.join(ours)} set the run's length {len(ours)} times: set only one of them."
        )
    return config.changed({key: 0 for key in lengths if key not in ours}, where="the run's length")


def _one_batch(
    config: RunConfig, given: set[str], changes: Mapping[str, Any]
) -> tuple[RunConfig, set[str]]:
    """Keeps one batch-size setting; the command line wins over the recipe. Raises ConfigError."""
    if not config.train.batch_tokens or "train.batch_size" not in given:
        return config, given
    ours = {"train.batch_size", "train.batch_tokens"} & set(changes)
    if ours == {"train.batch_tokens"}:
        return config, given - {"train.batch_size"}
    if ours == {"train.batch_size"}:
        return config.changed({"train.batch_tokens": 0}, where="the batch"), given
    raise ConfigError(
        f"train.batch_tokens = {config.train.batch_tokens} and train.batch_size = "
        f"{config.train.batch_size} both set the batch size: set only one of them."
    )
