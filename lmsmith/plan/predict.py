"""Predicts what a run costs: parameters, FLOPs, memory, time, energy and money.

`config_for` builds the config from a preset or recipe and settings, as `train` does, but without
text: the vocabulary size comes from the settings or the tokenizer's name. `predict` computes the
plan. Neither builds a model or imports torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lmsmith.config import NeuralConfig, RunConfig, read_toml
from lmsmith.config.presets import NOTES, has_size, preset, sized
from lmsmith.errors import ConfigError, UsageError
from lmsmith.models.gpt_config import GPTConfig
from lmsmith.plan.communication import Communication, communication
from lmsmith.plan.compute_optimal import CHINCHILLA_RATIO, EPOCH
from lmsmith.plan.devices import Device
from lmsmith.plan.flops import Flops, flops
from lmsmith.plan.inference import Inference, inference
from lmsmith.plan.layers import LMSMITH, Implementation
from lmsmith.plan.memory import Memory, memory, micro_batch, of_process
from lmsmith.plan.parameters import Parameter, by_group, parameters
from lmsmith.plan.time import StepTime, step_time
from lmsmith.plan.tuning import Tuning

VOCABULARY = 50257
HOST_WATTS = 1.3  # a machine draws this many times the power of its accelerators
MOST_LAYERS = 2000  # every layer takes about a millisecond
KINDS = {"byte": 257, "gpt2": 50257}


@dataclass(frozen=True)
class Plan:
    """What a run costs. Bytes, seconds, FLOPs, kWh and dollars; None: unknown."""

    config: RunConfig
    device: Device
    world: int
    parameters: list[Parameter]
    flops: dict[str, Flops]
    memory: Memory
    step: StepTime
    communication: Communication
    inference: Inference | None
    tokens: float
    steps: int
    notes: list[str] = field(default_factory=list)
    tuning: Tuning | None = None

    @property
    def n_parameters(self) -> int:
        return sum(parameter.n for parameter in self.parameters)

    @property
    def groups(self) -> dict[str, int]:
        return by_group(self.parameters)

    @property
    def seconds(self) -> float:
        """Of all steps, without evaluations and checkpoints."""
        return self.steps * self.step.seconds

    @property
    def hours(self) -> float:
        return self.seconds / 3600

    @property
    def total_flops(self) -> float:
        """Of the run, with causal counting."""
        return self.steps * self.flops_per_step

    @property
    def flops_per_step(self) -> float:
        """Of all passes and the optimizer, with causal counting."""
        causal = self.flops["causal"]
        if self.tuning is not None:
            return self.tuning.flops + causal.optimizer
        return causal.per_step(self.step.tokens)

    @property
    def mfu(self) -> float:
        """Share of the device's peak that the forward and backward passes need."""
        dtype = self.config.train.dtype
        peak = self.device.peak(dtype if dtype != "auto" else self.device.usual_dtype)
        done = self.step.tokens * self.config.neural.train_flops_per_token()
        if self.tuning is not None:
            done = self.tuning.flops
        return done / self.step.seconds / (peak * self.world)

    @property
    def kwh(self) -> float | None:
        watts = self.device.watts * self.world * HOST_WATTS
        return watts * self.hours / 1000 if watts else None

    @property
    def dollars(self) -> float | None:
        return self.device.price * self.world * self.hours if self.device.price else None

    @property
    def process_bytes(self) -> float | None:
        """Resident bytes of the process on a CPU; None on accelerators."""
        return None if self.device.gpu else of_process(self.memory.n_bytes)

    @property
    def fits(self) -> bool:
        return (self.process_bytes or self.memory.n_bytes) <= self.device.memory

    def __str__(self) -> str:
        from lmsmith.plan.show import show

        return show(self)

    def as_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        model = self.config.neural
        causal = self.flops["causal"]
        return {
            "preset": self.config.preset,
            "model": model.describe(),
            "parameters": {"total": self.n_parameters, "by_group": self.groups},
            "flops_per_token": {
                name: {
                    "total": found.per_token,
                    "forward": found.forward,
                    "backward": found.backward,
                    "by_part": {part: f.total for part, f in found.parts.items()},
                }
                for name, found in self.flops.items()
            },
            "flops_per_step": self.flops_per_step,
            "optimizer_flops_per_step": causal.optimizer,
            "memory_bytes": {
                "peak": self.memory.n_bytes,
                "by_kind": self.memory.by_kind,
                "moment": self.memory.moment,
                "process": self.process_bytes,
                "available": self.device.memory,
                "fits": self.fits,
            },
            "step": {
                "tokens": self.step.tokens,
                "seconds": self.step.seconds,
                "interval": [self.step.low, self.step.high],
                "by_part": self.step.parts,
                "tokens_per_second": self.step.tokens_per_second,
                "mfu": self.mfu,
                "bytes_sent": self.communication.n_bytes,
            },
            "run": {
                "steps": self.steps,
                "tokens": self.tokens,
                "tokens_per_parameter": self.tokens / self.n_parameters,
                "flops": self.total_flops,
                "hours": self.hours,
                "kwh": self.kwh,
                "dollars": self.dollars,
            },
            "device": {
                "name": self.device.name,
                "n": self.world,
                "price_per_hour": self.device.price or None,
                "price_date": str(self.device.price_date) if self.device.price_date else None,
            },
            "inference": self._inference_as_dict(),
            "tuning": None if self.tuning is None else dataclasses.asdict(self.tuning),
            "notes": self.notes,
        }

    def _inference_as_dict(self) -> dict[str, Any] | None:
        found = self.inference
        if found is None:
            return None
        return {
            "weights_bytes": found.weights,
            "cache_bytes_per_token": found.cache_per_token,
            "cache_bytes": found.cache,
            "tokens_per_second": found.tokens_per_second or None,
            "bound": found.bound,
            "batch": found.batch,
        }


def config_for(
    recipe: str | None, settings: Mapping[str, Any], where: str = "the arguments"
) -> tuple[RunConfig, set[str]]:
    """The config of a recipe (.toml), a run's folder or None, with settings by dotted name; and the
    names of the settings that were set.

    Raises ConfigError; UsageError if `recipe` is neither.
    """
    read: dict[str, Any] = {}
    if recipe is not None:
        path = Path(recipe)
        if path.is_dir():
            path = path / "config.toml"
        if path.suffix != ".toml" or not path.exists():
            raise UsageError(
                f"{recipe} is neither a recipe (.toml) nor a run's folder. Without one, --preset "
                "names a model."
            )
        read = read_toml(path)
    wanted = {
        name: value
        for name, value in {**read, **settings}.items()
        if name != "learning_rate"  # costs nothing
    }
    places = {name: str(where if name in settings else recipe) for name in wanted}
    named = {name: value for name, value in wanted.items() if name == "preset"}
    base = preset(RunConfig().changed(named, where=places).preset)
    if "model.kind" in wanted:
        base = base.changed({"model.kind": wanted["model.kind"]}, where=places)
    derived: dict[str, Any] = {}
    if "model.size" in wanted:
        model = base.changed({"model.size": wanted["model.size"]}, where=places).model
        if isinstance(model, GPTConfig) and model.size:
            derived = sized(base, model.size)
    elif not has_size(base.preset) and isinstance(base.model, NeuralConfig):
        derived = base.model.fitting(wanted)
    places |= {name: "the chosen settings" for name in derived if name not in wanted}
    config = base.changed({**derived, **wanted}, where=places)
    if config.model.counted:
        raise ConfigError(
            "an n-gram model is counted in one pass over the text: there are no steps to plan. "
            "Choose a preset that is trained, such as modern or gpt2."
        )
    n_layer = getattr(config.model, "n_layer", 0)
    if n_layer > MOST_LAYERS:
        raise ConfigError(
            f"model.n_layer = {n_layer}: a plan lists each tensor, and takes at most "
            f"{MOST_LAYERS:,} layers. Set fewer."
        )
    return config, set(wanted)


def with_vocabulary(config: RunConfig) -> tuple[RunConfig, str]:
    """Sets the vocabulary size if it is open, from the tokenizer's name. Returns a note, or ""."""
    if config.model.vocab_size:
        return config, ""
    name = config.tokenizer
    size = KINDS.get(name, VOCABULARY)
    if name.startswith("bpe:") and name[4:].isdecimal():
        size = int(name[4:])
    elif config.preset == "babygpt" and name not in KINDS:
        size = 65
    note = ""
    if name not in KINDS and not name.startswith("bpe:"):
        note = f"vocabulary of {size:,}, as long as --model.vocab_size or --tokenizer is not given"
    return config.changed({"model.vocab_size": size}, where="the vocabulary"), note


def predict(
    config: RunConfig,
    device: Device,
    world: int = 1,
    *,
    batch_of_inference: int = 1,
    how: Implementation = LMSMITH,
) -> Plan:
    """Computes the plan of a run on `world` devices; `how`: the implementations of another program.

    Raises ConfigError if they cannot share the batch.
    """
    config, note = with_vocabulary(config)
    notes = [note] if note else []
    if config.preset in NOTES:
        notes.append(NOTES[config.preset])
    if world < 1:
        raise ConfigError(f"devices = {world}: expected 1 or more.")
    if config.train.batch_size % world and not config.train.batch_tokens:
        raise ConfigError(
            f"train.batch_size = {config.train.batch_size} cannot be divided evenly among {world} "
            f"devices. Set a multiple of {world}, or another number of devices."
        )
    if config.train.dtype == "auto":
        config = config.changed({"train.dtype": device.usual_dtype}, where="the device")
    rows, _ = micro_batch(config, world)
    total_rows = config.train.batch_size
    if config.train.batch_tokens:
        total_rows = max(1, round(config.train.batch_tokens / config.model.context_length))
    step = step_time(config, device, world, how=how)
    tokens, steps, why = _length(config, step)
    notes += [why] if why else []
    if warning := device.stale():
        notes.append(warning)
    if device.measured is not None and device.measured.disturbed:
        notes.append(device.measured.disturbed)
    n_micro = -(-max(1, total_rows // world) // rows)
    return Plan(
        config=config,
        device=device,
        world=world,
        parameters=parameters(config),
        flops={name: flops(config, name) for name in ("causal", "window", "full")},
        memory=memory(config, gpu=device.gpu, world=world, how=how),
        step=step,
        communication=communication(config, world, n_micro),
        inference=generation(config, device, batch_of_inference),
        tokens=tokens,
        steps=steps,
        notes=notes,
    )


def generation(config: RunConfig, device: Device, batch: int) -> Inference | None:
    """Costs of generation, in bfloat16 on GPUs and float32 on CPUs."""
    if not isinstance(config.model, GPTConfig):
        return None
    n_bytes = 2 if device.gpu else 4
    return inference(
        config.model,
        batch=batch,
        bandwidth=device.bandwidth,
        peak=device.peak("bfloat16" if device.gpu else "float32"),
        bytes_per_weight=n_bytes,
        bytes_per_key=n_bytes,
    )


def _length(config: RunConfig, step: StepTime) -> tuple[float, int, str]:
    """Tokens and steps of the run, and a note if its length was not given."""
    train = config.train
    if train.steps:
        return train.steps * step.tokens, train.steps, ""
    if train.tokens:
        return train.tokens, max(1, round(train.tokens / step.tokens)), ""
    if train.minutes:
        steps = max(1, int(60 * train.minutes / step.seconds))
        return steps * step.tokens, steps, ""
    n = config.neural.n_parameters()
    tokens = CHINCHILLA_RATIO * n
    _, best = EPOCH.best(6 * n * tokens)
    given = "train.epochs needs the text, so" if train.epochs else "no length given:"
    why = (
        f"{given} {CHINCHILLA_RATIO:g} tokens per parameter (Chinchilla); {EPOCH.name} "
        f"would spend these FLOPs on {best / 1e9:,.3g}G tokens"
    )
    return tokens, max(1, round(tokens / step.tokens)), why
