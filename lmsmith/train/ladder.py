"""Measures how long a training step takes here (`lmsmith bench train`, `lmsmith bench ladder`).

`time_steps` times steps of one config on random tokens. `climb` times the speed-ups that made
Karpathy's reproduction of GPT-2 124M eleven times faster. Each rung of this ladder adds one
speed-up to the rungs below it. `PUBLISHED` holds the times that his lecture (A100, 16 x 1024) and a
course (T4, 4 x 1024, float16) report.

Lower rungs switch off lmsmith's usual optimizations: they use unfused attention, and AdamW's plain
loop. On CPUs the model is small, and rungs that do not exist there (TF32, compilation) are skipped.
"""

from __future__ import annotations

import contextlib
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.data.batches.windows import Batches
from lmsmith.errors import ConfigError
from lmsmith.machine.allocations import allocations
from lmsmith.machine.products import fastest_matmul, matmul_rate, use_matmul
from lmsmith.models.attention import Attention
from lmsmith.text.files import plural
from lmsmith.train.choose import can_compile, n_rows
from lmsmith.train.device import (
    has_bfloat16,
    keep_freed_memory,
    peak_memory_bytes,
    set_up_process,
    survey,
)
from lmsmith.train.replica import Replica
from lmsmith.train.step import train_step

# Milliseconds per step, or per micro-batch with gradient accumulation.
PUBLISHED: dict[str, tuple[str, str]] = {
    "float32": ("1000", "1200"),
    "TF32": ("333", "none"),
    "half precision": ("300", "485"),
    "torch.compile": ("130", "325"),
    "fused attention": ("96", "270"),
    "padded vocabulary": ("93", "255"),
    "fused AdamW": ("90", "255"),
    "accumulation": ("89", "205"),
}
ACCUMULATED = (
    4  # micro-batches per step on the last rung; the published runs accumulate to 2**19 tokens
)

SHORT = 0.3  # seconds for the steps of one config, in a calibration
MOST_STEPS = 500


@dataclass(frozen=True)
class Pace:
    """The measured times of a step, its size in tokens and FLOPs, and the peak memory."""

    seconds: tuple[float, ...]
    tokens: int
    flops: float  # per step, predicted
    peak_flops: float  # per second, measured for matrix products in this precision
    peak_memory_bytes: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.median

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: the share of the measured rate of matrix products."""
        return self.flops / self.median / self.peak_flops


@dataclass(frozen=True)
class Rung:
    """One rung: its changes to the config, and which of today's speed-ups it switches off."""

    name: str
    changes: Mapping[str, Any]
    plain_attention: bool
    plain_adamw: bool


def time_steps(
    config: RunConfig,
    device: torch.device,
    *,
    n: int = 8,
    least: float = 0.0,
    plain_adamw: bool = False,
) -> Pace:
    """Times steps of a temporary model, after two warm-up steps (allocation, compilation): `n`, or
    more until they have taken `least` seconds (at most MOST_STEPS).
    """
    use_matmul(config.train.matmul, config.train.dtype)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = _seconds_of_steps(config, device, n + 2, plain_adamw, least=least)
    products = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(
        config.train.dtype, torch.float32
    )
    tokens = config.train.batch_size * config.model.context_length
    return Pace(
        tuple(seconds[2:]),
        tokens,
        tokens * config.neural.train_flops_per_token(),
        matmul_rate(device, products),
        peak_memory_bytes(device),
    )


def seconds_of_step(config: RunConfig, threads: int) -> float:
    """The median time of a few steps of a temporary model on the CPU; takes about SHORT seconds.

    With one thread, it is processor time, so that other programs do not lengthen it.
    """
    before = torch.get_num_threads()
    clock = time.process_time if threads == 1 else time.perf_counter
    keep_freed_memory()  # as training does
    try:
        torch.set_num_threads(threads)
        with fastest_matmul():
            seconds = _seconds_of_steps(
                config, torch.device("cpu"), 12, False, most=SHORT, clock=clock
            )
    finally:
        torch.set_num_threads(before)
    return statistics.median(seconds[2:])


def peak_of_steps(config: RunConfig, device: torch.device) -> int:
    """The most bytes that tensors hold while a temporary model is built and makes two steps."""
    with allocations(device) as found:
        _seconds_of_steps(config, device, 2, False)
    return found.peak


def _seconds_of_steps(
    config: RunConfig,
    device: torch.device,
    n: int,
    plain_adamw: bool,
    *,
    least: float = 0.0,
    most: float = math.inf,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Seconds of `n` steps; of more until they have taken `least` seconds; of 5 if they take more
    than `most` seconds, of 3 if much more.
    """
    model = config.neural.build()
    model.initialise(torch.Generator().manual_seed(config.train.seed))
    model.to(device, torch.float64 if config.train.dtype == "float64" else torch.float32)
    model.train()
    replica = Replica(model, config)
    if plain_adamw:
        for optimizer in replica.optimizers.all:  # type: ignore[union-attr]
            for group in optimizer.param_groups:
                group |= {"fused": False, "foreach": False}
    T, B = config.model.context_length, config.train.batch_size
    ids = (
        np.random.default_rng(0)
        .integers(0, config.model.vocab_size, (4 * B + 2) * T)
        .astype(np.uint32)
    )
    batches = Batches(ids, context_length=T, batch_size=B, seed=1)
    seconds: list[float] = []
    while len(seconds) < n or (sum(seconds) < least and len(seconds) < MOST_STEPS):
        step = len(seconds)
        began = clock()
        train_step(replica, batches, step, n_steps=1000)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(clock() - began)
        if sum(seconds) > (most if step >= 4 else 3 * most) and step >= 2:
            break
    return seconds


def rungs(device: torch.device, gains_by_half: bool) -> list[Rung]:
    """Returns the rungs that exist on this device, lowest first."""
    half = "bfloat16" if has_bfloat16(device) else "float16"
    on_gpu = device.type == "cuda"
    steps: list[tuple[str, dict[str, Any]]] = [("float32", {"train.dtype": "float32"})]
    if on_gpu and half == "bfloat16":
        steps.append(("TF32", {"train.dtype": "tf32"}))
    if on_gpu or gains_by_half:
        steps.append(("half precision", {"train.dtype": half}))
    if on_gpu:
        steps.append(("torch.compile", {"train.compile": "yes"}))
    steps += [
        ("fused attention", {}),
        ("padded vocabulary", {"model.vocab_multiple": 128}),
        ("fused AdamW", {}),
    ]
    found: list[Rung] = []
    changes: dict[str, Any] = {}
    names = [name for name, _ in steps]
    for name, change in steps:
        changes = changes | change
        place = names.index(name)
        found.append(
            Rung(
                name,
                changes,
                place < names.index("fused attention"),
                place < names.index("fused AdamW"),
            )
        )
    return [*found, Rung("accumulation", changes, False, False)]


def base_config(device: torch.device) -> RunConfig:
    """GPT-2 124M at 16 x 1024 on a GPU; on a CPU a small model with GPT-2's vocabulary, which takes
    about a second per step.
    """
    small = {
        "model.n_layer": 4,
        "model.n_head": 4,
        "model.d_model": 256,
        "model.context_length": 256,
    }
    changes = {
        "model.vocab_size": 50257,
        "train.batch_size": 16,
        "train.matmul": "default",
        "train.compile": "no",
    }
    if device.type != "cuda":
        changes |= small | {"train.batch_size": 4}
    return preset("gpt2").changed(changes, where="the ladder")


def climb(device: torch.device, *, n: int = 8) -> Iterator[tuple[Rung, Pace]]:
    """Yields each rung with its times, as soon as it is measured."""
    if device.type == "mps":
        raise ConfigError("the ladder is for CUDA devices and CPUs: choose --device cpu.")
    base = base_config(device)
    gains = device.type == "cuda" or matmul_rate(device, torch.bfloat16) > matmul_rate(device)
    for rung in rungs(device, gains):
        # Otherwise the graph compiled for the previous rung, with its attention, would be reused.
        torch.compiler.reset()
        config = base.changed(rung.changes, where=rung.name)
        times = ACCUMULATED if rung.name == "accumulation" else 1
        if times > 1:
            rows = {
                "train.batch_size": base.train.batch_size * times,
                "train.micro_batch_size": base.train.batch_size,
            }
            config = config.changed(rows, where=rung.name)
        with plain_attention() if rung.plain_attention else contextlib.nullcontext():
            pace = time_steps(config, device, n=max(2, n // times), plain_adamw=rung.plain_adamw)
        yield rung, pace
        if device.type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """Replaces fused attention by the formula, which holds the full attention matrix in memory."""

    def within(self: Attention, q: Tensor, k: Tensor, v: Tensor, layout: object) -> Tensor:
        T = q.size(2)
        scores = (q @ k.transpose(-2, -1)) * self.scale  # (B, H, T, T)
        hidden = torch.ones(T, T, dtype=torch.bool, device=q.device).triu_(1)
        weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype)
        return nn.functional.dropout(weights, self.dropout, self.training) @ v

    ours = Attention._within
    Attention._within = within  # type: ignore[method-assign]
    try:
        yield
    finally:
        Attention._within = ours  # type: ignore[method-assign]


def machine_in_words(device: torch.device) -> str:
    """Describes the device and the versions that its speed depends on."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    else:
        with (
            contextlib.suppress(OSError, StopIteration),
            open("/proc/cpuinfo", encoding="utf-8") as file,
        ):
            name = next(
                line.partition(":")[2].strip() for line in file if line.startswith("model name")
            )
        name += f", {plural(torch.get_num_threads(), 'thread')}"
    return f"{name}; torch {torch.__version__}, Python {platform.python_version()}"


def bench_config(changes: Mapping[str, Any]) -> tuple[RunConfig, torch.device]:
    """Returns the config for the given settings without a text, and the device.

    The vocabulary is GPT-2's, or 65 characters for babyGPT.
    """
    named = {key: value for key, value in changes.items() if key == "preset"}
    base = preset(RunConfig().changed(named, where="the command line").preset)
    config = base.changed(changes, where="the command line")
    if config.model.counted:
        raise ConfigError(
            "preset ngram counts and makes no training steps, so there is nothing to measure. "
            "Choose another preset."
        )
    machine = survey(config)
    set_up_process(machine)
    vocab_size = config.model.vocab_size or (65 if config.preset == "babygpt" else 50257)
    chosen = {
        "model.vocab_size": vocab_size,
        "train.batch_size": n_rows(config),
        "train.batch_tokens": 0,
        "train.dtype": machine.dtype,
        "train.matmul": machine.matmul,
        "train.threads": machine.threads,
    }
    if config.train.compile == "auto":
        chosen["train.compile"] = "yes" if can_compile(config, machine) else "no"
    return config.changed(chosen, where="the chosen settings"), machine.device
