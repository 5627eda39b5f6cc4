"""Models that transformers has no class for, written with their own code.

The folder holds `modeling_lmsmith_gpt.py` or `modeling_lmsmith_rnn.py` from this package, and
`auto_map` in config.json names its classes, so that transformers loads them with
`trust_remote_code=True`. Tensors keep lmsmith's names. So do settings, except those in `_NAMES`,
because transformers 5 converts settings whose names begin with `rope_`. Padding rows of the
vocabulary are dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from lmsmith.config import ModelConfig
from lmsmith.config.settings import as_toml
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.interop.architectures import architecture_for
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.rnn_config import RNNConfig

_NAMES = {
    "rope_base": "rotary_base",
    "rope_scaling": "rotary_scaling",
    "rope_factor": "rotary_factor",
    "rope_original_context": "rotary_original_context",
}
# They do not change what a trained model computes.
_INDIFFERENT = frozenset(("kind", "size", "init", "vocab_multiple", "n_head_per_kv"))
_HAS_ROWS_OF_VOCABULARY = ("token_embedding.", "head.", "value_embeddings.")


@dataclass(frozen=True)
class CustomCode:
    """The modeling file of one kind of model."""

    kind: type[GPTConfig] | type[RNNConfig]
    file: str
    prefix: str
    """Prefix of class names."""
    settings: tuple[str, ...]
    """Our settings that the file implements."""

    @property
    def architecture(self) -> str:
        return f"{self.prefix}ForCausalLM"

    @property
    def model_type(self) -> str:
        return self.file.removeprefix("modeling_").removesuffix(".py")

    @property
    def code(self) -> Path:
        return Path(__file__).with_name(self.file)


_SHARED = ("vocab_size", "context_length", "n_layer", "d_model", "tied_head", "dropout")
CUSTOM = (
    CustomCode(
        GPTConfig,
        "modeling_lmsmith_gpt.py",
        "LmsmithGPT",
        (
            *_SHARED,
            *("n_head", "n_kv_head", "d_head", "d_ff", "ngram_tables", "ngram_table_size"),
            *("norm", "norm_placement", "norm_gain", "norm_eps", "embedding_norm", "positions"),
            *("rope_base", "rope_scaling", "rope_factor", "rope_original_context"),
            *("feed_forward", "bias", "attention_bias", "attention_dropout", "ngram_dropout"),
            *("qk_norm", "window", "window_pattern", "value_embedding_every"),
            *("residual_scalars", "logit_softcap"),
        ),
    ),
    CustomCode(
        RNNConfig,
        "modeling_lmsmith_rnn.py",
        "LmsmithRNN",
        (*_SHARED, "cell", "activation", "logit_softcap"),
    ),
)


def needed_for(config: ModelConfig) -> CustomCode | None:
    """The code that a model needs in transformers; None if transformers has a class for it. Raises
    ConfigError, with reasons, for a model that neither computes.
    """
    try:
        architecture_for(config)
        return None
    except ConfigError:
        pass
    custom = next((known for known in CUSTOM if type(config) is known.kind), None)
    if custom is None:
        raise ConfigError(
            f"transformers cannot compute a model of kind {config.kind}: only Transformers "
            "(--preset modern, llama, qwen3, gpt2) and recurrent networks (--preset rnn, gru, "
            "lstm) can be exported."
        )
    unknown = unknown_settings(custom, config)
    if unknown:
        raise ConfigError(
            f"{custom.file} does not implement {', '.join(unknown)}: a model with "
            f"{'this setting' if len(unknown) == 1 else 'these settings'} cannot be exported."
        )
    return custom


def unknown_settings(custom: CustomCode, config: ModelConfig) -> list[str]:
    """The settings that the code does not implement and that differ from their defaults."""
    return [
        f"model.{field.name} = {as_toml(getattr(config, field.name))}"
        for field in dataclasses.fields(config)
        if field.name not in _INDIFFERENT.union(custom.settings)
        and getattr(config, field.name) != field.default
    ]


def named_in(settings: Mapping[str, Any]) -> CustomCode | None:
    """The code that the content of a config.json names; None if it is not ours."""
    return next(
        (known for known in CUSTOM if settings.get("architectures") == [known.architecture]), None
    )


def write_settings(custom: CustomCode, config: ModelConfig) -> dict[str, Any]:
    """The content of config.json."""
    resolved = config
    if isinstance(config, GPTConfig):
        resolved = dataclasses.replace(
            config,
            d_ff=config.width_ff,
            n_kv_head=config.n_kv,
            d_head=config.width_head,
            attention_bias=config.attention_biases,
        )
    module = custom.file.removesuffix(".py")
    values = {name: getattr(resolved, name) for name in custom.settings}
    return {
        "architectures": [custom.architecture],
        "auto_map": {
            "AutoConfig": f"{module}.{custom.prefix}Config",
            "AutoModelForCausalLM": f"{module}.{custom.architecture}",
        },
        "model_type": custom.model_type,
        "tie_word_embeddings": False,  # a tied head has no tensor of its own
    } | {
        _NAMES.get(name, name): list(value) if isinstance(value, tuple) else value
        for name, value in values.items()
    }


def read_settings(custom: CustomCode, settings: Mapping[str, Any], path: Path) -> ModelConfig:
    """Converts the content of config.json. Raises ConfigError for bad settings."""
    from lmsmith.run_folder import model_config

    values = {
        name: settings[_NAMES.get(name, name)]
        for name in custom.settings
        if _NAMES.get(name, name) in settings
    }
    try:
        config = model_config({"kind": custom.kind.kind} | values)
    except ConfigError as error:
        raise ConfigError(f"{path} is damaged: {error}") from error
    if not config.vocab_size:
        raise ConfigError(f"{path} has vocab_size = 0: expected the number of tokens.")
    return config


def to_theirs(config: ModelConfig, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our tensors without the padding rows of the vocabulary."""
    return {
        name: tensor[: config.vocab_size] if name.startswith(_HAS_ROWS_OF_VOCABULARY) else tensor
        for name, tensor in tensors.items()
    }


def check_tensors(config: ModelConfig, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Raises CheckpointError unless the tensors have the names and shapes of the model."""
    import torch

    with torch.device("meta"):
        model = config.build()
        expected = {name: tuple(p.shape) for name, p in model.named_parameters()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    wrong = [
        f"{name} {found.get(name, 'missing')}, expected {expected.get(name, 'none')}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        raise CheckpointError(
            f"the tensors in {folder} do not fit its config.json: {', '.join(wrong[:4])}."
        )
