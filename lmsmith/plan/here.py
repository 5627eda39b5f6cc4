"""Measures this machine for `--device here`, in at most 10 s, and keeps the result.

    products     FLOP/s of matrix products by shape: (tokens, width) x (width, width), in float32
    attention    FLOP/s of the small products of attention, one per head
    copy         bytes/s of large copies, read and written
    small        bytes/s of operations on arrays that fit the cache
    exponential  numbers/s of softmax
    overhead     seconds of an operation on few numbers, forward and backward
    corrections  of predicted steps, by timing a few of them (`calibrate.py`)

The measurement is kept in ~/.cache/lmsmith/machine.json for this processor and number of threads,
and repeated after 30 days, or at the next call if other programs used the cores meanwhile.
LMSMITH_CACHE names another folder.
"""

from __future__ import annotations

import datetime
import itertools
import os
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lmsmith import foreign_json
from lmsmith.machine.limits import free_memory, n_cores, omp_threads
from lmsmith.machine.threads import OtherPrograms
from lmsmith.strict_json import write_json

KEPT_DAYS = 30
BUSY = 0.3  # cores that other programs use; with fewer, a measurement counts as undisturbed


@dataclass(frozen=True)
class Measured:
    """Speeds of this machine; see above. `products`: by precision; `by_width`: float32, by width of
    a square matrix. `corrections`: of predicted steps, see `calibrate.py`. `others`: cores that
    other programs used meanwhile.
    """

    name: str
    threads: int
    date: str
    memory: float
    products: dict[str, float]
    by_width: dict[str, float]
    attention: float
    copy: float
    small: float
    exponential: float
    overhead: float
    matmul: str = "default"
    corrections: dict[str, float] = field(default_factory=dict)
    others: float = 0.0

    @property
    def disturbed(self) -> str:
        """Says that other programs disturbed the measurement; "" if they did not."""
        if self.others <= BUSY:
            return ""
        return (
            f"other programs used {self.others:.1f} cores while this machine was measured, which "
            "makes the seconds less certain: the next call measures again"
        )

    def product_rate(self, width: float) -> float:
        """FLOP/s of products whose smaller matrix dimension is `width`, interpolated."""
        known = sorted((int(key), value) for key, value in self.by_width.items())
        if width <= known[0][0]:
            return known[0][1] * max(width / known[0][0], 0.1)
        for (low, rate_low), (high, rate_high) in itertools.pairwise(known):
            if width <= high:
                share = (width - low) / (high - low)
                return rate_low + share * (rate_high - rate_low)
        return known[-1][1]


def measured(
    correct: Callable[[Measured], dict[str, float]] | None = None,
    *,
    again: bool = False,
    keep: bool = True,
) -> Measured:
    """The kept measurement of this machine, or a new one (with `again`: always a new one).

    `correct` measures the corrections. A new measurement replaces the kept one, if `keep`, and if
    it has corrections.
    """
    threads = omp_threads() or n_cores()
    found = kept(threads)
    usable = found is not None and (correct is None or not found.disturbed)
    if found is not None and usable and not again:
        return found
    from lmsmith.machine.speeds import measure

    programs = OtherPrograms(0.0)
    found = Measured(
        name=name(),
        threads=threads,
        date=datetime.date.today().isoformat(),
        memory=free_memory(),
        **measure(threads),
    )
    if correct is None:
        return found
    found = replace(found, corrections=correct(found))
    found = replace(found, others=round(programs.cores() or 0.0, 1))
    if not keep:
        return found
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, asdict(found))
    return found


def kept(threads: int) -> Measured | None:
    """The measurement of this machine with this number of threads, if there is a recent one."""
    try:
        values: dict[str, Any] = foreign_json.read(_path())
        found = Measured(**{**values, "corrections": values["corrections"]})
    except (OSError, ValueError, TypeError, KeyError):  # of an earlier version, or damaged
        return None
    age = datetime.date.today() - datetime.date.fromisoformat(found.date)
    same = found.name == name() and found.threads == threads
    return found if same and age.days <= KEPT_DAYS else None


def name() -> str:
    """The processor's name, as the system reports it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {n_cores()} cores"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()}, {n_cores()} cores"


def _path() -> Path:
    named = os.environ.get("LMSMITH_CACHE")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(named) if named else cache / "lmsmith") / "machine.json"
