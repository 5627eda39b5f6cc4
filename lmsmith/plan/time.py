"""Predicts the seconds of a training step: arithmetic and bytes, part by part.

A part takes the time of its matrix products plus the time of its passes over memory:

    products    FLOPs / (efficiency * peak)
    passes      bytes read and written / (efficiency * bandwidth)
    exchange    what communication exceeds the backward pass

This machine's CPU is predicted from measured speeds instead (`cpu_time.py`).
The efficiencies of devices in the table are assumptions, stated in `EFFICIENCY` and printed with
each plan. `published.py` compares them with published runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lmsmith.config import RunConfig
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.gpt_costs import Counting
from lmsmith.plan.communication import communication
from lmsmith.plan.cpu_time import HIGH, LOW, cpu_parts, is_product, traffic
from lmsmith.plan.devices import Device
from lmsmith.plan.flops import flops
from lmsmith.plan.layers import LMSMITH, Implementation, Setup
from lmsmith.plan.memory import micro_batch
from lmsmith.plan.parameters import parameters
from lmsmith.plan.transformer import write_tape


@dataclass(frozen=True)
class Efficiency:
    """Shares of a device's peaks that training is assumed to reach.

    `products`: on tensor cores; `plain`: in float32 without them. `fused`: share of the passes over
    memory that remain when the blocks are compiled.
    """

    products: float = 0.6
    plain: float = 0.85
    attention: float = 0.4
    bandwidth: float = 0.75
    fused: float = 0.45
    exchange: float = 0.7


EFFICIENCY = Efficiency()
# Backward passes read and write about twice what forward passes do.
BACKWARD = 2.0
# Bytes that the optimizer reads and writes per parameter, in units of the parameter.
OPTIMIZER_PASSES = {"adamw": 7, "muon": 9, "sgd": 5, "other": 7}


@dataclass(frozen=True)
class StepTime:
    """Seconds of a step by part; `low` to `high` should hold in 8 of 10 cases."""

    parts: dict[str, float]
    low: float
    high: float
    tokens: int
    efficiency: Efficiency | None = field(default=None)

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


def step_time(
    config: RunConfig,
    device: Device,
    world: int = 1,
    *,
    compiled: bool | None = None,
    efficiency: Efficiency = EFFICIENCY,
    how: Implementation = LMSMITH,
) -> StepTime:
    """Predicts the seconds of a step on `world` devices of this kind.

    `compiled`: torch.compile of the blocks; by default on GPUs unless `train.compile` is "no".
    """
    rows, _ = micro_batch(config, world)
    total_rows = config.train.batch_size
    if config.train.batch_tokens:
        total_rows = max(1, round(config.train.batch_tokens / config.model.context_length))
    n_micro = -(-max(1, total_rows // world) // rows)
    if compiled is None:
        compiled = device.gpu and config.train.compile != "no"
    if device.measured is not None:
        parts = cpu_parts(config, device.measured, world)
    else:
        parts = _on_device(config, device, rows, compiled, efficiency, how)
        parts = {name: n_micro * seconds for name, seconds in parts.items()}
    backward = 2 / 3 * sum(parts.values())
    exchanged = communication(config, world, n_micro).seconds(efficiency.exchange * device.link)
    if device.measured is None:
        parts["optimizer"] = _optimizer(config, device, world, efficiency)
    if world > 1:
        parts["exchange"] = max(0.0, exchanged - backward)
    seconds = sum(parts.values())
    low, high = (LOW, HIGH) if device.measured is not None else (1 / 1.5, 1.5)
    tokens = total_rows * config.model.context_length
    stated = None if device.measured is not None else efficiency
    return StepTime(parts, low * seconds, high * seconds, tokens, stated)


def _on_device(
    config: RunConfig,
    device: Device,
    rows: int,
    compiled: bool,
    efficiency: Efficiency,
    how: Implementation,
) -> dict[str, float]:
    """Seconds of a micro-batch on an accelerator of the table."""
    dtype = config.train.dtype if config.train.dtype != "auto" else device.usual_dtype
    n_tokens = rows * config.model.context_length
    # Fused attention skips what no query sees.
    counting: Counting = "causal" if how.attention == "fused" else "full"
    found, peak = flops(config, counting), device.peak(dtype)
    in_products = efficiency.plain if dtype == "float32" else efficiency.products
    parts = {}
    for name, part in found.parts.items():
        attention = name in ("scores", "values") and how.attention == "fused"
        share = efficiency.attention if attention else in_products
        eighth = how.float8 and name in ("QKV", "output", "feed-forward")
        rate = device.peak("float8") if eighth else peak
        parts[name] = n_tokens * part.total / (share * rate)
    half = 2 if dtype in ("bfloat16", "float16", "float8") else 4
    passes = _passes(config, Setup(rows, 4, half, True, how))
    share = efficiency.fused if compiled else 1.0
    parts["passes over memory"] = share * passes / (efficiency.bandwidth * device.bandwidth)
    return parts


def _passes(config: RunConfig, setup: Setup) -> float:
    """Bytes that operations other than matrix products read and write in a micro-batch."""
    model = config.model
    if not isinstance(model, GPTConfig):
        return 0.0
    repeats = 1 + BACKWARD + config.train.activation_checkpointing
    ops = write_tape(config, setup).ops
    n_bytes = repeats * sum(traffic(op) for op in ops if not is_product(op))
    n_bytes += sum(op.traffic for op in ops)
    if setup.how.loss == "chunked":
        logits = setup.n_rows * model.context_length * model.padded_vocab_size * setup.full
        n_bytes += (6 + 3 * bool(model.logit_softcap)) * logits * setup.how.logits
    return n_bytes


def _optimizer(config: RunConfig, device: Device, world: int, efficiency: Efficiency) -> float:
    sharded = config.train.parallel == "fsdp"
    share = world if sharded else 1
    found = [p for p in parameters(config) if p.learned]
    n_bytes = sum(4 * OPTIMIZER_PASSES[p.optimizer] * p.n for p in found)
    products = flops(config).optimizer_products / world
    dtype = config.train.dtype if config.train.dtype != "auto" else device.usual_dtype
    computing = products / (efficiency.products * device.peak(dtype))
    return n_bytes / share / (efficiency.bandwidth * device.bandwidth) + computing
