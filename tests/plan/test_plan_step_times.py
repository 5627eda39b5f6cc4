"""The fit of `benchmarks/step_times.py`: synthetic configs, and what it wrote."""

import importlib.util
import json
import random
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from a_machine import SPEEDS

import lmsmith
from lmsmith.plan.calibrate import configs
from lmsmith.plan.cpu_time import FACTORS, FILE, GROUP_OF, GROUPS, cpu_parts
from lmsmith.plan.grade import SEED, cases

pytest.importorskip("scipy")


def _benchmark() -> Any:
    path = Path(lmsmith.__file__).parents[1] / "benchmarks" / "step_times.py"
    spec = importlib.util.spec_from_file_location("step_times", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["step_times"] = module
    spec.loader.exec_module(module)
    return module


STEPS = _benchmark()


def synthetic(n: int, factors: np.ndarray) -> list[Any]:
    draw = random.Random(1)
    rows = []
    for index in range(n):
        parts = np.array([draw.random() ** 3 for _ in STEPS.NAMES])
        rows.append(STEPS.Row(str(index), parts, float(parts @ factors), 0))
    return rows


def test_factors_of_synthetic_steps() -> None:
    true = np.arange(1.0, len(STEPS.NAMES) + 1)
    rows = synthetic(120, true)
    assert STEPS.fit(rows) == pytest.approx(true)
    rows[0].seconds *= 3  # a step that another program disturbed
    plain = np.linalg.lstsq(np.array([r.parts / r.seconds for r in rows]), np.ones(120), rcond=None)
    robust = np.abs(STEPS.fit(rows) / true - 1).max()
    assert robust < 0.1 < np.abs(plain[0] / true - 1).max()


def test_each_config_is_predicted_without_its_own_measurements() -> None:
    true = np.ones(len(STEPS.NAMES))
    rows = synthetic(len(STEPS.NAMES) + 1, true)  # none to spare: each decides about a factor
    twice = [*rows, STEPS.Row(rows[3].case, rows[3].parts, 5 * rows[3].seconds, 0)]
    twice[3].seconds *= 5
    ratios = STEPS.left_out([STEPS.Group(SPEEDS, [])], twice)
    assert ratios[3] == pytest.approx(5, rel=1e-6)
    assert ratios[-1] == pytest.approx(5, rel=1e-6)


def test_the_interval_holds_for_eight_of_ten() -> None:
    ratios = [1 + i / 100 for i in range(-50, 51)]
    low, high = STEPS.interval(ratios)
    assert sum(low <= ratio <= high for ratio in ratios) / len(ratios) == pytest.approx(
        0.8, abs=0.02
    )
    assert STEPS.errors([1.0, 1.0, 1.25, 2.0]) == "median error 10.0%, 90th percentile 50.0%"


def test_corrections_of_a_slower_machine() -> None:
    factors = np.array([FACTORS[name] for name in STEPS.NAMES])
    times = [2 * sum(cpu_parts(config, SPEEDS).values()) for config in configs()]
    parts = np.linspace(0.1, 1, len(factors))
    row = STEPS.Row("a case", parts, 1.0, 0)
    found = STEPS._predicted(row, factors, STEPS.Group(SPEEDS, times))
    assert found == pytest.approx(2 * float(factors @ parts))


def test_tuning_configs_are_neither_graded_nor_those_of_the_calibration() -> None:
    known = [json.loads(line) for line in STEPS.DATA.read_text("utf-8").splitlines()]
    tuned = {json.dumps(each["case"]) for each in known if "case" in each}
    tuned |= {json.dumps(case) for case in cases(96, STEPS.SEED)}
    assert len(tuned) >= 16
    assert not tuned & {json.dumps(case) for case in cases()}
    assert SEED != STEPS.SEED
    assert set(GROUP_OF) == {part for parts in GROUPS.values() for part in parts} == FACTORS.keys()


@pytest.mark.slow
def test_factors_and_interval_are_those_of_the_measurements() -> None:
    groups, rows = STEPS.read([STEPS.DATA])
    found = STEPS.fitted(groups, rows, STEPS.left_out(groups, rows))
    written = tomllib.loads(FILE.read_text(encoding="utf-8"))
    assert found.pop("factors") == pytest.approx(written.pop("factors"), rel=0.01)
    for name in ("low", "high"):
        assert found.pop(name) == pytest.approx(written.pop(name), rel=0.002)
    assert found == written
