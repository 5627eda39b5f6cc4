"""The latest result of `lmsmith verify` on this machine, kept in the user's cache folder.

Reports show it, so that a reader knows whether the machine that trained the model was verified.
The file is $XDG_CACHE_HOME/lmsmith/verified.json, by default in ~/.cache.
"""

from __future__ import annotations

import datetime
import hashlib
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lmsmith import atomic, foreign_json
from lmsmith.errors import StorageError
from lmsmith.strict_json import to_json

NAME = "verified.json"


def path() -> Path:
    """The file of the latest result."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache).expanduser() / "lmsmith" / NAME


def machine() -> dict[str, str]:
    """The processor, system and library versions that results may depend on."""
    found = {
        "system": platform.system(),
        "processor": _processor(),
        "python": platform.python_version(),
    }
    for package in ("torch", "numpy", "numba"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def receipt(ours: str, outcomes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The result with its hash: the first 16 hexadecimal digits of the SHA-256 of version, machine
    and, for each equivalence, its name, bound and whether it holds.

    Measured differences are not hashed: they may change in the last digit from run to run.
    """
    held = [[one["name"], one["bound"], one["agrees"], one["skipped"]] for one in outcomes]
    hashed = {"lmsmith": ours, "machine": machine(), "outcomes": held}
    digest = hashlib.sha256(to_json(hashed).encode()).hexdigest()[:16]
    agree = all(one["agrees"] for one in outcomes)
    date = datetime.date.today().isoformat()
    return {**hashed, "hash": digest, "date": date, "agree": agree, "outcomes": list(outcomes)}


def keep(result: Mapping[str, Any]) -> bool:
    """Writes the result to the cache folder. Returns False where that folder cannot be written."""
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        atomic.write(path(), to_json(result) + "\n")
    except (OSError, StorageError):
        return False
    return True


def latest(ours: str) -> dict[str, Any] | None:
    """The kept result, if it is of this version of lmsmith and of this machine."""
    try:
        found = foreign_json.read(path())
    except (OSError, ValueError):  # a cache file that cannot be read says nothing
        return None
    good = isinstance(found, dict) and found.get("lmsmith") == ours
    return found if good and found.get("machine") == machine() else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()
