"""Small Transformers of every kind that a decoder has to know, with texts and an oracle."""

from typing import Any

import torch
from torch import Tensor

from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

V, T = 101, 48
GPT2 = {
    "norm": "layernorm",
    "norm_gain": True,
    "positions": "learned",
    "feed_forward": "gelu-tanh",
    "bias": True,
    "tied_head": True,
    "qk_norm": False,
    "embedding_norm": False,
    "logit_softcap": 0.0,
    "dropout": 0.1,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": {"norm_gain": True, "feed_forward": "swiglu", "n_kv_head": 2, "logit_softcap": 0.0},
    "modern": {
        "ngram_tables": (2, 3),
        "ngram_table_size": 64,
        "value_embedding_every": 2,
        "residual_scalars": True,
        "vocab_multiple": 16,
    },
    "window": {"window": 8, "window_pattern": "SL", "n_kv_head": 1},
    "post-norm": {
        "norm": "layernorm",
        "norm_placement": "post",
        "feed_forward": "gelu",
        "bias": True,
        "positions": "none",
        "embedding_norm": False,
    },
    "odd widths": {"d_head": 10, "d_ff": 37, "feed_forward": "geglu", "attention_bias": "qkv"},
    "qwen3": {"qk_gain": "dimension", "n_kv_head": 2, "norm_eps": 0.1, "norm_gain": True},
    "olmo2": {"qk_gain": "projection", "n_kv_head": 2, "norm_placement": "output", "norm_eps": 0.1},
    "neox": {
        "norm": "layernorm",
        "norm_gain": True,
        "bias": True,
        "parallel_residual": True,
        "rope_fraction": 0.5,
        "qk_norm": False,
        "d_head": 12,
    },
    "parallel, norms of outputs": {"parallel_residual": True, "norm_placement": "output"},
    "nope": {"rope_pattern": "RN", "window": 8, "window_pattern": "SSL", "rope_fraction": 0.41},
    "yarn": {"rope_scaling": "yarn", "rope_factor": 4.0, "rope_original_context": 200},
    "longrope": {
        "rope_scaling": "longrope",
        "rope_factor": 4.0,
        "rope_original_context": 12,
        "rope_factors": (1.0, 1.5, 2.0, 3.0, 4.0),
        "rope_attention_factor": 1.3,
    },
    "no norm": {"norm": "none", "embedding_norm": False, "feed_forward": "silu"},
}


def model_of(parts: dict[str, Any], dtype: torch.dtype = torch.float64) -> GPT:
    parts = {"n_layer": 3, "n_head": 4, "d_model": 40, "context_length": T} | parts
    model = GPT(GPTConfig(vocab_size=V, **parts)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data.normal_(0, 0.2, generator=generator)
    return model.eval()


def random_texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(0, V, (5, T), generator=generator).tolist()


@torch.no_grad()
def full_logits(model: GPT, text: list[int]) -> Tensor:
    return model(torch.tensor([text]))[0]
