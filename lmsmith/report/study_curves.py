"""The learning curves of a study's arms: mean and spread over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lmsmith.errors import CheckpointError
from lmsmith.report.reading import Run, column, read_run
from lmsmith.study.run import Studied

Numbers = npt.NDArray[np.float64]
AXES = {"steps": "step", "tokens": "token", "seconds": "second"}
_FIELDS = {"steps": "step", "tokens": "tokens", "seconds": "seconds"}
METRIC = "val_bits_per_byte"


@dataclass(frozen=True)
class ArmCurves:
    """An arm's runs that can be read, and its curve: `mean`, `low` and `high` over `axes`, each of
    shape (n,). The curve is empty for runs without evaluations."""

    name: str
    colour: int
    runs: list[Run]
    axes: dict[str, Numbers]
    mean: Numbers
    low: Numbers
    high: Numbers


def curves_of(studied: Studied) -> list[ArmCurves]:
    """The curves of all arms, in the order of the study."""
    found = []
    for colour, arm in enumerate(studied.study.arms):
        runs = []
        for result in studied.results:
            if result.arm == arm.name:
                try:
                    runs.append(read_run(studied.place.run(arm, result.seed)))
                except CheckpointError:  # a run that failed before it had a folder
                    continue
        found.append(_of(arm.name, colour, runs))
    return found


def _of(name: str, colour: int, runs: Sequence[Run]) -> ArmCurves:
    """The mean at the evaluations that all runs have; with a budget in seconds, their number
    differs, and the n-th evaluations are compared."""
    there = [run for run in runs if run.evals]
    n = min((len(run.evals) for run in there), default=0)

    def stacked(field: str) -> Numbers:
        rows = [column(run.evals[:n], field) for run in there]
        return np.array(rows, dtype=np.float64).reshape(len(there), n)

    values = stacked(METRIC)
    if not n:
        nothing = np.empty(0)
        return ArmCurves(name, colour, list(runs), dict.fromkeys(AXES, nothing), *[nothing] * 3)
    mean = values.mean(0)
    spread = values.std(0, ddof=1) if len(there) > 1 else np.zeros(n)
    axes = {axis: stacked(field).mean(0) for axis, field in _FIELDS.items()}
    return ArmCurves(name, colour, list(runs), axes, mean, mean - spread, mean + spread)
