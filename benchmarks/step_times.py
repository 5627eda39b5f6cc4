"""Fits the predicted time of a step on a CPU to measured steps.

    python benchmarks/step_times.py measure [--configs 96] [--out step_times.jsonl]
    python benchmarks/step_times.py fit step_times.jsonl [--write]
    python benchmarks/step_times.py grade [--write]

`measure` draws tuning configs with a seed of their own, so that none of them is graded. Before each
GROUP of them it measures the machine as `lmsmith plan --device here` does. Each config runs in a
fresh process, as in `lmsmith plan --grade`. About 5 seconds per config on a quiet machine; a second
call with the same file continues it.

`fit` finds the factors of `lmsmith/plan/cpu_time.py`: least squares of relative errors, without
negative factors. It then predicts each config with factors that were fitted without it, and with
the corrections of its group. The 80% interval lies between the 10th and the 90th percentile of
measured / predicted. `--write` puts factors and interval into `lmsmith/plan/cpu_time.toml`, and the
measurements into `tests/plan/data/tuning_steps.jsonl`, where a test repeats the fit.

`grade` measures the seconds per step of the configs of `lmsmith plan --grade`, which no fit has
seen, and prints the same summary. `--write` keeps the measurements in
`tests/plan/data/graded_steps.jsonl`, with which a test checks the figures of the documentation.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
from scipy.optimize import nnls

from lmsmith.config.presets import preset
from lmsmith.machine.limits import n_cores, omp_threads
from lmsmith.plan.calibrate import calibration, corrections
from lmsmith.plan.calibrate import configs as calibration_configs
from lmsmith.plan.cpu_time import FILE, GROUP_OF, primitives
from lmsmith.plan.devices import of_machine
from lmsmith.plan.grade import Case, cases, measured_step
from lmsmith.plan.here import Measured, measured
from lmsmith.plan.time import step_time

SEED, GROUP = 3101, 12
DATA = Path(__file__).parents[1] / "tests" / "plan" / "data" / "tuning_steps.jsonl"
GRADED = DATA.with_name("graded_steps.jsonl")
NAMES = list(GROUP_OF)
SMALLEST_ERROR = 0.02  # errors below it weigh the same


@dataclass
class Row:
    """A measured config: `parts` are its primitives; `group`: the measurement of the machine."""

    case: str
    parts: np.ndarray
    seconds: float
    group: int


@dataclass
class Group:
    """A measurement of the machine, with the seconds of the calibration's steps."""

    speeds: Measured
    calibration: list[float]


def measure(n: int, out: Path) -> None:
    """Appends the measured configs to `out`, one JSON object per line."""
    done = sum("case" in json.loads(line) for line in _lines(out))
    for index, case in enumerate(cases(n, SEED)):
        if index < done:
            continue
        if index % GROUP == 0 or index == done:
            _append(out, _machine())
        name, settings = case
        config = preset(name).changed(settings, where="a tuning config")
        seconds, _ = measured_step(config, case, memory=False)
        _append(out, {"case": case, "seconds": seconds})
        print(f"{index + 1}/{n}: {name} {seconds * 1e3:.1f} ms", flush=True)


def _machine() -> dict[str, Any]:
    from lmsmith.train.ladder import seconds_of_step

    threads, times = omp_threads() or n_cores(), list[float]()

    def correct(speeds: Measured) -> dict[str, float]:
        times.extend(seconds_of_step(config, threads) for config in calibration_configs())
        return {}

    return {"speeds": vars(measured(correct, again=True, keep=False)), "calibration": times}


def read(paths: Sequence[Path]) -> tuple[list[Group], list[Row]]:
    """The measurements of the machine, and the configs."""
    groups, rows = list[Group](), list[Row]()
    for line in (line for path in paths for line in _lines(path)):
        found = json.loads(line)
        if "speeds" in found:
            groups.append(Group(Measured(**found["speeds"]), found["calibration"]))
            continue
        name, settings = found["case"]
        parts = _primitives((name, settings), groups[-1].speeds)
        rows.append(Row(json.dumps(found["case"]), parts, found["seconds"], len(groups) - 1))
    return groups, rows


def fit(rows: Sequence[Row]) -> np.ndarray:
    """Factors of `NAMES`: least squares in which large errors count less (about least deviations)."""
    relative = np.array([row.parts / row.seconds for row in rows])
    weights = np.ones(len(rows))
    factors = np.zeros(len(NAMES))
    for _ in range(20):
        factors, _ = nnls(relative * weights[:, None], weights)
        errors = np.maximum(np.abs(relative @ factors - 1), SMALLEST_ERROR)
        weights = 1 / np.sqrt(errors)
    return factors


def left_out(groups: Sequence[Group], rows: Sequence[Row]) -> list[float]:
    """measured / predicted of each row, by factors that were fitted without its config."""
    found = []
    for row in rows:
        factors = fit([other for other in rows if other.case != row.case])
        found.append(row.seconds / _predicted(row, factors, groups[row.group]))
    return found


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The 10th and the 90th percentile; outside the extremes of few configs, these."""
    low, high = np.quantile(ratios, (0.1, 0.9), method="weibull")
    return float(low), float(high)


def errors(ratios: Sequence[float]) -> str:
    """Median error and 90th percentile, as `lmsmith plan --grade` prints them."""
    sizes = sorted(abs(1 / ratio - 1) for ratio in ratios)
    return f"median error {statistics.median(sizes):.1%}, 90th percentile {_tenth(sizes):.1%}"


def _tenth(sizes: Sequence[float]) -> float:
    return sizes[min(len(sizes) - 1, int(0.9 * len(sizes)))]


def _predicted(row: Row, factors: np.ndarray, group: Group) -> float:
    """With the corrections of the group, which depend on the factors."""
    of_parts = factors * row.parts
    if not group.calibration:
        return float(of_parts.sum())
    timed = [
        (dict(zip(NAMES, factors * _of_config(config, group.speeds), strict=True)), seconds)
        for config, seconds in zip(calibration_configs(), group.calibration, strict=True)
    ]
    of_group = corrections(timed)
    return float(sum(of_group[GROUP_OF[n]] * x for n, x in zip(NAMES, of_parts, strict=True)))


def _primitives(case: Case, speeds: Measured) -> np.ndarray:
    return _of_config(preset(case[0]).changed(case[1], where="a tuning config"), speeds)


def _of_config(config: Any, speeds: Measured) -> np.ndarray:
    found = primitives(config, config.model, speeds)
    return np.array([found[name] for name in NAMES])


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _append(path: Path, value: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")


def fitted(groups: Sequence[Group], rows: Sequence[Row], ratios: Sequence[float]) -> dict[str, Any]:
    """The content of `cpu_time.toml`. `ratios`: from `left_out`."""
    low, high = interval(ratios)
    threads = groups[0].speeds.threads
    return {
        "configs": len({row.case for row in rows}),
        "machine": f"{groups[0].speeds.name}, {threads} thread{'s' * (threads != 1)}",
        "date": groups[0].speeds.date,
        "low": round(low, 3),
        "high": round(high, 3),
        "factors": {name: float(f"{x:.3g}") for name, x in zip(NAMES, fit(rows), strict=True)},
    }


def report(paths: Sequence[Path], write: bool) -> None:
    groups, rows = read(paths)
    ratios = left_out(groups, rows)
    found = fitted(groups, rows, ratios)
    print(f"{found['configs']} configs, {len(rows)} measurements, each predicted without it:")
    print(f"{errors(ratios)}; 80% interval: {found['low']} to {found['high']}")
    text = "# Written by `python benchmarks/step_times.py fit FILE --write`.\n"
    text += tomli_w.dumps(found)
    print(text)
    if write:
        measurements = "".join(f"{line}\n" for path in paths for line in _lines(path))
        FILE.write_text(text, encoding="utf-8")
        DATA.write_text(measurements, encoding="utf-8")


def grade(write: bool) -> None:
    """Measures and grades the configs of `lmsmith plan --grade`."""
    from lmsmith.plan import grade as graded
    from lmsmith.train.ladder import seconds_of_step

    timer = partial(seconds_of_step, threads=omp_threads() or n_cores())
    grades, lines = list[graded.Grade](), list[dict[str, Any]]()
    for index, case in enumerate(cases()):
        if index % graded.GROUP == 0:
            speeds = measured(calibration(timer), again=True, keep=False)
            lines.append({"speeds": vars(speeds)})
        config = preset(case[0]).changed(case[1], where="a case")
        seconds, _ = measured_step(config, case, memory=False)
        step = step_time(config, of_machine(speeds))
        grades.append(graded.Grade(case, "time", step.seconds, step.low, step.high, seconds))
        lines.append({"case": case, "seconds": seconds})
        print(f"{index + 1}: {case[0]} {seconds * 1e3:.1f} ms, {grades[-1].error:+.1%}", flush=True)
    print(graded.summary(grades, "time"))
    if write:
        GRADED.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    what = parser.add_subparsers(required=True, dest="what")
    measuring = what.add_parser("measure")
    measuring.add_argument("--configs", type=int, default=96)
    measuring.add_argument("--out", type=Path, default=Path("step_times.jsonl"))
    fitting = what.add_parser("fit")
    fitting.add_argument("files", type=Path, nargs="+")
    fitting.add_argument("--write", action="store_true")
    grading = what.add_parser("grade")
    grading.add_argument("--write", action="store_true")
    options = parser.parse_args()
    if options.what == "measure":
        measure(options.configs, options.out)
    elif options.what == "grade":
        grade(options.write)
    else:
        report(options.files, options.write)


if __name__ == "__main__":
    main()
