"""What a run writes down about its own cost, and the warning before it starts."""

from __future__ import annotations

from typing import Any

from lmsmith.config import RunConfig
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.plan.flops import flops
from lmsmith.plan.memory import largest_micro_batch, memory, micro_batch
from lmsmith.plan.parameters import parameters

PROCESS = 0.4e9  # bytes of interpreter and libraries


def forecast(config: RunConfig, *, gpu: bool, world: int = 1) -> dict[str, Any]:
    """Predicted numbers of a run, for `summary.json`. Memory is that of tensors on each device;
    None for models without a tape.
    """
    rows = config.train.batch_size
    tokens = rows * config.model.context_length
    known = isinstance(config.model, GPTConfig) and config.train.engine == "torch"
    return {
        "n_params": sum(parameter.n for parameter in parameters(config)),
        "flops_per_step": flops(config).per_step(tokens),
        "peak_tensor_bytes": memory(config, gpu=gpu, world=world).n_bytes if known else None,
    }


def memory_warning(config: RunConfig, room: float, *, gpu: bool, world: int = 1) -> str:
    """A warning if the run needs more than `room` bytes on a device, with settings that fit; "" if
    it fits, if `room` is 0 (unknown), or if the model's memory is not predicted.
    """
    known = isinstance(config.model, GPTConfig) and config.train.engine == "torch"
    if not known or not room:
        return ""
    room -= 0 if gpu else PROCESS

    def peak(changes: dict[str, Any]) -> float:
        changed = config.changed(changes, where="the warning")
        return memory(changed, gpu=gpu, world=world).n_bytes

    needed = peak({})
    if needed <= room:
        return ""
    rows, _ = micro_batch(config, world)
    start = (
        f"the run needs about {needed / 1e9:,.1f} GB for tensors, and {max(room, 0) / 1e9:,.1f} GB "
        "are free: "
    )
    for extra in ({}, {"train.activation_checkpointing": True}):

        def fits(n: int, extra: dict[str, Any] = extra) -> bool:
            return peak({**extra, "train.micro_batch_size": n}) <= room

        n = min(largest_micro_batch(fits, most=rows), rows)
        if n:
            more = " --train.activation_checkpointing yes" if extra else ""
            return (
                f"{start}--train.micro_batch_size {n}{more} fits; results stay the same up to "
                "rounding."
            )
    return f"{start}set a smaller model, such as a smaller --model.size."
