"""The budget of a run: tokens, seconds, FLOPs, or tokens per parameter, as a length of `train`.

FLOPs and parameters come from the config of each arm, so its size and its vocabulary must be known
before the text is read: a byte tokenizer, `bpe:SIZE`, `gpt2`, or a tokenizer's folder.

`budget.flops` and so on can also be settings of an arm or an axis (isoFLOP ladders).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.config import NeuralConfig, RunConfig
from lmsmith.config.presets import has_size
from lmsmith.errors import ConfigError
from lmsmith.study.plan import BUDGETS, Arm, Budget, Study

LEAST_STEPS = 2
LEAST_SECONDS = 8.0  # a command with less time refuses to start (`train/finish.py`)
VOCABULARIES = {"byte": 256, "gpt2": 50_257}
BY_SIZE = ("flops", "tokens_per_parameter")


def budget_of(study: Study, arm: Arm) -> tuple[Budget, float]:
    """The budget of an arm: its own, or the study's."""
    own = [kind for kind in BUDGETS if f"budget.{kind}" in arm.settings]
    if not own:
        return study.budget, study.amount
    amount = arm.settings[f"budget.{own[0]}"]
    if len(own) > 1 or isinstance(amount, bool) or not isinstance(amount, int | float):
        raise ConfigError(f"the budget of arm {arm.name!r} in {study.path} is not one number.")
    return own[0], float(amount)


def without_budget(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run, without those of its budget."""
    return {name: value for name, value in settings.items() if not name.startswith("budget.")}


def length_of(study: Study, arm: Arm, config: RunConfig) -> dict[str, Any]:
    """The setting that gives a run its budget. `config`: of the arm, without a length.

    Raises ConfigError for a budget that no run of the arm can meet, or that cannot be computed.
    """
    kind, amount = budget_of(study, arm)
    where = f"arm {arm.name!r} of {study.path}"
    if config.model.counted:
        if kind != "seconds":
            raise ConfigError(
                f"{where} counts n-grams in one pass over the text, so budget.{kind} has no effect "
                "on it. Use a budget in seconds."
            )
        return {}
    if kind == "seconds":
        if amount < LEAST_SECONDS:
            raise ConfigError(
                f"{where} has a budget of {amount:g} seconds, in which no run starts and ends: "
                f"expected {LEAST_SECONDS:g} or more."
            )
        return {"train.minutes": amount / 60}
    per_step = config.train.batch_tokens or config.train.batch_size * config.model.context_length
    tokens = int(amount)
    if kind in BY_SIZE:
        model = sized(config, where, kind)
        tokens = int(
            amount / model.train_flops_per_token()
            if kind == "flops"
            else amount * model.n_parameters()
        )
    if tokens < LEAST_STEPS * per_step:
        raise ConfigError(
            f"{where} has a budget of {tokens:,} tokens, and one step has {per_step:,}: expected "
            f"{LEAST_STEPS} steps or more. Raise budget.{kind}, or lower train.batch_size."
        )
    return {"train.tokens": tokens}


def sized(config: RunConfig, where: str, kind: str = "flops") -> NeuralConfig:
    """The model's settings with its vocabulary. Raises ConfigError if sizes are not known yet."""
    model = config.neural
    if not model.vocab_size:
        changes = {"model.vocab_size": vocabulary(config, where, kind)}
        model = config.changed(changes, where=where).neural
    return model


def vocabulary(config: RunConfig, where: str, kind: str) -> int:
    """The size of the vocabulary, from the tokenizer's name. Raises ConfigError if the text decides
    it."""
    name = config.tokenizer
    if name in VOCABULARIES:
        return VOCABULARIES[name]
    if name.startswith("bpe:") and name[4:].isdecimal():
        return int(name[4:])
    if name not in ("auto", "char", "word") and Path(name).exists():
        from lmsmith.tokens.files import load_tokenizer

        return load_tokenizer(name).vocab_size
    raise ConfigError(
        f"{where} has a budget in {kind.replace('_', ' ')}, which depends on the size of the "
        f"vocabulary, but tokenizer = {name!r} fits it to the text. Set tokenizer to byte, "
        "bpe:SIZE, gpt2 or a tokenizer's folder."
    )


def check_size_given(config: RunConfig, given: set[str], where: str, kind: str) -> None:
    """Raises ConfigError if `train` would choose the model's size."""
    names = {"model.n_layer", "model.d_model"}
    if not (has_size(config.preset) or "model.size" in given or names <= given):
        raise ConfigError(
            f"{where} has a budget in {kind.replace('_', ' ')}, but its size is not set. Set "
            f"{' and '.join(sorted(names - given))}, or model.size."
        )
