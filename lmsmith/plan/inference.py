"""KV cache and speed of generation.

Decoding one token reads every weight once and the cache of each sequence, and computes 2 FLOPs per
matrix parameter and sequence; the slower of the two decides. Prefill is a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass

from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.gpt_costs import products

READ_EFFICIENCY = 0.7
"""Share of the memory bandwidth that decoding reaches: gpt-fast reads Llama 2 7B in bfloat16 (13.2
GB per token) at 104.9 tokens/s from 2,039 GB/s: 0.68.
"""


@dataclass(frozen=True)
class Inference:
    """Costs of generation with a batch of sequences at full context."""

    weights: float  # bytes read per token
    cache_per_token: float  # bytes of keys and values per token of a sequence
    cache: float  # bytes of all sequences at full context
    tokens_per_second: float  # of all sequences together; 0: unknown device
    bound: str  # "memory" or "arithmetic"
    batch: int = 1  # sequences


def cache_per_token(model: GPTConfig, n_bytes: int = 2) -> float:
    """Bytes of keys and values that a token adds to the cache."""
    return 2.0 * model.n_layer * model.n_kv * model.width_head * n_bytes


def inference(
    model: GPTConfig,
    *,
    batch: int = 1,
    bandwidth: float = 0.0,
    peak: float = 0.0,
    bytes_per_weight: float = 2,
    bytes_per_key: int = 2,
) -> Inference:
    """Costs of decoding `batch` sequences; `bandwidth` in bytes/s, `peak` in FLOP/s."""
    weights = model.matrix_parameters() * bytes_per_weight
    per_token = cache_per_token(model, bytes_per_key)
    lengths = [
        min(model.window_of(layer) or model.context_length, model.context_length)
        for layer in range(model.n_layer)
    ]
    cache = batch * per_token * sum(lengths) / model.n_layer
    flops = batch * sum(product.flops for product in products(model, "window"))
    if not bandwidth or not peak:
        return Inference(weights, per_token, cache, 0.0, "", batch)
    reading = (weights + cache / 2) / (READ_EFFICIENCY * bandwidth)  # half full on average
    computing = flops / (0.5 * peak)
    bound = "memory" if reading >= computing else "arithmetic"
    return Inference(weights, per_token, cache, batch / max(reading, computing), bound, batch)
