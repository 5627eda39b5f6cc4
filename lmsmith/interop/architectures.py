"""Finds the architecture of transformers that a config.json names, or that computes our model.

`families/` has the architectures, `mapping.py` what they share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lmsmith.config import ModelConfig
from lmsmith.errors import CheckpointError, ConfigError
from lmsmith.foreign_json import shown
from lmsmith.interop.families.gpt2 import GPT2
from lmsmith.interop.families.llama import LLAMA, MISTRAL, OLMO2, QWEN2, QWEN3, SMOLLM3
from lmsmith.interop.families.neox import NEOX
from lmsmith.interop.families.refused import REFUSED
from lmsmith.interop.mapping import Architecture
from lmsmith.models.gpt_config import GPTConfig

# A model that several can compute is written as the first of them. Qwen 2 comes before Llama, which
# would add zeros to a model with biases of queries, keys and values only.
ARCHITECTURES = (GPT2, QWEN2, LLAMA, QWEN3, MISTRAL, SMOLLM3, OLMO2, NEOX)


def architecture_of(theirs: Mapping[str, Any], path: Path) -> Architecture:
    """The architecture that the content of a config.json names.

    Raises ConfigError for an architecture that is not supported, CheckpointError for lmsmith's own
    config.json.
    """
    if "format_version" in theirs:
        raise CheckpointError(
            f"{path} belongs to a model of lmsmith, which can be used directly: there is nothing "
            "to import."
        )
    named, model_type = theirs.get("architectures"), theirs.get("model_type")
    if isinstance(named, list) and named:
        architecture = next((known for known in ARCHITECTURES if [known.name] == named), None)
    else:
        architecture = next(
            (known for known in ARCHITECTURES if known.model_type == model_type), None
        )
    if architecture is None:
        raise _unsupported(named if isinstance(named, list) else [], model_type, path)
    if theirs.get("quantization_config"):
        raise ConfigError(
            f"{path} has quantized weights (quantization_config): use the checkpoint that they "
            "were quantized from."
        )
    if theirs.get("transformers_weights"):
        raise ConfigError(
            f"{path} names its own weights file (transformers_weights = "
            f"{shown(theirs['transformers_weights'])}), but lmsmith reads model.safetensors or its "
            "shards. Rename the file and remove the setting."
        )
    return architecture


def architecture_for(config: ModelConfig) -> Architecture:
    """The architecture of transformers that computes our model. Raises ConfigError, with reasons,
    if there is none.
    """
    if not isinstance(config, GPTConfig):
        raise ConfigError(
            f"transformers has no counterpart to a model of kind {config.kind}: only Transformers "
            "can be exported."
        )
    reasons = {architecture: architecture.differences(config) for architecture in ARCHITECTURES}
    nearest = min(ARCHITECTURES, key=lambda architecture: len(reasons[architecture]))
    if reasons[nearest]:
        raise ConfigError(
            f"this model has no counterpart in transformers. The nearest is {nearest.name}, which "
            f"does not support {'; '.join(reasons[nearest])}. Models of `--preset gpt2`, "
            "`--preset llama` and `--preset qwen3` can be exported."
        )
    return nearest


def _unsupported(named: list[Any], model_type: Any, path: Path) -> ConfigError:
    """The error for an architecture that is not supported."""
    names = ", ".join(str(name) for name in [*named, model_type] if name)[:200]
    known = " or ".join(architecture.name for architecture in ARCHITECTURES)
    if not names:
        return ConfigError(f"{path} names no architecture in `architectures`. Expected {known}.")
    reason, nearest = REFUSED.get(str(named[0]) if named else "", ("", ""))
    return ConfigError(
        f"{path} names the architecture {names}, which lmsmith does not support"
        + (f": it has {reason}. The nearest that it supports is {nearest}" if reason else "")
        + f". Expected {known}."
    )
