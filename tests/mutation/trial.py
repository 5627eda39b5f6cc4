"""Runs tests on a copy of the project in which one line is changed.

The copy is made once, with its compiled files. Each trial is a fork of a process that has imported
PyTorch, Numba and pytest, so that it starts in a tenth of a second, and ends at the first failure.

Numba reuses compiled functions if a file has its old time and size. A mutant of a file without
compiled functions keeps both; any other gets an empty cache, so that its callers are compiled too.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from core import ROOT, Change

PRELOADED = ("torch", "numba", "pytest", "hypothesis", "jaxtyping", "beartype", "safetensors.torch")
BROKEN, DONE = b"broken: ", b"done\n"
COMPILED = re.compile(r"^\s*@(numba\.)?(njit|kernel|intrinsic)\b", re.MULTILINE)


@dataclass(frozen=True)
class Trial:
    """`detected`: the test that failed, or another reason; empty if all tests passed."""

    change: Change
    detected: str
    seconds: float


class _First:
    """A pytest plugin that runs the given tests in their order, and writes failures to a pipe."""

    def __init__(self, pipe: int, tests: Sequence[str]) -> None:
        self.pipe = pipe
        self.place = {test: place for place, test in enumerate(tests) if "::" in test}

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        if self.place:
            items[:] = sorted(
                (item for item in items if item.nodeid in self.place),
                key=lambda item: self.place[item.nodeid],
            )

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            os.write(self.pipe, f"{report.nodeid}\n".encode())

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            os.write(self.pipe, f"{report.nodeid} (import)\n".encode())


class Workbench:
    """A copy of the project. A trial may take `seconds`, and `cpu_seconds` of the processor."""

    def __init__(self, seconds: float, cpu_seconds: int) -> None:
        self.seconds, self.cpu_seconds = seconds, cpu_seconds
        self.place = tempfile.TemporaryDirectory()
        self.copy = Path(self.place.name) / "project"
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        os.environ.setdefault("LMSMITH_TEST_DATA", str(ROOT.parent / "shared" / "data"))
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        os.environ["PYTHONPATH"] = str(self.copy)

    def __enter__(self) -> Workbench:
        ignored = shutil.ignore_patterns(".*", "runs", "build", "demo")
        shutil.copytree(ROOT, self.copy, ignore=ignored, symlinks=True)
        for name in PRELOADED:
            importlib.import_module(name)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.place.cleanup()

    def tried(self, change: Change, groups: Sequence[Sequence[str]]) -> Trial:
        """Runs groups of tests with the change until one fails."""
        path, original = self.copy / change.file, ROOT / change.file
        source = original.read_text("utf-8")
        times = original.stat()
        for found in path.parent.glob(f"__pycache__/{path.stem}.*.pyc"):
            found.unlink()
        compiled = bool(COMPILED.search(source))
        changed = change.mutant.applied(source)
        path.write_text(changed if compiled else _of_size(changed, source), "utf-8")
        if not compiled:
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        began, detected = time.monotonic(), ""
        try:
            with tempfile.TemporaryDirectory() as cache:
                for group in groups:
                    detected = detected or self._failure(group, cache if compiled else "")
        finally:
            shutil.copy2(original, path)
        return Trial(change, detected, time.monotonic() - began)

    def unchanged(self, tests: Sequence[str]) -> str:
        """Runs the tests without a change. Returns the first that fails; there should be none."""
        return self._failure(tests, "")

    def _failure(self, tests: Sequence[str], cache: str) -> str:
        """Runs tests in a fork. Returns the first failure, or "" if they pass."""
        began = time.monotonic()
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            self._run_and_exit(tests, writer, cache)
        os.close(writer)
        said, ended = b"", False
        while not ended:
            left = began + self.seconds - time.monotonic()
            if not select.select([reader], [], [], max(0.0, left))[0]:
                break
            part = os.read(reader, 4096)
            said += part
            ended = not part or said.endswith(DONE)
        if not said.startswith(BROKEN) and not said.endswith(DONE):
            said += b"a test that does not end"
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if said.startswith(BROKEN):
            raise RuntimeError(f"pytest could not run: {said.decode()}")
        return said.removesuffix(DONE).decode().partition("\n")[0]

    def _run_and_exit(self, tests: Sequence[str], pipe: int, cache: str) -> None:
        """In the child: runs pytest on the copy and ends the process."""
        try:
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(nothing, descriptor)
            os.chdir(self.copy)
            sys.path[:] = [str(self.copy)] + [one for one in sys.path if Path(one) != ROOT]
            sys.dont_write_bytecode = True
            if cache:
                os.environ["NUMBA_CACHE_DIR"] = cache
                importlib.import_module("numba").config.reload_config()
            spec = importlib.util.find_spec("lmsmith")
            assert spec
            assert Path(str(spec.origin)).is_relative_to(self.copy), spec.origin
            pytest: Any = importlib.import_module("pytest")
            resource.setrlimit(resource.RLIMIT_CPU, (self.cpu_seconds, self.cpu_seconds))
            files = dict.fromkeys(test.partition("::")[0] for test in tests)
            status = pytest.main(
                ["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *files],
                plugins=[_First(pipe, tests)],
            )
            if status not in (0, 5):
                os.write(pipe, f"exit status {int(status)}\n".encode())
            os.write(pipe, DONE)
        except BaseException:
            os.write(pipe, BROKEN + traceback.format_exc()[-1000:].encode())
        finally:
            os._exit(0)


def _of_size(changed: str, source: str) -> str:
    """The changed source with as many bytes as the original: a comment is added, or the docstring
    of the module is made shorter."""
    missing = len(source.encode()) - len(changed.encode())
    if missing > 0:
        return changed + "#" * (missing - 1) + "\n"
    start = changed.index('"""') + 3
    return changed[:start] + changed[start - missing :]
