"""Published runs, and what the plan predicts for them (`lmsmith plan --published`).

Every prediction uses the efficiencies of `time.py`, which are the same for all devices. So the
errors show what such a prediction is worth without a measurement on the device itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.plan.devices import device
from lmsmith.plan.inference import cache_per_token, inference
from lmsmith.plan.layers import Implementation
from lmsmith.plan.predict import predict

MATH = Implementation(attention="math", loss="full")
FULL = Implementation(loss="full")
TITAN = Implementation(loss="full", selective=True, half=True)
TITAN_COMPILED = Implementation(loss="compiled", selective=True, half=True)
TITAN_FLOAT8 = Implementation(loss="compiled", selective=True, half=True, float8=True)


@dataclass(frozen=True)
class Published:
    """One run: its settings, and its figures: tokens/s of each device, peak GiB of each device."""

    name: str
    preset: str
    settings: dict[str, Any]
    device: str
    world: int
    how: Implementation
    tokens_per_second: float
    gibibytes: float = 0.0


@dataclass(frozen=True)
class Row:
    """A figure: predicted, published, and the relative error."""

    name: str
    figure: str
    predicted: float
    published: float

    @property
    def error(self) -> float:
        return self.predicted / self.published - 1

    def cells(self) -> tuple[str, str, str, str, str]:
        small = self.published < 1000
        predicted, published = (
            f"{x:,.1f}" if small else f"{x:,.0f}" for x in (self.predicted, self.published)
        )
        return self.name, self.figure, predicted, published, f"{self.error:+.0%}"


_GPT2 = {"model.vocab_size": 50257, "train.batch_size": 16, "train.dtype": "bfloat16"}
_PADDED = {**_GPT2, "model.vocab_multiple": 128, "train.batch_size": 512}
LLAMA_8B: dict[str, Any] = {
    "model.n_layer": 32,
    "model.n_head": 32,
    "model.n_kv_head": 8,
    "model.d_model": 4096,
    "model.d_ff": 14336,
    "model.vocab_size": 128256,
    "model.context_length": 8192,
    "train.batch_size": 16,
    "train.parallel": "fsdp",
    "train.dtype": "bfloat16",
    "train.activation_checkpointing": True,
}
_EAGER, _COMPILED = {"train.compile": "no"}, {"train.compile": "yes"}


def _rung(
    name: str,
    dtype: str,
    compiled: bool,
    how: Implementation,
    ms: float,
    *,
    padded: bool = False,
    card: str = "a100-40gb",
    n_rows: int = 16,
    accumulates: bool = False,
) -> Published:
    """A rung of the speed ladder: GPT-2 124M, `ms` milliseconds per micro-batch.

    `accumulates`: gradients over 2**19 tokens.
    """
    changes: dict[str, Any] = {"train.dtype": dtype, "train.batch_size": n_rows}
    if accumulates:
        changes = {"train.dtype": dtype, "train.batch_size": 512, "train.micro_batch_size": n_rows}
    changes |= _COMPILED if compiled else _EAGER
    changes |= {"model.vocab_multiple": 128} if padded else {}
    where = "" if card == "a100-40gb" else f" on a {card.upper()}"
    rate = n_rows * 1024 / ms * 1000
    return Published(f"GPT-2{where}, {name}", "gpt2", _GPT2 | changes, card, 1, how, rate)


# Karpathy's lecture on GPT-2 (build-nanogpt), and a course that repeated it on a T4; torchtitan's
# performance page; llm.c's discussion 481 ("in 90 minutes for $20": 10 billion tokens).
RUNS = (
    _rung("float32", "float32", False, MATH, 1000),
    _rung("TF32", "tf32", False, MATH, 333),
    _rung("bfloat16", "bfloat16", False, MATH, 300),
    _rung("compiled", "bfloat16", True, MATH, 130),
    _rung("FlashAttention", "bfloat16", True, FULL, 96),
    _rung("padded, fused AdamW", "bfloat16", True, FULL, 90, padded=True),
    _rung("accumulation", "bfloat16", True, FULL, 89, padded=True, accumulates=True),
    _rung("float32", "float32", False, MATH, 1200, card="t4", n_rows=4),
    _rung("float16", "float16", False, MATH, 485, card="t4", n_rows=4),
    _rung("compiled", "float16", True, MATH, 325, card="t4", n_rows=4),
    _rung("FlashAttention", "float16", True, FULL, 270, card="t4", n_rows=4),
    _rung("padded, fused AdamW", "float16", True, FULL, 255, padded=True, card="t4", n_rows=4),
    _rung(
        *("accumulation", "float16", True, FULL, 205),
        padded=True, card="t4", n_rows=4, accumulates=True,
    ),
    Published(
        "GPT-2, 8 A100, DDP",
        "gpt2",
        {**_PADDED, **_COMPILED, "train.micro_batch_size": 64},
        "a100-80gb",
        8,
        FULL,
        1.5e6 / 8,
    ),
    Published(
        "llm.c, GPT-2, 8 A100",
        "gpt2",
        {**_PADDED, **_COMPILED, "train.micro_batch_size": 64},
        "a100-80gb",
        8,
        FULL,
        10e9 / 5400 / 8,
    ),
    Published(
        "llm.c, GPT-2, 1 A100 (early)",
        "gpt2",
        {**_PADDED, **_COMPILED, "train.micro_batch_size": 32},
        "a100-40gb",
        1,
        MATH,
        125_000,
    ),
    Published(
        "Llama 8B, eager", "llama", {**LLAMA_8B, **_EAGER}, "h100-96gb", 8, TITAN,
        5762, 82.4,
    ),
    Published(
        "Llama 8B, compiled", "llama", {**LLAMA_8B, **_COMPILED}, "h100-96gb", 8, TITAN_COMPILED,
        6667, 77.0,
    ),
    Published(
        "Llama 8B, FP8", "llama", {**LLAMA_8B, **_COMPILED}, "h100-96gb", 8, TITAN_FLOAT8,
        8532, 76.8,
    ),
)  # fmt: skip


def retrodictions() -> Iterator[Row]:
    """Yields each published figure with its prediction."""
    for run in RUNS:
        config = preset(run.preset).changed(run.settings, where=run.name)
        plan = predict(config, device(run.device), run.world, how=run.how)
        each = plan.step.tokens_per_second / run.world
        yield Row(run.name, "tokens/s per device", each, run.tokens_per_second)
        if run.gibibytes:
            yield Row(run.name, "GiB", plan.memory.n_bytes / 2**30, run.gibibytes)
    yield _speedrun()
    yield from _decoding()
    yield _served()


def nanochat(depth: int) -> dict[str, Any]:
    """Settings of nanochat's model: windows of half the context in three of four layers, gated
    value embeddings in every second layer.
    """
    return {
        "model.n_layer": depth,
        "model.d_model": 64 * depth,
        "model.n_head": depth // 2,
        "model.context_length": 2048,
        "model.vocab_size": 32768,
        "model.ngram_tables": (),
        "model.window": 1024,
        "model.window_pattern": "SSSL",
        "model.value_embedding_every": 2,
        "model.residual_scalars": True,
    }


def _speedrun() -> Row:
    """GPT-2 XL's CORE in 1.65 h on 8 H100: the d24 model, 10.5 tokens per parameter of a matrix."""
    settings = {**nanochat(24), "train.batch_size": 256, "train.micro_batch_size": 32}
    config = preset("modern").changed({**settings, **_COMPILED}, where="nanochat")
    plan = predict(config, device("h100"), 8)
    tokens = 10.5 * config.neural.matrix_parameters()
    hours = tokens / plan.step.tokens_per_second / 3600
    return Row("nanochat d24, 8 H100", "hours", hours, 1.65)


def _decoding() -> Iterator[Row]:
    """gpt-fast: Llama 2 7B on one A100."""
    config = preset("llama").changed(
        {
            "model.n_layer": 32,
            "model.n_head": 32,
            "model.d_model": 4096,
            "model.d_ff": 11008,
            "model.vocab_size": 32000,
            "model.context_length": 256,
        },
        where="Llama 2",
    )
    a100 = device("a100-80gb")
    for name, n_bytes, published in (
        ("", 2.0, 104.9),
        (", int8", 1.0, 155.6),
        (", int4", 0.5, 196.8),
    ):
        found = inference(
            GPTConfig.of(config.model),
            bandwidth=a100.bandwidth,
            peak=a100.peak("bfloat16"),
            bytes_per_weight=n_bytes,
        )
        yield Row(f"gpt-fast, Llama 7B{name}", "tokens/s", found.tokens_per_second, published)


# nano-vllm's benchmark: 100 to 1,024 tokens of input and of output, at random. A sequence is half
# decoded on average. An RTX 4070 Laptop has 8 GiB and reads 256 GB/s (from memory, not verified).
_TOKENS = (100 + 1024) / 2 * 1.5
_LAPTOP, _READS, _COMPUTES, _USED = 8 * 2**30, 256e9, 80e12, 0.9


def qwen3() -> RunConfig:
    """Qwen3 0.6B, with a context whose half is the mean length in nano-vllm's benchmark."""
    settings = {
        "model.n_layer": 28,
        "model.n_head": 16,
        "model.n_kv_head": 8,
        "model.d_head": 128,
        "model.d_model": 1024,
        "model.d_ff": 3072,
        "model.vocab_size": 151936,
        "model.tied_head": True,
        "model.context_length": round(2 * _TOKENS),
    }
    return preset("qwen3").changed(settings, where="Qwen3 0.6B")


def _served() -> Row:
    """nano-vllm: as many sequences at once as fit into nine tenths of the memory."""
    config = qwen3()
    model = GPTConfig.of(config.model)
    room = _USED * _LAPTOP - 2 * config.neural.n_parameters()
    batch = int(room / (_TOKENS * cache_per_token(model)))
    found = inference(model, batch=batch, bandwidth=_READS, peak=_COMPUTES)
    return Row("nano-vllm, Qwen3 0.6B, RTX 4070 Laptop", "tokens/s", found.tokens_per_second, 1434)
