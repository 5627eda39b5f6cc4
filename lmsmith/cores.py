"""How many cores this process may use: not those of the machine, where it is held to fewer.

Held to fewer is who is started by `taskset` or a job scheduler (affinity), and whatever runs in a container with a
quota of processor time (Linux's cgroups). More threads than that wait for each other.
"""

import math
import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")


def n_cores() -> int:
    """At least one. A quota of two and a half cores is three."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(here, _quota())))


def _quota() -> float:
    """Cores' worth of time that this process's groups have, the least of them; infinite where none is said."""
    return min((_share(place) for place in _groups()), default=math.inf)


def _groups() -> list[Path]:
    """The folders of the groups this process is in, up to the root, of both versions of cgroups."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):  # not Linux
        return []
    found = []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _CGROUPS / controllers if controllers else _CGROUPS
        place = root / path.lstrip("/")
        found += [place, *(parent for parent in place.parents if parent.is_relative_to(root))]
    return found


def _share(place: Path) -> float:
    """Quota over period of one group: `cpu.max` of version 2, two files of version 1."""
    try:
        if (place / "cpu.max").exists():
            quota, period = (place / "cpu.max").read_text(encoding="ascii").split()
        else:
            quota, period = ((place / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf  # -1 of version 1: no limit
    except (OSError, ValueError):  # "max" of version 2; no such file
        return math.inf
