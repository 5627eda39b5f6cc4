"""What a run stores about its own cost, and the warnings before it starts."""

from __future__ import annotations

import math
from typing import Any

from lmsmith.config import RunConfig
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.plan.devices import of_machine
from lmsmith.plan.flops import flops
from lmsmith.plan.here import kept
from lmsmith.plan.memory import (
    largest_micro_batch,
    memory,
    micro_batch,
    of_process,
    room_for_tensors,
)
from lmsmith.plan.parameters import parameters
from lmsmith.plan.time import StepTime, step_time

OF_TEXT = "cross-entropy"  # the objective that predictions of a step are for
OTHER_OBJECTIVE = "costs: `lmsmith plan --method` predicts those of this objective"


def forecast(config: RunConfig, *, gpu: bool, world: int = 1) -> dict[str, Any]:
    """Predicted numbers of a run, for `summary.json`.

    `flops_per_token` counts the full square of attention, as PyTorch's counter does;
    `flops_per_step` half of it, and the optimizer. Memory is that of tensors on each device; None
    for models without a tape. Seconds are None unless this machine's speeds are known, from
    `lmsmith plan --device here`; `notes` says so. Of objectives other than the text's
    cross-entropy only the number of parameters is predicted.
    """
    if config.train.objective != OF_TEXT:
        nothing = dict.fromkeys(("flops_per_token", "flops_per_step", "peak_tensor_bytes"))
        nothing |= dict.fromkeys(("seconds_per_step", "seconds_interval", "seconds"))
        n = sum(parameter.n for parameter in parameters(config))
        return {"n_params": n, **nothing, "notes": [OTHER_OBJECTIVE]}
    rows = config.train.batch_size
    tokens = rows * config.model.context_length
    known = isinstance(config.model, GPTConfig) and config.train.engine == "torch"
    step, why = predicted_step(config, gpu=gpu, world=world)
    return {
        "n_params": sum(parameter.n for parameter in parameters(config)),
        "flops_per_token": flops(config, "full").per_token,
        "flops_per_step": flops(config).per_step(tokens),
        "peak_tensor_bytes": memory(config, gpu=gpu, world=world).n_bytes if known else None,
        "seconds_per_step": step.seconds if step else None,
        "seconds_interval": [step.low, step.high] if step else None,
        "seconds": config.train.steps * step.seconds if step else None,
        "notes": [why] if why else [],
    }


def predicted_step(config: RunConfig, *, gpu: bool, world: int = 1) -> tuple[StepTime | None, str]:
    """The predicted time of a step on this machine, or None and the reason.

    It needs speeds that `lmsmith plan --device here` has measured with as many threads. This
    function measures nothing.
    """
    if gpu or world > 1:
        return None, "seconds: not predicted, speeds are measured only for one process on a CPU"
    if config.train.objective != OF_TEXT:
        return None, OTHER_OBJECTIVE
    if config.train.engine != "torch" or config.train.dtype != "float32":
        return None, "seconds: predicted only for PyTorch in float32 on a CPU"
    speeds = kept(config.train.threads)
    if speeds is None:
        return None, (
            "seconds: not predicted, because this machine's speeds are unknown; "
            "`lmsmith plan --device here` measures them"
        )
    return step_time(config, of_machine(speeds)), ""


def time_warning(config: RunConfig, seconds: float, *, gpu: bool, world: int = 1) -> str:
    """A warning if the steps need more than the `seconds` that are available, with settings that
    end in time; "" if they end in time, or if their time is not predicted.
    """
    step, _ = predicted_step(config, gpu=gpu, world=world)
    steps = config.train.steps
    if step is None or steps * step.seconds <= seconds:
        return ""
    needed, fits = steps * step.seconds, int(seconds / step.seconds)
    offers = [f"--steps {fits:,}".replace(",", "")] if fits else []
    minutes = math.ceil(10 * (config.train.minutes + (needed - seconds) / 60)) / 10
    offers.append(f"--minutes {minutes:g}")
    rows = config.train.batch_size
    while rows > 1:
        rows //= 2
        smaller = config.changed({"train.batch_size": rows}, where="the warning")
        shorter, _ = predicted_step(smaller, gpu=gpu, world=world)
        if shorter and steps * shorter.seconds <= seconds:
            offers.append(f"--train.batch_size {rows}")
            break
    return (
        f"{steps:,} steps take about {needed / 60:,.1f} minutes here ({step.seconds:.3g} s each), "
        f"and {seconds / 60:,.1f} are available, so the time limit will end the run early: "
        f"{' or '.join(offers)} fits."
    )


def memory_warning(config: RunConfig, room: float, *, gpu: bool, world: int = 1) -> str:
    """A warning if the run needs more than `room` bytes on a device, with settings that fit; "" if
    it fits, if `room` is 0 (unknown), or if the run's memory is not predicted.
    """
    known = isinstance(config.model, GPTConfig) and config.train.engine == "torch"
    if not known or not room or config.train.objective != OF_TEXT:
        return ""
    free, room = room, room if gpu else room_for_tensors(room)

    def peak(changes: dict[str, Any]) -> float:
        changed = config.changed(changes, where="the warning")
        return memory(changed, gpu=gpu, world=world).n_bytes

    needed = peak({})
    if needed <= room:
        return ""
    rows, _ = micro_batch(config, world)
    process = "" if gpu else f" in a process of {of_process(needed) / 1e9:,.1f} GB"
    start = (
        f"the run needs about {needed / 1e9:,.1f} GB for tensors{process}, and {free / 1e9:,.1f} "
        "GB are free: "
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
