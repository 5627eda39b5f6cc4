"""Parameters and matrix products of a Transformer, from its settings alone.

`shapes` lists every parameter as the built model names it. `products` lists every matrix product of
a forward pass. All counts of parameters and FLOPs in lmsmith come from these two lists; nothing is
built, and torch is not imported.

A product of (m, k) and (k, n) costs 2 m k n floating-point operations (FLOPs). Look-ups, norms and
activations count zero. Attention depends on which pairs of query and key are counted (`COUNTINGS`):

    causal   the keys that a query sees: w - w²/2T on average, with w the window or T
    window   w keys for each query, as in PaLM's, nanoGPT's and nanochat's formulas
    full     T keys for each query: the full square, which PyTorch's math attention computes
    blocks   the keys in the blocks that lmsmith's CPU kernel multiplies (`models/kernels.py`)

Shapes: T context length, D d_model, H query heads, G key-value heads, K d_head, F d_ff.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from lmsmith.models.gpt_config import GPTConfig

Counting = Literal["causal", "window", "full", "blocks"]
COUNTINGS: tuple[Counting, ...] = ("causal", "window", "full", "blocks")
BLOCK = 128  # queries per block of the CPU kernel


@dataclass(frozen=True)
class Product:
    """A matrix product of the forward pass. `part` is its name in tables.

    `flops`: FLOPs per token, forward. `weight`: the parameter it multiplies with; "" for the two
    products of attention. `layer`: the block, or -1 for the head. `columns`: the size of its output
    per token.
    """

    part: str
    layer: int
    flops: float
    weight: str
    columns: int


def shapes(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by name, in the order of the model's `named_parameters`."""
    D, rows = config.d_model, config.padded_vocab_size
    found: dict[str, tuple[int, ...]] = {}
    if config.residual_scalars:
        found |= {"residual_scale": (config.n_layer,), "input_scale": (config.n_layer,)}
    found["token_embedding.weight"] = (rows, D)
    if config.positions == "learned":
        found["position_embedding.weight"] = (config.context_length, D)
    for index in range(len(config.ngram_tables)):
        found[f"ngram_embedding.tables.{index}.weight"] = (config.ngram_table_size, D)
    for layer in range(config.n_layer):
        if config.has_value_embedding(layer):
            found[f"value_embeddings.{layer}.weight"] = (rows, config.n_kv * config.width_head)
    for layer in range(config.n_layer):
        inside = _shapes_of_block(config, layer)
        found |= {f"blocks.{layer}.{name}": shape for name, shape in inside.items()}
    if config.norm_placement != "post":
        found |= _norm(config, "final_norm")
    if not config.tied_head:
        found["head.weight"] = (rows, D)
    return found


def _shapes_of_block(config: GPTConfig, layer: int) -> dict[str, tuple[int, ...]]:
    D, F, H, G, K = (
        *(config.d_model, config.width_ff),
        *(config.n_head, config.n_kv, config.width_head),
    )
    biases = config.attention_biases
    found = _norm(config, "norm_attention")
    kind = config.qk_gain if config.qk_norm else None
    if kind == "head":
        found["attention.qk_gain"] = (H,)
    elif kind is not None:
        n_q, n_k = (H, G) if kind == "projection" else (1, 1)
        found |= {"attention.q_gain": (n_q * K,), "attention.k_gain": (n_k * K,)}
    found["attention.qkv.weight"] = ((H + 2 * G) * K, D)
    if biases != "none":
        found["attention.qkv.bias"] = ((H + 2 * G) * K,)
    found["attention.out.weight"] = (D, H * K)
    if biases == "all":
        found["attention.out.bias"] = (D,)
    if config.has_value_embedding(layer):
        found["attention.value_gate.weight"] = (G, config.d_value_gate)
    found |= _norm(config, "norm_feed_forward")
    up = 2 * F if config.gated else F
    for name, n_out, n_in in (("up", up, D), ("down", D, F)):
        found[f"feed_forward.{name}.weight"] = (n_out, n_in)
        if config.bias:
            found[f"feed_forward.{name}.bias"] = (n_out,)
    return found


def _norm(config: GPTConfig, name: str) -> dict[str, tuple[int, ...]]:
    if not config.norm_gain:
        return {}
    found: dict[str, tuple[int, ...]] = {f"{name}.weight": (config.d_model,)}
    if config.bias and config.norm == "layernorm":
        found[f"{name}.bias"] = (config.d_model,)
    return found


def products(config: GPTConfig, counting: Counting = "causal") -> Iterator[Product]:
    """Yields the matrix products of a forward pass over rows of `context_length` tokens."""
    D, F, H, G, K = (
        *(config.d_model, config.width_ff),
        *(config.n_head, config.n_kv, config.width_head),
    )
    for layer in range(config.n_layer):
        seen = keys_per_query(config.context_length, config.window_of(layer), counting)
        block = f"blocks.{layer}."
        n_qkv = (H + 2 * G) * K
        yield _linear("QKV", layer, block + "attention.qkv.weight", D, n_qkv)
        if config.has_value_embedding(layer):
            gate = config.d_value_gate
            yield _linear("value gates", layer, block + "attention.value_gate.weight", gate, G)
        yield Product("scores", layer, 2.0 * seen * H * K, "", H)
        yield Product("values", layer, 2.0 * seen * H * K, "", H * K)
        yield _linear("output", layer, block + "attention.out.weight", H * K, D)
        up = 2 * F if config.gated else F
        yield _linear("feed-forward", layer, block + "feed_forward.up.weight", D, up)
        yield _linear("feed-forward", layer, block + "feed_forward.down.weight", F, D)
    name = "token_embedding.weight" if config.tied_head else "head.weight"
    yield _linear("head", -1, name, D, config.padded_vocab_size)


def _linear(part: str, layer: int, weight: str, n_in: int, n_out: int) -> Product:
    return Product(part, layer, 2.0 * n_in * n_out, weight, n_out)


def keys_per_query(T: int, window: int, counting: Counting) -> float:
    """Mean number of keys that count for a query in a row of T tokens. `window` 0: no window."""
    w = min(window or T, T)
    counts: dict[Counting, Callable[[], float]] = {
        "causal": lambda: w - w * w / (2 * T),
        "window": lambda: w,
        "full": lambda: T,
        "blocks": lambda: (
            sum((end - start) * (end - low) for start, end, low in blocks(T, window)) / T
        ),
    }
    return counts[counting]()


def blocks(T: int, window: int) -> list[tuple[int, int, int]]:
    """Blocks of queries of the CPU kernel: start, end, and the earliest key that one of them
    sees.
    """
    cuts = [(start, min(T, start + BLOCK)) for start in range(0, T, BLOCK)]
    w = window if 0 < window < T else T
    return [(start, end, max(0, start - w + 1)) for start, end in cuts]
