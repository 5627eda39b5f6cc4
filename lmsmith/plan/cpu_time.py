"""Predicts the seconds of a step on this machine's CPU, from its measured speeds.

Each part of a step is a number of elementary operations divided by the measured speed of that
operation (`here.py`), times a factor:

    seconds = sum of FACTORS[part] * primitives(config)[part]

The factors say how much slower an operation is inside a step than in the measurement, where its
operands stay in the cache and its result has a place. `benchmarks/step_times.py` fits them to
measured configs by least squares of relative errors without negative factors, and writes
`cpu_time.toml`. The 80% interval comes from the same configs: each is predicted with factors that
were fitted without it. `lmsmith plan --grade` draws other configs, so neither the factors nor the
interval has seen them. `calibrate.py` corrects the factors on the machine that it runs on.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmsmith.config import RunConfig
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.gpt_costs import blocks
from lmsmith.plan.flops import Flops, flops
from lmsmith.plan.here import Measured
from lmsmith.plan.layers import Setup
from lmsmith.plan.memory import micro_batch
from lmsmith.plan.parameters import parameters
from lmsmith.plan.tape import Op
from lmsmith.plan.transformer import write_tape

FILE = Path(__file__).with_suffix(".toml")
# Parts that `calibrate.py` corrects together.
GROUPS = {
    "products": ("products of blocks", "attention", "head", "Muon, products"),
    "memory": ("passes over memory", "AdamW, bytes", "Muon, bytes"),
    "functions": (
        *("softmax of attention", "loss", "softcap", "dropout"),
        *("tanh GELU", "other activations"),
    ),
    "overhead": (
        *("operations", "blocks of attention", "windows", "checkpoints", "micro-batches"),
        *("tensors", "SGD, tensors", "Muon, matrices"),
    ),
}
GROUP_OF = {part: group for group, parts in GROUPS.items() for part in parts}
_FITTED: dict[str, Any] = tomllib.loads(FILE.read_text(encoding="utf-8"))
FACTORS: dict[str, float] = _FITTED["factors"]
# Of the configs that the factors were fitted to, 8 of 10 took between these multiples of a
# prediction by factors that were fitted without them.
LOW, HIGH = float(_FITTED["low"]), float(_FITTED["high"])
# Of recurrent networks: their share of the rate of products. Rough, not fitted.
RECURRENT = 0.5


def cpu_parts(config: RunConfig, speeds: Measured, world: int = 1) -> dict[str, float]:
    """Seconds of a step by part, on each of `world` processes."""
    if not isinstance(config.model, GPTConfig):
        rows, _ = micro_batch(config, world)
        n_tokens = _micro_batches(config, rows, world) * rows * config.model.context_length
        rate = RECURRENT * speeds.product_rate(_width(config))
        return {"all layers": n_tokens * flops(config).per_token / rate}
    found = primitives(config, config.model, speeds, world)
    parts = {
        name: speeds.corrections.get(GROUP_OF[name], 1.0) * FACTORS[name] * seconds
        for name, seconds in found.items()
    }
    return {name: seconds for name, seconds in parts.items() if seconds}


def primitives(
    config: RunConfig, model: GPTConfig, speeds: Measured, world: int = 1
) -> dict[str, float]:
    """Seconds of each part of a step at the measured speeds."""
    rows, _ = micro_batch(config, world)
    n_micro = _micro_batches(config, rows, world)
    n_tokens = rows * model.context_length
    found, rate = flops(config, "blocks"), speeds.product_rate(_width(config))
    # Forward passes of blocks after the first one.
    again = int(config.train.activation_checkpointing)
    ops = write_tape(config, Setup(rows, 4, 4, gpu=False)).ops
    passes = sum(_repeats(op, again) * traffic(op) for op in ops if not is_product(op))
    logits = n_tokens * model.padded_vocab_size
    attention = ("scores", "values")
    of_blocks = sum(
        part.total for name, part in found.parts.items() if name not in (*attention, "head")
    )
    windows = sum(bool(model.window_of(layer)) for layer in range(model.n_layer))
    of_micro_batches = {
        "products of blocks": n_tokens * of_blocks / rate,
        "attention": n_tokens * _total(found, attention) / speeds.attention,
        "head": n_tokens * _total(found, ("head",)) / rate,
        "passes over memory": passes / speeds.small,
        **{name: n / speeds.exponential for name, n in _functions(model, found, n_tokens, again)},
        "loss": logits / speeds.exponential,
        "softcap": logits * bool(model.logit_softcap) / speeds.exponential,
        "operations": sum(_repeats(op, again) for op in ops) * speeds.overhead,
        "blocks of attention": (3 + again) * _n_blocks(model) * speeds.overhead,
        "windows": (1 + again) * windows * speeds.overhead,
        "checkpoints": again * model.n_layer * speeds.overhead,
        "micro-batches": speeds.overhead,
    }
    every = {name: n_micro * seconds for name, seconds in of_micro_batches.items()}
    return every | _of_step(config, found, speeds, rate)


def _functions(
    model: GPTConfig, found: Flops, n_tokens: int, again: int
) -> Iterator[tuple[str, float]]:
    """Numbers of which a forward pass computes a function, by function. Backward passes compute
    products and sums of them.
    """
    scores = n_tokens * found.parts["scores"].forward / (2 * model.width_head)
    smooth: float = n_tokens * model.width_ff * model.n_layer * (model.feed_forward != "relu2")
    tanh = model.feed_forward == "gelu-tanh"
    dropped = n_tokens * model.d_model * (2 * model.n_layer * (1 + again) + 1)
    dropped *= bool(model.dropout)
    yield "softmax of attention", (1 + again) * scores
    yield "dropout", dropped + (1 + again) * scores * bool(model.attention_dropout)
    yield "tanh GELU", (1 + again) * smooth * tanh
    yield "other activations", (1 + again) * smooth * (not tanh)


def _n_blocks(model: GPTConfig) -> int:
    """Blocks of queries of all layers; `models/kernels.py` computes attention one by one."""
    every = (blocks(model.context_length, model.window_of(n)) for n in range(model.n_layer))
    return sum(map(len, every))


def _repeats(op: Op, again: int) -> int:
    """How often a step makes an operation; its backward pass counts twice."""
    return 3 + again * (op.group >= 0)


def _of_step(config: RunConfig, found: Flops, speeds: Measured, rate: float) -> dict[str, float]:
    """The optimizer. Its factors include the gradients, which grow with it."""
    learned = [parameter for parameter in parameters(config) if parameter.learned]
    muon = [parameter for parameter in learned if parameter.optimizer == "muon"]
    n, n_muon = (sum(each.n for each in those) for those in (learned, muon))
    return {
        "AdamW, bytes": 4 * (n - n_muon) / speeds.copy,
        "Muon, bytes": 4 * n_muon / speeds.copy,
        "Muon, products": found.optimizer_products / rate,
        "tensors": len(learned) * speeds.overhead,
        "SGD, tensors": len(learned) * (config.optim.name == "sgd") * speeds.overhead,
        "Muon, matrices": len(muon) * speeds.overhead,
    }


def traffic(op: Op) -> float:
    """Bytes that an operation reads and writes."""
    return sum(tensor.n_bytes for tensor in (*op.inputs, *op.outputs))


def is_product(op: Op) -> bool:
    """Whether an operation's time is not that of its bytes."""
    return op.name.endswith("product") or op.name in ("attention", "views", "loss")


def _total(found: Flops, names: tuple[str, ...]) -> float:
    return sum(part.total for name, part in found.parts.items() if name in names)


def _micro_batches(config: RunConfig, rows: int, world: int) -> int:
    total = config.train.batch_size
    if config.train.batch_tokens:
        total = max(1, round(config.train.batch_tokens / config.model.context_length))
    return -(-max(1, total // world) // rows)


def _width(config: RunConfig) -> float:
    return float(getattr(config.model, "d_model", 256))
