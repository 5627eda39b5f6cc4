"""Corrects the predicted time of a step on a CPU by timing a few steps on this machine.

`cpu_time.py` predicts a step from measured speeds and factors that were fitted on one machine. On
another one, products, passes over memory, elementwise functions and the overhead of operations may
be slower or faster inside a step than the speeds alone say. So `--device here` also times steps of
`CONFIGS`, which differ in what takes their time, and fits one correction for each of `GROUPS`:

    seconds of a config = sum over groups of correction * predicted seconds

by least squares of relative errors, with a penalty for corrections far from their common scale.
`lmsmith plan --grade` draws other configs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lmsmith.config import RunConfig
from lmsmith.config.presets import preset
from lmsmith.plan.cpu_time import GROUP_OF, GROUPS, cpu_parts
from lmsmith.plan.here import Measured

Timer = Callable[[RunConfig], float]  # measures the seconds of a step

SECONDS, FEWEST = 5.0, 4  # after these seconds no further config is timed, but at least so many
PENALTY = 0.03  # of a correction's squared distance from the scale, times the configs
LEAST, MOST = 0.3, 3.0

# Presets with layers, heads, width, context, vocabulary, rows, and other settings. The first ones
# differ most: on a busy machine, only they are timed.
_CASES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("gpt2", (2, 2, 64, 32, 300, 1), {}),
    ("llama", (2, 4, 256, 128, 100, 8), {}),
    ("babygpt", (2, 4, 64, 256, 100, 4), {}),
    ("llama", (3, 2, 192, 64, 300, 2), {"optim.name": "muon"}),
    ("llama", (4, 2, 96, 64, 300, 2), {}),
    ("qwen3", (3, 4, 128, 64, 2000, 2), {"train.micro_batch_size": 1}),
    ("gpt2", (2, 4, 256, 128, 300, 4), {}),
    ("qwen3", (2, 4, 64, 256, 300, 4), {"train.activation_checkpointing": True}),
    ("llama", (1, 2, 64, 128, 7000, 8), {}),
    ("modern", (1, 2, 128, 64, 2000, 2), {}),
]


def configs() -> Iterator[RunConfig]:
    """The configs whose steps are timed."""
    for name, sizes, others in _CASES:
        keys = ("n_layer", "n_head", "d_model", "context_length", "vocab_size")
        settings: dict[str, Any] = {
            f"model.{key}": size for key, size in zip(keys, sizes, strict=False)
        }
        settings |= {"train.batch_size": sizes[-1], "train.dtype": "float32", **others}
        yield preset(name).changed(settings, where="the calibration")


def calibration(timer: Timer) -> Callable[[Measured], dict[str, float]]:
    """A function that times `configs` and returns the corrections of a machine's speeds."""

    def correct(speeds: Measured) -> dict[str, float]:
        ends, timed = time.perf_counter() + SECONDS, list[tuple[dict[str, float], float]]()
        for config in configs():
            timed.append((cpu_parts(config, speeds), timer(config)))
            if len(timed) >= FEWEST and time.perf_counter() > ends:
                break  # other programs use the cores
        return corrections(timed)

    return correct


def corrections(timed: Sequence[tuple[dict[str, float], float]]) -> dict[str, float]:
    """Corrections by group, from the predicted seconds by part and the measured ones of configs."""
    names = list(GROUPS)
    rows = []
    for parts, seconds in timed:
        of_groups = dict.fromkeys(names, 0.0)
        for part, predicted in parts.items():
            of_groups[GROUP_OF[part]] += predicted / seconds
        rows.append([of_groups[name] for name in names])
    scale = 1 / statistics.median(map(sum, rows))  # what all steps have in common
    rows = [[scale * value for value in row] for row in rows]
    weights, found = [1.0] * len(rows), [1.0] * len(names)
    for _ in range(10):  # a step that another program disturbed counts less
        found = _least_squares(rows, weights)
        for index, row in enumerate(rows):
            error = abs(sum(x * c for x, c in zip(row, found, strict=True)) - 1)
            weights[index] = 1 / max(error, 0.03)
    return {
        name: min(max(scale * value, LEAST), MOST) for name, value in zip(names, found, strict=True)
    }


def _least_squares(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Minimizes sum w (row c - 1)² + PENALTY sum w (c - 1)², by elimination."""
    n, penalty = len(rows[0]), PENALTY * sum(weights)
    pairs = list(zip(rows, weights, strict=True))
    matrix = [
        [sum(w * row[i] * row[j] for row, w in pairs) + penalty * (i == j) for j in range(n)]
        + [sum(w * row[i] for row, w in pairs) + penalty]
        for i in range(n)
    ]
    for i in range(n):  # positive definite: no pivoting
        matrix[i] = [value / matrix[i][i] for value in matrix[i]]
        for k in range(n):
            if k != i:
                factor = matrix[k][i]
                matrix[k] = [a - factor * b for a, b in zip(matrix[k], matrix[i], strict=True)]
    return [row[n] for row in matrix]
