"""Presets against what the models they are named after are."""

import dataclasses
from typing import Any

import pytest

from lmsmith.config import RunConfig, flatten, settings
from lmsmith.errors import ConfigError
from lmsmith.presets import PRESETS, has_size, preset

# Radford et al. 2019 and Brown et al. 2020, appendix B: what makes GPT-2, whatever the defaults of config.py become.
GPT2: dict[str, Any] = {
    "model.n_kv_head": 0,
    "model.d_ff": 0,
    "model.ngram_orders": (),
    "model.norm": "layernorm",
    "model.norm_gain": True,
    "model.embedding_norm": False,
    "model.positions": "learned",
    "model.feed_forward": "gelu-tanh",
    "model.bias": True,
    "model.tied_head": True,
    "model.qk_norm": False,
    "model.logit_softcap": 0.0,
    "model.init": "gpt2",
    "optim.name": "adamw",
    "optim.table_learning_rate": 0.0,
    "optim.beta1": 0.9,
    "optim.beta2": 0.95,
    "optim.eps": 1e-8,
    "optim.weight_decay": 0.1,
    "optim.clip_norm": 1.0,
    "schedule.shape": "cosine",
    "schedule.final_fraction": 0.1,
}
# config/train_shakespeare_char.py of nanoGPT, where it differs.
BABYGPT = {
    **GPT2,
    "model.n_layer": 6,
    "model.n_head": 6,
    "model.d_model": 384,
    "model.context_length": 256,
    "model.dropout": 0.2,
    "model.attention_dropout": 0.2,
    "optim.learning_rate": 1e-3,
    "optim.beta2": 0.99,
    "schedule.warmup_steps": 100,
    "train.batch_size": 64,
}
# Touvron et al. 2023, section 2.
LLAMA = {
    **GPT2,
    "model.norm": "rmsnorm",
    "model.positions": "rope",
    "model.rope_base": 10_000.0,
    "model.feed_forward": "swiglu",
    "model.bias": False,
    "model.tied_head": False,
}
MODERN = {
    "model.norm": "rmsnorm",
    "model.positions": "rope",
    "model.feed_forward": "relu2",
    "model.qk_norm": True,
    "model.bias": False,
    "model.tied_head": False,
    "model.init": "zero-projections",
    "model.logit_softcap": 15.0,
    "optim.name": "muon",
    "schedule.shape": "trapezoid",
}
WANTED = {
    "gpt2": {**GPT2, "model.n_layer": 12, "model.n_head": 12, "model.d_model": 768, "model.context_length": 1024},
    "babygpt": BABYGPT,
    "llama": LLAMA,
    "modern": MODERN,
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_the_model_it_is_named_after(name: str) -> None:
    found = flatten(dataclasses.asdict(preset(name)))
    assert {key: found[key] for key in WANTED[name]} == WANTED[name]
    assert found["preset"] == name


def test_presets_change_known_settings_and_share_nothing() -> None:
    assert set().union(*PRESETS.values()) <= set(dict(settings()))
    assert preset("gpt2") == preset("gpt2")
    assert len({preset(name) for name in PRESETS}) == len(PRESETS)


def test_the_default_preset_is_there() -> None:
    assert RunConfig().preset in PRESETS


@pytest.mark.parametrize("name", ["gpt3", "", 5, ["gpt2"]])
def test_a_name_that_is_none_gets_the_list(name: Any) -> None:
    with pytest.raises(ConfigError, match=r"there is no preset .* There are: modern, llama, gpt2, babygpt"):
        preset(name)


def test_models_of_the_literature_have_their_size() -> None:
    assert {name: has_size(name) for name in PRESETS} == {
        "modern": False,
        "llama": False,
        "gpt2": True,
        "babygpt": True,
    }
