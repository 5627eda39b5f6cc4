"""A pytest plugin that records which tests execute which lines of the numeric core.

    python -m pytest -p reach --reach build/reach.json tests/models

Writes {"seconds": {test: seconds}, "tests": {file: {line: [tests]}}}, with tests as node ids and
CPU seconds that include fixtures and child processes. Lines that only run during imports have no
tests, and compiled functions (Numba) cannot be traced.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reach", help="write which tests execute which lines to this file")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--reach"):
        config.pluginmanager.register(Recorder(Path(config.getoption("--reach"))))


class Recorder:
    """Traces the tests of a session, each in a context of its own."""

    def __init__(self, path: Path) -> None:
        self.path, self.seconds = path, dict[str, float]()
        include = [f"{ROOT}/lmsmith/*"]
        self.coverage: Any = coverage.Coverage(data_file=None, include=include, config_file=False)
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        began = _cpu_seconds()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = round(_cpu_seconds() - began, 3)
            self.coverage.switch_context("")

    def pytest_sessionfinish(self) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        found = {
            str(Path(file).relative_to(ROOT)): {
                line: [test for test in tests if test]
                for line, tests in data.contexts_by_lineno(file).items()
            }
            for file in data.measured_files()
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"seconds": self.seconds, "tests": found}
        self.path.write_text(json.dumps(content), encoding="utf-8")


def _cpu_seconds() -> float:
    return sum(os.times()[:4])
