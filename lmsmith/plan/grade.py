"""Grades the predictions: `lmsmith plan --grade` runs configs and prints every error.

The configs are drawn at random from architectures, sizes and batches, with a fixed seed; the
predictions were not tuned on them. Each runs in a fresh process (`lmsmith bench train`), which
measures its seconds per step and the peak memory of tensors. A machine's speed changes over
minutes, so the speeds that the predictions use are measured again before each `GROUP` of configs.
That measurement sees none of the graded configs.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lmsmith import foreign_json
from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.errors import ConfigError, TrainingError
from lmsmith.plan.devices import Device
from lmsmith.plan.memory import memory
from lmsmith.plan.time import step_time

# Configs of seeds 2027 and 2028 have been measured while intervals were chosen; these have not.
N_CASES, SEED = 48, 2041
GROUP = 6  # configs between two measurements of the machine
N_STEPS, SECONDS = 8, 0.5  # that are timed, at least
MEMORY_INTERVAL = 1.01  # four of five peaks of 48 configs of other seeds
Case = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Grade:
    """One figure of a case: "memory" in bytes, "time" in seconds per step."""

    case: Case
    figure: str
    predicted: float
    low: float
    high: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def inside(self) -> bool:
        """Whether the measured value lies in the interval."""
        return self.low <= self.measured <= self.high


def cases(n: int = N_CASES, seed: int = SEED) -> list[Case]:
    """Draws `n` configs that this machine trains in seconds."""
    draw = random.Random(seed)
    found: list[Case] = []
    while len(found) < n:
        n_head = draw.choice([2, 4])
        settings: dict[str, Any] = {
            "model.n_layer": draw.choice([1, 2, 3, 4, 6]),
            "model.d_model": draw.choice([64, 96, 128, 192, 256]),
            "model.n_head": n_head,
            "model.context_length": draw.choice([32, 64, 128, 192, 256]),
            "model.vocab_size": draw.choice([65, 257, 1000, 5000]),
            "train.batch_size": draw.choice([1, 2, 4, 8]),
            "train.dtype": "float32",
        }
        switches: list[tuple[float, dict[str, Any]]] = [
            (0.25, {"model.n_kv_head": n_head // 2}),
            (0.2, {"train.activation_checkpointing": True}),
            (0.2, {"train.micro_batch_size": max(1, settings["train.batch_size"] // 2)}),
            (0.2, {"model.norm_placement": draw.choice(["post", "output"])}),
            (0.2, {"model.feed_forward": draw.choice(["gelu", "silu", "geglu"])}),
            (0.2, {"optim.name": draw.choice(["sgd", "adamw", "muon"])}),
            (0.2, {"model.dropout": 0.1}),
            (0.15, {"model.window": 40, "model.window_pattern": "SL"}),
        ]
        for probability, changes in switches:
            if draw.random() < probability:
                settings |= changes
        name = draw.choice(["gpt2", "llama", "qwen3", "modern", "babygpt"])
        try:
            preset(name).changed(settings, where="a case")
        except ConfigError:  # settings that do not go together
            continue
        found.append((name, settings))
    return found


def grade(chosen: Sequence[Case], here: Device, n_steps: int = N_STEPS) -> Iterator[Grade]:
    """Runs each case in a process of its own and yields its two grades. `here`: this machine.

    Raises TrainingError if a process fails.
    """
    for case in chosen:
        name, settings = case
        config = preset(name).changed(settings, where="a case")
        seconds, n_bytes = measured_step(config, case, n_steps)
        peak = memory(config).n_bytes
        low, high = peak / MEMORY_INTERVAL, peak * MEMORY_INTERVAL
        yield Grade(case, "memory", peak, low, high, n_bytes)
        step = step_time(config, here)
        yield Grade(case, "time", step.seconds, step.low, step.high, seconds)


def summary(grades: Sequence[Grade], figure: str) -> str:
    """Median, 90th percentile and largest error, and the share of intervals that hold."""
    of_figure = [grade for grade in grades if grade.figure == figure]
    errors = sorted(abs(grade.error) for grade in of_figure)
    tenth = errors[min(len(errors) - 1, int(0.9 * len(errors)))]
    inside = sum(grade.inside for grade in of_figure) / len(of_figure)
    return (
        f"{figure}: median error {statistics.median(errors):.1%}, 90th percentile {tenth:.1%}, "
        f"worst {errors[-1]:.1%}; {inside:.0%} of the 80% intervals hold ({len(of_figure)} cases)"
    )


def measured_step(
    config: RunConfig, case: Case, n_steps: int = N_STEPS, *, memory: bool = True
) -> tuple[float, float]:
    """Median seconds per step and peak bytes of tensors (0 without `memory`), of a fresh process.

    Raises TrainingError if it fails.
    """
    name, settings = case
    command = [sys.executable, "-m", "lmsmith", "bench", "train", "--json"]
    command += ["--preset", name, "--n", str(n_steps)]
    command += ["--seconds", str(SECONDS), *(["--memory"] if memory else [])]
    for key, value in settings.items():
        command += [f"--{key}", "yes" if value is True else str(value)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise TrainingError(f"`{' '.join(command[1:])}` failed: {last}")
    found = foreign_json.parse(done.stdout)
    return statistics.median(found["seconds"]), float(found.get("peak_tensor_bytes", 0))
