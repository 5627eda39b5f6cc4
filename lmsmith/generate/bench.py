"""How fast a model generates on this machine: tokens per second by batch size and weight format.

A decode step reads every weight once, so at batch 1 it cannot be faster than memory: `read_rate`
measures that bound, and the results give the share of it that was reached.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from lmsmith.errors import ConfigError
from lmsmith.generate.decoders import Decoder, decoder_for
from lmsmith.generate.weights import Packed
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.interface import LanguageModel

SHAPES: dict[str, dict[str, Any]] = {
    "10M": {"n_layer": 6, "n_head": 6, "d_model": 384, "vocab_size": 65},
    "30M": {"n_layer": 6, "n_head": 6, "d_model": 384, "vocab_size": 50257},
    "124M": {"n_layer": 12, "n_head": 12, "d_model": 768, "vocab_size": 50257},
}
"""GPT-2's architecture with random weights: babyGPT's shape without and with GPT-2's vocabulary,
and GPT-2 124M.
"""


@dataclass(frozen=True)
class Speed:
    """A decode measurement."""

    batch: int
    tokens_per_second: float
    share_of_read_rate: float  # bytes of weights read per second over `read_rate`


def shape(name: str) -> GPT:
    """A model of SHAPES with random weights. Raises ConfigError for another name."""
    if name not in SHAPES:
        raise ConfigError(f"shape = {name!r}: expected {', '.join(SHAPES)}.")
    config = GPTConfig(
        context_length=1024,
        norm="layernorm",
        norm_gain=True,
        positions="learned",
        feed_forward="gelu-tanh",
        bias=True,
        tied_head=True,
        qk_norm=False,
        embedding_norm=False,
        logit_softcap=0.0,
        init="gpt2",
        **SHAPES[name],
    )
    model = GPT(config)
    model.initialise(torch.Generator().manual_seed(0))
    return model.eval()


def weight_bytes(model: LanguageModel) -> int:
    """Bytes of the matrices that one decode step reads: all linear maps and the output head."""
    if not isinstance(model, GPT):
        return 0
    total = 0
    for module in model.modules():
        matrix = module.matrix if isinstance(module, Packed) else getattr(module, "weight", None)
        is_table = isinstance(module, torch.nn.Embedding) or module is model.token_embedding
        if matrix is None or matrix.dim() != 2:
            continue
        if not is_table or (module is model.token_embedding and model.head is None):
            total += matrix.numel() * matrix.element_size()
    return total


def read_rate(n_bytes: int = 1 << 29, n: int = 5) -> float:
    """Bytes per second at which this machine reads memory with all threads: a sum over an array
    larger than its caches.
    """
    array = torch.ones(n_bytes // 4)
    return n_bytes / min(_seconds(array.sum) for _ in range(n))


def decode_speed(
    model: LanguageModel,
    batches: Sequence[int] = (1, 8, 16),
    *,
    n_tokens: int = 16,
    n: int = 5,
    bytes_per_second: float | None = None,
) -> Iterator[Speed]:
    """Times decode steps after a prompt of 32 tokens, or half of a shorter context.

    Yields the median of `n` rounds of up to `n_tokens` for each batch size. Raises ConfigError for
    a context of one token.
    """
    rate = bytes_per_second or read_rate()
    context = model.context_length or 1 << 30
    if context < 2:
        raise ConfigError("a model with a context of one token has no decode step to time.")
    length = min(32, max(1, context // 2))
    per_round = max(1, min(n_tokens, context - length))
    prompt = [i % model.vocab_size for i in range(length)]
    for batch in batches:
        decoder = decoder_for(model, batch)
        slots, ids = range(batch), [0] * batch
        seconds = []
        for _ in range(n + 1):
            for slot in slots:
                decoder.prefill(slot, prompt)
            seconds.append(_seconds(partial(_steps, decoder, slots, ids, per_round)) / per_round)
        each = statistics.median(seconds[1:])  # the first round warms up
        yield Speed(batch, batch / each, weight_bytes(model) / each / rate)


def _steps(decoder: Decoder, slots: Sequence[int], ids: Sequence[int], n: int) -> None:
    for _ in range(n):
        logits = decoder.step(slots, ids)
    logits[0, 0].item()  # a GPU may still be at work


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
