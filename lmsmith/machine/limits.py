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
    """Returns the number of cores this process may use, at least 1. A quota of 2.5 cores counts as
    3.
    """
    given = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return max(1, math.ceil(min(given, _least("cpu", _share))))


def omp_threads() -> int:
    """Returns the number of threads that OMP_NUM_THREADS sets; 0 if it sets none."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isdecimal() else 0


def free_memory() -> float:
    """Memory available to this process, in bytes, file caches included; 0 if the system does not
    report it.
    """
    try:
        lines = dict(line.split(":") for line in _MEMINFO.read_text(encoding="ascii").splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError, IndexError):
        return 0.0
    return max(0.0, min(available, _least("memory", _room)))


def _least(controller: str, of: Callable[[Path], float]) -> float:
    """Returns the smallest limit among the control groups of this process and their parents;
    infinite without limits.
    """
    return min(map(of, _groups(controller)), default=math.inf)


def _groups(controller: str) -> Iterator[Path]:
    """Yields the folders of the control groups that hold this process, for cgroups version 1 and
    2.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):  # not Linux
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and controller not in controllers.split(","):
            continue
        root = _CGROUPS / controllers if controllers else _CGROUPS
        folder = root / path.lstrip("/")
        yield from (folder, *(parent for parent in folder.parents if parent.is_relative_to(root)))


def _share(folder: Path) -> float:
    """Returns the number of cores' worth of time: quota / period, from `cpu.max` (version 2) or two
    files (version 1).
    """
    try:
        if (folder / "cpu.max").exists():
            quota, period = _text(folder / "cpu.max").split()
        else:
            quota, period = (_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        # version 1 has -1 for no limit
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # "max" in version 2, or no such file
        return math.inf


def _room(folder: Path) -> float:
    """Bytes between the memory limit and current use, not counting inactive file caches."""
    names = ("memory.max", "memory.current", "inactive_file")
    if not (folder / names[0]).exists():
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    try:
        limit, used = (int(_text(folder / name)) for name in names[:2])
        cached = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
        return limit - used + int(cached[names[2]])
    except (OSError, ValueError, KeyError):
        return math.inf


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii")
