"""Predicts the seconds of a step on this machine's CPU, from its measured speeds.

Each part of a step is a number of elementary operations divided by the measured speed of that
operation (`here.py`), times a factor:

    seconds = sum of FACTORS[part] * primitives(config)[part]

The factors say how much slower an operation is inside a step than in the measurement, where its
operands stay in the cache and its result has a place. They were fitted to CALIBRATED configs on one
machine, each measured twice, hours apart, in seconds of one thread's own processor time, by least
squares of relative errors without negative factors. `calibrate.py` corrects them on the machine
that it runs on. `lmsmith plan --grade` measures other configs.
"""

from __future__ import annotations

from lmsmith.config import RunConfig
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.plan.flops import Flops, flops
from lmsmith.plan.here import Measured
from lmsmith.plan.layers import Setup
from lmsmith.plan.memory import micro_batch
from lmsmith.plan.parameters import parameters
from lmsmith.plan.tape import Op
from lmsmith.plan.transformer import write_tape

CALIBRATED = 168
FACTORS = {
    "products of blocks": 0.935,
    "attention": 1.77,
    "head": 1.08,
    "passes over memory": 4.66,
    "softmax of attention": 2.62,
    "loss": 6.21,
    "softcap": 10.6,
    "dropout": 25.5,
    "activation": 5.41,
    "operations": 4.67,
    "checkpoints": 261.0,
    "micro-batches": 479.0,
    "AdamW, bytes": 15.0,
    "Muon, bytes": 47.0,
    "Muon, products": 1.31,
    "tensors": 2.9,
    "Muon, matrices": 23.3,
}
# Parts that `calibrate.py` corrects together.
GROUPS = {
    "products": ("products of blocks", "attention", "head", "Muon, products"),
    "memory": ("passes over memory", "AdamW, bytes", "Muon, bytes"),
    "functions": ("softmax of attention", "loss", "softcap", "dropout", "activation"),
    "overhead": ("operations", "checkpoints", "micro-batches", "tensors", "Muon, matrices"),
}
GROUP_OF = {part: group for group, parts in GROUPS.items() for part in parts}
# In 8 of 10 configs that no fit used, the measured time was between these multiples of the
# prediction: 24 configs, measured twice.
LOW, HIGH = 0.84, 1.22
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
    repeats = 3 + config.train.activation_checkpointing
    ops = write_tape(config, Setup(rows, 4, 4, gpu=False)).ops
    passes = sum(traffic(op) for op in ops if not is_product(op))
    scores = n_tokens * found.parts["scores"].forward / (2 * model.width_head)
    logits = n_tokens * model.padded_vocab_size
    dropped: float = n_tokens * model.d_model * (2 * model.n_layer + 1) * bool(model.dropout)
    dropped += scores * bool(model.attention_dropout)
    smooth = n_tokens * model.width_ff * model.n_layer * (model.feed_forward != "relu2")
    attention = ("scores", "values")
    blocks = sum(
        part.total for name, part in found.parts.items() if name not in (*attention, "head")
    )
    of_micro_batches = {
        "products of blocks": n_tokens * blocks / rate,
        "attention": n_tokens * _total(found, attention) / speeds.attention,
        "head": n_tokens * _total(found, ("head",)) / rate,
        "passes over memory": repeats * passes / speeds.small,
        "softmax of attention": repeats * scores / speeds.exponential,
        "loss": logits / speeds.exponential,
        "softcap": logits * bool(model.logit_softcap) / speeds.exponential,
        "dropout": dropped / speeds.exponential,
        "activation": repeats * smooth / speeds.exponential,
        "operations": repeats * len(ops) * speeds.overhead,
        "checkpoints": config.train.activation_checkpointing * model.n_layer * speeds.overhead,
        "micro-batches": speeds.overhead,
    }
    every = {name: n_micro * seconds for name, seconds in of_micro_batches.items()}
    return every | _of_step(config, found, speeds, rate)


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
