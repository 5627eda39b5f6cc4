"""Fine-tunes the weights of another run, trained here or imported (`train --from RUN`).

The model and the tokenizer are that run's; only dropout can be set. The weights are copied into the
new run's `model/`, so neither run needs the other. They are scored before the first step, and stay
the best weights if no step improves them. Training documents begin with the end-of-text token, as
in every run. Generated text ends at that token, or at the ids that end an imported model's texts.
The optimizers start with an empty state, at a tenth of the preset's learning rates; adapters
(`lora.rank`) have rates of their own.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from torch import Tensor

from lmsmith import foreign_json
from lmsmith.checkpoint import load_model
from lmsmith.config import RunConfig
from lmsmith.errors import ConfigError
from lmsmith.run_folder import config_of, model_folder, tokenizer_of

RATE = 0.1  # of the preset's learning rates
LORA = {
    "optim.name": "adamw",
    "optim.learning_rate": 1e-3,
    "optim.embedding_learning_rate": 0.0,
    "optim.weight_decay": 0.0,
}
"""Defaults of adapters, which take about ten times the rate of full fine-tuning (Schulman et al.
2025, "LoRA Without Regret").
"""
FREE = {"dropout", "attention_dropout", "ngram_dropout"}
_RATES = ("learning_rate", "muon_learning_rate", "embedding_learning_rate")


def with_initial_model(config: RunConfig, given: Collection[str]) -> tuple[RunConfig, set[str]]:
    """Returns the config with model and tokenizer of `train.init_from`, and the settings now fixed.

    Raises ConfigError for model settings that differ from that model; UsageError, CheckpointError
    and TokenizerError if there is no such run, or no tokenizer in it.
    """
    place = config.train.init_from
    folder = model_folder(Path(place))
    _, content = load_model(folder)
    model = config_of(content, folder)
    if model.counted:
        raise ConfigError(
            f"{place} is an n-gram model, and n-gram models cannot be fine-tuned. Choose a neural "
            f"model for --from."
        )
    if config.model.kind != model.kind:
        if "model.kind" in given or any(name.startswith("model.") for name in given):
            raise ConfigError(
                f"model.kind = {config.model.kind!r}, but {place}, which this run starts from, is "
                f"of kind {model.kind}. Leave out the settings of the model."
            )
        config = dataclasses.replace(config, model=type(model)())
    # A chat template adds ids, so a recipe of such a run has a larger vocabulary.
    free = FREE | ({"vocab_size"} if config.data.documents == "conversations" else set())
    for field in dataclasses.fields(model):
        ours, theirs = getattr(config.model, field.name), getattr(model, field.name)
        if f"model.{field.name}" in given and field.name not in free and ours != theirs:
            raise ConfigError(
                f"model.{field.name} = {ours!r}, but {place}, which this run starts from, has "
                f"{theirs!r}. Leave it out: only the dropout of that model can be set."
            )
    if "tokenizer" in given and config.tokenizer != str(folder):
        raise ConfigError(
            f"tokenizer = {config.tokenizer!r}, but {place}, which this run starts from, brings "
            f"its own tokenizer. Leave it out."
        )
    tokenizer_of(Path(place))  # raises a clearer error than loading the tokenizer later would
    kept = {name: getattr(config.model, name) for name in FREE if f"model.{name}" in given}
    rates = {
        f"optim.{name}": RATE * getattr(config.optim, name)
        for name in _RATES
        if f"optim.{name}" not in given
    }
    if config.lora.rank:
        rates = {name: value for name, value in LORA.items() if name not in given}
    config = dataclasses.replace(
        config, model=dataclasses.replace(model, **kept), tokenizer=str(folder)
    )
    names = {f"model.{field.name}" for field in dataclasses.fields(model)}
    return config.changed(rates, where="the chosen settings"), set(given) | names


def copy_model(config: RunConfig, run: Path) -> None:
    """Copies the starting weights into the folder of a new run. Raises OSError."""
    (run / "model").mkdir()
    for path in model_folder(Path(config.train.init_from)).iterdir():
        if path.is_file():
            shutil.copyfile(path, run / "model" / path.name)


def saved_special_ids(run: Path) -> dict[str, Any]:
    """Returns `begin`, the id before each text of an imported model, and `ends`, the ids that end
    one, from the run's model folder; without those that it does not name.
    """
    try:
        content = foreign_json.read(run / "model" / "config.json")["config"]
        return {name: content[name] for name in ("begin", "ends") if name in content}
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
    ):  # a damaged file does not matter: the checkpoint has the weights
        return {}


def weights_to_begin_with(run: Path) -> dict[str, Tensor]:
    """Loads the weights that `copy_model` copied. Raises CheckpointError."""
    return load_model(run / "model")[0]
