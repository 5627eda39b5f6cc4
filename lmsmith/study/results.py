"""The runs of a study on disk, and what they gave.

    OUT/study.toml       the study file, as it was started
    OUT/recipes/         one recipe (.toml) for each run, to repeat it by hand
    OUT/runs/            the run folders: ARM-seed-N
    OUT/errors/          what a failed run printed; remove a file to repeat that run
    OUT/results.json     `Result` of each run that has ended, and the verdicts
    OUT/report.html      the report

A run that diverged or failed is a result too: it has no value, and the report counts it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lmsmith import atomic, foreign_json
from lmsmith.errors import CheckpointError, StorageError
from lmsmith.strict_json import write_json
from lmsmith.study.plan import Arm, Study

Outcome = Literal["finished", "diverged", "failed", "pruned"]
LONGEST = 100  # characters of a file name
DIVERGED = re.compile(r"diverged|not finite|the loss is (nan|inf)|gradient norm (nan|inf)", re.I)


@dataclass(frozen=True)
class Result:
    """One run that has ended. `value`: the study's metric, None unless it finished."""

    arm: str
    seed: int
    outcome: Outcome
    value: float | None
    seconds: float
    tokens: int
    steps: int
    n_params: int
    error: str = ""


@dataclass(frozen=True)
class Place:
    """The folder of a study."""

    out: Path

    def make(self) -> None:
        """Creates the folders. Raises StorageError."""
        for part in ("runs", "recipes", "errors"):
            try:
                (self.out / part).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(atomic.explain(error, self.out / part)) from error

    def run(self, arm: Arm, seed: int) -> Path:
        """The folder of a run."""
        return self.out / "runs" / f"{slug(arm.name)}-seed-{seed}"

    def size_of_runs(self) -> int:
        """Bytes of all run folders: models, checkpoints and tokens."""
        return sum(file.stat().st_size for file in (self.out / "runs").rglob("*") if file.is_file())

    def recipe(self, arm: Arm, seed: int) -> Path:
        """The recipe that repeats a run."""
        return self.out / "recipes" / f"{slug(arm.name)}-seed-{seed}.toml"

    def error(self, arm: Arm, seed: int) -> Path:
        """What a failed run printed."""
        return self.out / "errors" / f"{slug(arm.name)}-seed-{seed}.txt"

    def printed(self, arm: Arm, seed: int) -> Path:
        """What a run prints while it runs."""
        return self.error(arm, seed).with_suffix(".running")


def slug(name: str) -> str:
    """A name for files: letters, digits and a few signs. Long names end in a hash."""
    short = re.sub(r"[^\w.=+,-]+", "_", name).strip("._") or "arm"
    if len(short) <= LONGEST:
        return short
    return f"{short[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def read_result(place: Place, study: Study, arm: Arm, seed: int) -> Result | None:
    """The result of a run, or None if it has not ended. Raises CheckpointError for a damaged
    summary."""
    path = place.run(arm, seed) / "summary.json"
    if path.exists():
        try:
            summary = foreign_json.read(path)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be read: {error}. Remove the run.") from error
        if summary.get("finished") == "signal":
            return None
        value = summary.get(study.metric)
        outcome: Outcome = "finished" if isinstance(value, int | float) else "diverged"
        return Result(
            arm.name,
            seed,
            outcome,
            value,
            float(summary.get("train_seconds") or 0),
            int(summary.get("tokens_seen") or 0),
            int(summary.get("steps") or 0),
            int(summary.get("n_params") or 0),
        )
    failed = place.error(arm, seed)
    if not failed.exists():
        return None
    text = failed.read_text(encoding="utf-8", errors="replace")
    said = [line for line in text.splitlines() if line.strip()]
    outcome = "diverged" if DIVERGED.search(text) else "failed"
    return Result(arm.name, seed, outcome, None, 0, 0, 0, 0, said[-1] if said else "")


def values_of(results: Iterable[Result]) -> dict[str, dict[int, float]]:
    """Arm -> seed -> value, of the runs that finished, in the order of the results."""
    found: dict[str, dict[int, float]] = {}
    for result in results:
        arm = found.setdefault(result.arm, {})
        if result.value is not None:
            arm[result.seed] = result.value
    return found


def write_results(place: Place, results: Iterable[Result], more: Mapping[str, Any]) -> None:
    """Writes results.json. Raises StorageError."""
    content = {**more, "results": [asdict(result) for result in results]}
    write_json(place.out / "results.json", content)
