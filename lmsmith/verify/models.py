"""Small models and texts for the checks: random weights, odd sizes, float64.

No weight is zero or one, so that a weight that is ignored shows. Widths are no powers of two.
Models and ids are created on the CPU and moved to `device()`, so they are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig

V, T = 61, 24  # vocabulary and context length of the small models

GPT2: dict[str, Any] = {
    "norm": "layernorm",
    "norm_gain": True,
    "positions": "learned",
    "feed_forward": "gelu-tanh",
    "bias": True,
    "tied_head": True,
    "qk_norm": False,
    "embedding_norm": False,
    "logit_softcap": 0.0,
}
LLAMA: dict[str, Any] = {
    "norm_gain": True,
    "feed_forward": "swiglu",
    "n_kv_head": 2,
    "qk_norm": False,
    "embedding_norm": False,
    "logit_softcap": 0.0,
}
MODERN: dict[str, Any] = {
    "ngram_tables": (2, 3),
    "ngram_table_size": 64,
    "value_embedding_every": 2,
    "vocab_multiple": 16,
}
WINDOWED: dict[str, Any] = {"window": 7, "window_pattern": "SL", "n_kv_head": 1}
VARIANTS = {"gpt2": GPT2, "llama": LLAMA, "modern": MODERN, "windows": WINDOWED}

_device: ContextVar[str] = ContextVar("device", default="cpu")


def device() -> torch.device:
    """Where the checks compute."""
    return torch.device(_device.get())


@contextmanager
def on(place: str) -> Iterator[None]:
    """Computes on this device inside the block: "cpu" or "cuda"."""
    before = _device.set(place)
    try:
        yield
    finally:
        _device.reset(before)


def small_model(variant: str, dtype: torch.dtype = torch.float64, **settings: Any) -> GPT:
    """A model of one of VARIANTS with random weights, in evaluation mode."""
    sizes: dict[str, Any] = {"n_layer": 2, "n_head": 4, "d_model": 24, "context_length": T}
    config = GPTConfig(**{"vocab_size": V} | sizes | VARIANTS[variant] | settings)
    model = GPT(config).to(dtype)
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data.normal_(0.05, 0.2, generator=generator)
    return model.to(device()).eval()


def random_ids(*shape: int, seed: int = 2, vocab_size: int = V) -> Tensor:
    """Ids (shape) below `vocab_size`, int64."""
    ids = torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))
    return ids.to(device())


def log_softmax(logits: Any) -> np.ndarray:
    """Log-probabilities of logits (..., V), in float64, from the definition."""
    x = np.asarray(logits.detach().cpu() if isinstance(logits, Tensor) else logits, np.float64)
    x = x - x.max(-1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(-1, keepdims=True)))
