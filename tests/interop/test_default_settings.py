"""A config.json without a setting means the default of transformers, for every setting.

Checkpoints of older versions lack settings that newer ones write. The oracle is the class of
transformers itself: it fills the missing setting, and the complete file must read as the same model.
"""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from random_models import CLASSES, SIZES, transformers

from lmsmith.errors import ConfigError
from lmsmith.interop.architectures import architecture_of
from lmsmith.models.gpt_config import GPTConfig

# Values that differ from the defaults, so that a setting that is ignored shows too.
OTHERS: dict[str, dict[str, Any]] = {
    "gpt2": {"attn_pdrop": 0.3, "embd_pdrop": 0.3, "resid_pdrop": 0.3, "layer_norm_epsilon": 1e-3},
    "gpt_neox": {
        "rotary_pct": 0.5,
        "layer_norm_eps": 1e-3,
        "use_parallel_residual": False,
        "hidden_size": 48,
        "num_attention_heads": 3,
    },
    "smollm3": {"no_rope_layer_interval": 2, "attention_bias": True, "mlp_bias": True},
}
COMMON = {"rms_norm_eps": 1e-3, "rope_theta": 500.0, "attention_dropout": 0.25}


def read(settings: dict[str, Any]) -> GPTConfig | str:
    """The config, or the kind of error: some defaults do not fit the small sizes."""
    path = Path("config.json")
    try:
        config = architecture_of(settings, path).read_settings(settings, path)
        return dataclasses.replace(  # "auto" and the number that it stands for are the same model
            config, n_kv_head=config.n_kv, d_head=config.width_head, d_ff=config.width_ff
        )
    except ConfigError:
        return "refused"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", CLASSES)
def test_a_missing_setting_has_the_default_of_transformers(kind: str, tied: bool) -> None:
    config_class = getattr(transformers, CLASSES[kind][0])
    settings = SIZES.get(kind, SIZES["llama"]) | OTHERS.get(kind, {})
    settings |= {} if kind == "gpt2" else COMMON
    full = config_class(**settings, tie_word_embeddings=tied).to_dict()
    for derived in ("layer_types", "no_rope_layers"):  # one entry per layer
        full.pop(derived, None)
    full["architectures"] = [CLASSES[kind][1]]
    complete, n_understood = read(full), 0
    assert isinstance(complete, GPTConfig)
    general = set(transformers.PretrainedConfig().to_dict()) - {"tie_word_embeddings"}
    for name in sorted(set(full) - general - {"model_type"}):
        without = {key: value for key, value in full.items() if key != name}
        try:
            filled = config_class(**without).to_dict() | {"architectures": full["architectures"]}
        except ValueError:  # the default does not fit the small sizes
            assert name in ("num_attention_heads", "hidden_size")
            continue
        expected = read(filled)
        assert read(without) == expected, name
        n_understood += expected != complete
    assert n_understood >= 8
