"""Cores and memory that this process may use.

`taskset`, job schedulers (CPU affinity) and cgroup limits of containers reduce these numbers. More
threads than cores wait for each other; more memory than the limit ends the process.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def n_cores() -> int:
    """At least one. A quota of two and a half cores is three."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(here, _least("cpu", _share))))


def set_threads() -> int:
    """The number of threads that OMP_NUM_THREADS sets; 0: none."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def free_memory() -> float:
    """Bytes that could be had; none where the system does not say. What caches files counts as
    free.
    """
    try:
        lines = dict(line.split(":") for line in _MEMINFO.read_text(encoding="ascii").splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return 0.0
    return max(0.0, min(available, _least("memory", _room)))


def _least(controller: str, of: Callable[[Path], float]) -> float:
    """The least that any of this process's groups gives, those above them included; infinite
    where none is said.
    """
    return min(map(of, _groups(controller)), default=math.inf)


def _groups(controller: str) -> Iterator[Path]:
    """The folders of the groups that hold this process, of both versions of cgroups."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):  # not Linux
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUPS / controllers if controllers else _CGROUPS
        place = root / path.lstrip("/")
        yield from (place, *(parent for parent in place.parents if parent.is_relative_to(root)))


def _share(place: Path) -> float:
    """Cores' worth of time: quota over period, of `cpu.max` in version 2, of two files in
    version 1.
    """
    try:
        if (place / "cpu.max").exists():
            quota, period = _text(place / "cpu.max").split()
        else:
            quota, period = (_text(place / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf  # -1 of version 1: no limit
    except (OSError, ValueError):  # "max" of version 2; no such file
        return math.inf


def _room(place: Path) -> float:
    """Bytes between the limit and what is in use, but for files that nobody has touched lately."""
    names = ("memory.max", "memory.current", "inactive_file")
    if not (place / names[0]).exists():
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    try:
        limit, used = (int(_text(place / name)) for name in names[:2])
        cached = dict(line.split() for line in _text(place / "memory.stat").splitlines())
        return limit - used + int(cached[names[2]])
    except (OSError, ValueError, KeyError):
        return math.inf


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii")
