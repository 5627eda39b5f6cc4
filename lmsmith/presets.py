"""Names for good starting points: what a preset changes from the defaults of `config.py`.

`modern` and `llama` say how a model is built and trained and leave its size to `train/choose.py`, which fits it to the
text, the machine and the time. `gpt2` and `babygpt` are models of the literature, so their sizes are theirs.
"""

from typing import Any

from lmsmith.config import RunConfig
from lmsmith.errors import ConfigError

# Radford et al. 2019; training as in Brown et al. 2020, appendix B, which GPT-2's own paper leaves out.
_GPT2 = {
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
    "optim.learning_rate": 6e-4,
    "optim.beta2": 0.95,
    "optim.weight_decay": 0.1,
    "optim.clip_norm": 1.0,
    "schedule.shape": "cosine",
    "schedule.warmup_steps": 100,
    "schedule.final_fraction": 0.1,
}

PRESETS: dict[str, dict[str, Any]] = {
    # RMSNorm, RoPE, QK-norm, squared ReLU, zero projections, soft cap, Muon: the defaults of config.py, and tables of
    # hashed n-grams, which give a small model its local statistics at once.
    "modern": {"model.ngram_orders": (2, 3, 4), "optim.table_learning_rate": 0.02},
    # Touvron et al. 2023, "LLaMA", section 2.
    "llama": {
        "model.norm_gain": True,
        "model.embedding_norm": False,
        "model.feed_forward": "swiglu",
        "model.qk_norm": False,
        "model.logit_softcap": 0.0,
        "model.init": "gpt2",
        "optim.name": "adamw",
        "optim.learning_rate": 2e-3,
        "optim.weight_decay": 0.1,
        "optim.clip_norm": 1.0,
        "schedule.shape": "cosine",
        "schedule.warmup_steps": 50,
        "schedule.final_fraction": 0.1,
    },
    "gpt2": {**_GPT2, "model.n_layer": 12, "model.n_head": 12, "model.d_model": 768, "model.context_length": 1024},
    # nanoGPT's model of Shakespeare by characters: 10.65 million parameters.
    "babygpt": {
        **_GPT2,
        "model.n_layer": 6,
        "model.n_head": 6,
        "model.d_model": 384,
        "model.context_length": 256,
        "model.dropout": 0.2,
        "model.attention_dropout": 0.2,
        "optim.learning_rate": 1e-3,
        "optim.beta2": 0.99,
        "train.batch_size": 64,
    },
}


def preset(name: str) -> RunConfig:
    """The config that a preset names. Raises ConfigError for a name that is none."""
    if not isinstance(name, str) or name not in PRESETS:  # a recipe may say anything
        raise ConfigError(f"there is no preset {name!r}. There are: {', '.join(PRESETS)}.")
    return RunConfig(preset=name).changed(PRESETS[name], where=f"preset {name}")


def has_size(name: str) -> bool:
    """Whether the preset says how large its model is."""
    return "model.n_layer" in PRESETS[name]
