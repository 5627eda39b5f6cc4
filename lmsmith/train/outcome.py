"""Measures what a run cost, to compare it with the forecast that the run stores.

    flops_per_token     of forward and backward pass, by PyTorch's counter: one row on the meta
                        device, with math attention, whose products the counter sees
    peak_tensor_bytes   on GPUs max_memory_allocated of the run; on CPUs every allocation of two
                        steps of a temporary model
    seconds_per_step    the mean over all steps

The first two are measured after training, if that takes at most a hundredth of its time. A value
that was not measured is None, and `notes` says why.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

from lmsmith.config import RunConfig
from lmsmith.loss import summed_cross_entropy
from lmsmith.machine.limits import free_memory
from lmsmith.models.gpt import GPT
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.models.lora import add_adapters
from lmsmith.plan.forecast import OF_TEXT
from lmsmith.plan.memory import memory
from lmsmith.train.device import peak_memory_bytes
from lmsmith.train.ladder import peak_of_steps

SHARE = 0.01  # of the run's seconds, for each measurement
COUNTER, PER_LAYER = 1.0, 0.05  # seconds to start the counter, and for each layer
PROFILER, STEPS = 3.0, 8.0  # seconds to start the profiler, and steps that its two steps take


def outcome(
    config: RunConfig, device: torch.device, *, n_params: int, steps: int, train_seconds: float
) -> dict[str, Any]:
    """What a run of `steps` steps cost. Call it after training."""
    per_step = train_seconds / steps if steps else None
    notes: list[str] = []
    return {
        "n_params": n_params,
        "flops_per_token": _flops(config, train_seconds, notes),
        "peak_tensor_bytes": _peak(config, device, per_step, train_seconds, notes),
        "seconds_per_step": per_step,
        "seconds": train_seconds,
        "notes": notes,
    }


def counted_flops(config: RunConfig) -> float:
    """FLOPs per token of forward and backward pass, by PyTorch's counter with math attention."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.checkpoint import checkpoint
    from torch.utils.flop_counter import FlopCounterMode

    model_config = GPTConfig.of(config.model)
    with torch.device("meta"):
        model = GPT(model_config)
        if config.lora.rank:
            add_adapters(model, config.lora, torch.Generator())
        ids = torch.zeros(1, model_config.context_length, dtype=torch.int64)
    added: Any = {  # the counter omits products that are added in place
        torch.ops.aten.addmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * b[1],
        torch.ops.aten.baddbmm_: lambda out, a, b, **_: 2 * a[0] * a[1] * a[2] * b[2],
    }
    if config.train.activation_checkpointing:
        for block in model.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping=added) as counter,
    ):
        hidden = model.hidden(ids).flatten(0, 1)
        total, _ = summed_cross_entropy(
            hidden, model.head_weight, ids.flatten(), vocab_size=model_config.vocab_size
        )
        total.backward()
    return counter.get_total_flops() / model_config.context_length


def _flops(config: RunConfig, train_seconds: float, notes: list[str]) -> float | None:
    model = config.model
    if config.train.objective != OF_TEXT:
        notes.append("FLOPs: not counted for this objective; `lmsmith plan --method` predicts them")
    elif not isinstance(model, GPTConfig) or config.train.engine != "torch":
        notes.append("FLOPs: not counted, PyTorch's counter does not see this model's products")
    elif COUNTER + PER_LAYER * model.n_layer > SHARE * train_seconds:
        notes.append(f"FLOPs: not counted, it would take more than {SHARE:.0%} of the run")
    else:
        return counted_flops(config)
    return None


def _peak(
    config: RunConfig,
    device: torch.device,
    per_step: float | None,
    train_seconds: float,
    notes: list[str],
) -> int | None:
    if device.type == "cuda":
        return peak_memory_bytes(device)
    known = isinstance(config.model, GPTConfig) and config.train.engine == "torch"
    known = known and config.train.objective == OF_TEXT
    if device.type != "cpu" or not known or config.lora.rank or per_step is None:
        notes.append("peak memory of tensors: not measured for this kind of run")
        return None
    if config.train.minutes:  # after training little time is left
        notes.append("peak memory of tensors: not measured in runs with a time limit on a CPU")
        return None
    if PROFILER + STEPS * per_step > SHARE * train_seconds:
        notes.append(
            f"peak memory of tensors: not measured, it would take more than {SHARE:.0%} of the run"
        )
        return None
    if 2 * memory(config).n_bytes > free_memory():
        notes.append("peak memory of tensors: not measured, too little memory is free")
        return None
    return peak_of_steps(config, device)
