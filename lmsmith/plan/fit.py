"""Chooses size, tokens and batch for the available memory, time and money.

    memory       the micro-batch, then activation checkpointing, until the peak fits
    hours, money the number of tokens; for presets without a size of their own also the size: the
                 largest whose compute-optimal run (20 tokens per parameter) ends in time

Settings that the user gave stay. If nothing fits, the error says what is missing, and names the
nearest size that fits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from lmsmith.config import RunConfig
from lmsmith.config.presets import has_size, sized
from lmsmith.errors import ConfigError
from lmsmith.plan.compute_optimal import CHINCHILLA_RATIO
from lmsmith.plan.devices import Device
from lmsmith.plan.memory import largest_micro_batch, memory
from lmsmith.plan.predict import with_vocabulary
from lmsmith.plan.time import step_time

SIZES = (*range(1, 25), 28, 32, 36, 40, 48, 56, 64, 80, 96)
UNITS = {"kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True)
class Limits:
    """What is available: bytes on each device, seconds, dollars; None: no limit."""

    n_bytes: float | None = None
    seconds: float | None = None
    dollars: float | None = None


@dataclass
class Choice:
    """A config that keeps the limits, and the settings that were chosen for it."""

    config: RunConfig
    chosen: dict[str, Any] = field(default_factory=dict)


def parse_bytes(text: str) -> float:
    """ "24GB" -> 24e9, "80GiB" -> 80 * 2**30. Raises ConfigError."""
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]i?b)\s*", text.lower())
    number = _number(match.group(1)) if match else None
    if match is None or number is None or match.group(2) not in UNITS:
        raise ConfigError(f"fit = {text!r}: expected a size of memory such as 24GB or 80GiB.")
    return number * UNITS[match.group(2)]


def parse_dollars(text: str) -> float:
    """ "100usd", "$100", "100" -> 100. Raises ConfigError."""
    number = _number(text.lower().replace("usd", "").replace("$", "").replace(",", "").strip())
    if number is None:
        raise ConfigError(f"budget = {text!r}: expected dollars above 0, such as 100usd.")
    return number


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None


def fit(
    config: RunConfig, given: Collection[str], device: Device, world: int, limits: Limits
) -> Choice:
    """Chooses the open settings so that the run keeps the limits. Raises ConfigError."""
    seconds = _seconds(device, world, limits)
    room = limits.n_bytes if limits.n_bytes is not None else device.memory
    if has_size(config.preset) or {"model.size", "model.n_layer", "model.d_model"} & set(given):
        choice = _fit_memory(config, given, device, world, room)
        if choice is None:
            raise ConfigError(_too_large(config, given, device, world, room))
        return _fill_time(choice, given, device, world, seconds)
    best, reason = None, ""
    for size in SIZES:
        open_ones = {k: v for k, v in sized(config, size).items() if k not in given}
        larger = config.changed({"model.size": size, **open_ones}, where="the chosen size")
        larger = larger.changed({"train.batch_size": _shared(larger, world)}, where="the devices")
        choice = _fit_memory(larger, given, device, world, room)
        if choice is None:
            reason = "memory"
            break
        full = with_vocabulary(choice.config)[0]
        step = step_time(full, device, world)
        wanted = CHINCHILLA_RATIO * full.neural.n_parameters()
        if seconds is not None and wanted / step.tokens * step.seconds > seconds:
            reason = "time"
            break
        choice.chosen = {"model.size": size, **choice.chosen}
        best = choice
    if best is None:
        raise ConfigError(_nothing_fits(config, device, world, room, seconds, reason))
    return _fill_time(best, given, device, world, seconds)


def _seconds(device: Device, world: int, limits: Limits) -> float | None:
    found = [] if limits.seconds is None else [limits.seconds]
    if limits.dollars is not None:
        if not device.price:
            raise ConfigError(
                f"a budget needs a price, and that of {device.name} is unknown: give --price, in "
                "dollars per hour and device."
            )
        found.append(3600 * limits.dollars / (device.price * world))
    return min(found, default=None)


def _shared(config: RunConfig, world: int) -> int:
    return -(-config.train.batch_size // world) * world


def _fit_memory(
    config: RunConfig, given: Collection[str], device: Device, world: int, room: float
) -> Choice | None:
    """The largest micro-batch that fits, with activation checkpointing only if needed."""
    config = with_vocabulary(config)[0]
    if config.train.dtype == "auto":
        config = config.changed({"train.dtype": device.usual_dtype}, where="the device")

    def peak(candidate: RunConfig) -> float:
        return memory(candidate, gpu=device.gpu, world=world).n_bytes

    if peak(config) <= room:
        return Choice(config)
    rows = max(1, config.train.batch_size // world)
    for checkpointing in (False, True):
        changes: dict[str, Any] = {}
        if checkpointing:
            if "train.activation_checkpointing" in given:
                break
            changes["train.activation_checkpointing"] = True
        if "train.micro_batch_size" in given:
            candidate = config.changed(changes, where="the chosen settings")
            if peak(candidate) <= room:
                return Choice(candidate, changes)
            continue

        def fits(n: int, changes: dict[str, Any] = changes) -> bool:
            with_rows = {**changes, "train.micro_batch_size": n}
            return peak(config.changed(with_rows, where="the chosen settings")) <= room

        n = largest_micro_batch(fits, most=rows)
        if n:
            n = min(n, rows)
            changes["train.micro_batch_size"] = n
            return Choice(config.changed(changes, where="the chosen settings"), changes)
    return None


def _fill_time(
    choice: Choice, given: Collection[str], device: Device, world: int, seconds: float | None
) -> Choice:
    """Sets the number of tokens to what fits into the time, or checks the given length."""
    if seconds is None:
        return choice
    config = choice.config
    step = step_time(config, device, world)
    steps = int(seconds / step.seconds)
    if steps < 1:
        raise ConfigError(
            f"one step takes about {step.seconds:,.3g} s on {world} x {device.name}, and there are "
            f"only {seconds:,.3g} s: allow at least --hours {_rounded_up(step.seconds / 3600)}, or "
            "a smaller --model.size or --train.batch_size."
        )
    lengths = {"train.steps", "train.tokens", "train.epochs", "train.minutes"} & set(given)
    if "train.epochs" in lengths and config.train.epochs:
        raise ConfigError(
            "train.epochs depends on the size of the text, which a plan does not read: give "
            "--train.tokens instead, or leave it out."
        )
    train = config.train
    if "train.minutes" in lengths and 60 * train.minutes > seconds:
        raise ConfigError(
            f"train.minutes = {train.minutes:g}, and only {seconds / 60:,.3g} minutes are "
            "available: set fewer, or leave it out."
        )
    if lengths:
        needed = train.steps or round(train.tokens / step.tokens)
        if needed > steps:
            raise ConfigError(
                f"{needed:,} steps take about {needed * step.seconds / 3600:,.3g} hours, and there "
                f"are {seconds / 3600:,.3g}: set --train.steps {steps} or fewer."
            )
        return choice
    choice.chosen["train.tokens"] = steps * step.tokens
    choice.config = config.changed({"train.tokens": steps * step.tokens}, where="the time")
    return choice


def _too_large(
    config: RunConfig, given: Collection[str], device: Device, world: int, room: float
) -> str:
    smallest = with_vocabulary(config)[0].changed(
        {
            "train.micro_batch_size": 1,
            "train.activation_checkpointing": True,
            "train.dtype": device.usual_dtype,
        },
        where="the smallest",
    )
    needed = memory(smallest, gpu=device.gpu, world=world).n_bytes
    nearest = _nearest_size(config, device, world, room)
    shards = ""
    if config.train.parallel != "fsdp":
        shards = " --train.parallel fsdp on several devices divides weights and optimizer state."
    return (
        f"{config.preset} needs at least {needed / 1e9:,.1f} GB, with micro-batches of one row "
        f"and activation checkpointing, and {room / 1e9:,.3g} GB are available: "
        f"{(needed - room) / 1e9:,.1f} GB are missing.{nearest}{shards}"
    )


def _nearest_size(config: RunConfig, device: Device, world: int, room: float) -> str:
    best = 0
    for size in SIZES:
        smaller = config.changed({"model.size": size, **sized(config, size)}, where="a size")
        smaller = smaller.changed({"train.batch_size": _shared(smaller, world)}, where="a size")
        if _fit_memory(smaller, (), device, world, room) is None:
            break
        best = size
    return f" The largest --model.size that fits is {best}." if best else ""


def _nothing_fits(
    config: RunConfig, device: Device, world: int, room: float, seconds: float | None, reason: str
) -> str:
    smallest = config.changed({"model.size": 1, **sized(config, 1)}, where="the smallest")
    smallest = with_vocabulary(smallest)[0]
    smallest = smallest.changed({"train.batch_size": _shared(smallest, world)}, where="a size")
    if reason == "memory":
        needed = memory(smallest, gpu=device.gpu, world=world).n_bytes
        return (
            f"even --model.size 1 needs {needed / 1e9:.2g} GB for a vocabulary of "
            f"{smallest.model.vocab_size:,}, and there are {room / 1e9:.2g} GB: a smaller "
            "vocabulary (--tokenizer byte) or more memory."
        )
    from lmsmith.plan.show import duration

    step = step_time(smallest, device, world)
    tokens = CHINCHILLA_RATIO * smallest.neural.n_parameters()
    needed, available = tokens / step.tokens * step.seconds, seconds or 0.0
    least = f"--hours {_rounded_up(needed / 3600)}"
    if device.price:
        least += f" (--budget {_rounded_up(needed / 3600 * device.price * world)}usd)"
    return (
        f"even --model.size 1 takes {duration(needed)} for {CHINCHILLA_RATIO:g} tokens per "
        f"parameter on {world} x {device.name}, and there are {duration(available)}: "
        f"{duration(needed - available)} are missing. Allow {least}, or give --model.size: then "
        "only the number of tokens is chosen."
    )


def _rounded_up(number: float) -> str:
    """With two digits, and never less than the number: 0.01234 -> "0.013"."""
    unit: float = 10.0 ** (math.floor(math.log10(number)) - 1)
    return f"{math.ceil(number / unit) * unit:.2g}"
