"""Compiles functions in other processes, because Numba compiles with one thread per process.

    begin("split", "learn")    # returns at once
    ...                        # the first call of a function waits until another process has it

A part is a group of functions that are compiled together. The module that defines them names the
part with `part`, and `lmsmith.precompile` has the calls that compile it. `begin` starts it for the
parts that are not on disk, in as many processes as there are cores. If that is impossible, or a
process fails, this process compiles when a function is first called. The code is the same.

Compiling keeps 90 MB in a process, and loading what another one has compiled does not.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from lmsmith.machine.limits import n_cores

if TYPE_CHECKING:  # importing Numba takes 0.2 s
    from lmsmith.tokens.compiled import Kernel

HELPER = "LMSMITH_COMPILES"
"""An environment variable that is set in the processes that compile."""

PROGRAM = (
    "import sys; sys.path[:] = {}; from lmsmith.precompile import main; "
    "sys.exit(main(sys.argv[1:]))"
)
"""`python -m lmsmith.precompile` with the lmsmith of this process."""

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class _Part:
    seconds: float
    kernels: tuple[Kernel, ...]

    def is_on_disk(self) -> bool:
        return all(kernel.is_on_disk() for kernel in self.kernels)


_parts: dict[str, _Part] = {}
_processes: dict[str, subprocess.Popen[bytes]] = {}  # by part


def part(name: str, seconds: float, *kernels: Kernel) -> None:
    """Names functions that are compiled together. `seconds`: about how long that takes; it decides
    how parts are divided among processes.
    """
    _parts[name] = _Part(seconds, kernels)
    for kernel in kernels:
        kernel.before_compiling = partial(_wait, name)


def begin(*names: str, later: Sequence[str] = ()) -> None:
    """Starts to compile those of the parts that are not on disk. Returns at once.

    Name the parts in the order in which they are needed; `later`: parts that the first ones need
    not wait for. Their modules must be imported.
    """
    groups = [_missing(names), _missing(later)]
    if not any(groups) or not _may_start():
        return
    for share in _shares(groups, n_cores()):
        try:
            process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM.format(sys.path), *share],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError:
            return
        _processes.update(dict.fromkeys(share, process))


def wait() -> None:
    """Waits for all processes, so that they do not slow down what is measured next."""
    for process in _processes.values():
        process.wait()


def _wait(name: str) -> None:
    """Waits until a part is on disk, or its process has ended without it."""
    process = _processes.get(name)
    while process and process.poll() is None and not _parts[name].is_on_disk():
        time.sleep(POLL_SECONDS)


def _missing(names: Sequence[str]) -> list[str]:
    return [name for name in names if name not in _processes and not _parts[name].is_on_disk()]


def _shares(groups: list[list[str]], n: int) -> list[list[str]]:
    """Divides parts among up to n processes, one group after the other: the longest first, each to
    the process with the least work. Each process keeps the order of the parts.
    """
    names = [name for group in groups for name in group]
    shares: list[list[str]] = [[] for _ in range(min(n, len(names)))]
    for group in groups:
        for name in sorted(group, key=lambda name: -_parts[name].seconds):
            min(shares, key=lambda share: sum(_parts[one].seconds for one in share)).append(name)
    return [sorted(share, key=names.index) for share in shares]


def _may_start() -> bool:
    return (
        HELPER not in os.environ
        and n_cores() > 1
        and bool(sys.executable)
        and multiprocessing.parent_process() is None  # in a worker: its parent has begun
    )


def _environment() -> dict[str, str]:
    """This process's environment, with the same cache."""
    import numba

    changes = {HELPER: "1"}
    if folder := numba.config.CACHE_DIR:  # type: ignore[attr-defined]
        changes["NUMBA_CACHE_DIR"] = folder
    return os.environ | changes
