"""`train --from RUN`: training on from the weights of another run, trained here or imported, on
other text.

Model and tokenizer are that run's; what can be set of the model is its dropout. Its weights are
copied into the new run's `model/`, so that neither run needs the other, and scored before the first
step: if training makes nothing better of them, they stay the best. What is read begins as the new
text's documents do, with its end of text; generated text ends at that, or where the other model's
does. Optimizers begin anew, at a tenth of the learning rates that the preset has for weights that
know nothing yet.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from lmsmith import foreign_json
from lmsmith.checkpoint import load_model
from lmsmith.config import RunConfig
from lmsmith.errors import ConfigError
from lmsmith.run_folder import config_of, model_folder, tokenizer_of

RATE = 0.1  # of the preset's learning rates
FREE = {"dropout", "attention_dropout", "ngram_dropout"}
_RATES = ("learning_rate", "muon_learning_rate", "embedding_learning_rate")


def begun_with(config: RunConfig, given: Collection[str]) -> tuple[RunConfig, set[str]]:
    """The config with the model and tokenizer of `train.init_from`, and what is then set.

    Raises ConfigError for settings of the model that are others; UsageError, CheckpointError and
    TokenizerError where there is no such run, or no tokenizer in it.
    """
    place = config.train.init_from
    folder = model_folder(Path(place))
    _, content = load_model(folder)
    model = config_of(content, folder)
    if model.counted:
        raise ConfigError(
            f"{place} is an n-gram model: its counts are those of its text, and cannot be trained "
            f"on."
        )
    if config.model.kind != model.kind:
        if "model.kind" in given or any(name.startswith("model.") for name in given):
            raise ConfigError(
                f"model.kind = {config.model.kind!r}, but the model that this run starts from, "
                f"{place}, is of kind {model.kind}: leave out settings of the model."
            )
        config = dataclasses.replace(config, model=type(model)())
    for field in dataclasses.fields(model):
        ours, theirs = getattr(config.model, field.name), getattr(model, field.name)
        if f"model.{field.name}" in given and field.name not in FREE and ours != theirs:
            raise ConfigError(
                f"model.{field.name} = {ours!r}, but the model that this run begins with, "
                f"{place}, has {theirs!r}: "
                "leave it out. Of that model's settings its dropout alone can be set."
            )
    if "tokenizer" in given and config.tokenizer != str(folder):
        raise ConfigError(
            f"tokenizer = {config.tokenizer!r}, but the tokenizer is that of {place}: leave it out."
        )
    tokenizer_of(Path(place))  # its error says more than that of a tokenizer named by its folder
    kept = {name: getattr(config.model, name) for name in FREE if f"model.{name}" in given}
    rates = {
        f"optim.{name}": RATE * getattr(config.optim, name)
        for name in _RATES
        if f"optim.{name}" not in given
    }
    config = dataclasses.replace(
        config, model=dataclasses.replace(model, **kept), tokenizer=str(folder)
    )
    names = {f"model.{field.name}" for field in dataclasses.fields(model)}
    return config.changed(rates, where="what was chosen"), set(given) | names


def copy_model(config: RunConfig, run: Path) -> None:
    """Puts the weights to begin with into the folder that becomes a run. Raises OSError."""
    (run / "model").mkdir()
    for path in model_folder(Path(config.train.init_from)).iterdir():
        if path.is_file():
            shutil.copyfile(path, run / "model" / path.name)


def ends_kept(run: Path) -> dict[str, list[int]]:
    """`ends`, the ids at which an imported model's texts end, as `copy_model` put them there or
    a save since.
    """
    try:
        content = foreign_json.read(run / "model" / "config.json")["config"]
        return {"ends": content["ends"]} if "ends" in content else {}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # a damaged one: the checkpoint is what counts
        return {}


def weights_to_begin_with(run: Path) -> dict[str, Tensor]:
    """Those that `copy_model` put there. Raises CheckpointError."""
    return load_model(run / "model")[0]
