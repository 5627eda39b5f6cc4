"""Runs the examples as users do: as files that `lmsmith` processes load, and as modules."""

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lmsmith.config import MODEL_KINDS, OPTIMIZERS, REWARDS, RL_TASKS, SCHEDULES
from lmsmith.config.presets import PRESETS
from lmsmith.evaluate.tasks.registry import TASKS
from lmsmith.text.corpora import CORPORA

PROJECT = Path(__file__).resolve().parent.parent.parent

# The fixtures of tests/cli, which start processes; this conftest needs another module name.
_spec = importlib.util.spec_from_file_location("processes", PROJECT / "tests/cli/conftest.py")
assert _spec is not None
assert _spec.loader is not None
_processes: Any = sys.modules.setdefault("processes", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(_processes)
lmsmith, _lmsmith = _processes.lmsmith, _processes._lmsmith


@pytest.fixture(autouse=True)
def registries(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Removes what a test registered, and the modules that it imported."""
    every = (MODEL_KINDS, OPTIMIZERS, SCHEDULES, PRESETS, CORPORA, TASKS, RL_TASKS, REWARDS)
    for registry in every:
        monkeypatch.setattr(registry, "known", dict(registry.known))
        monkeypatch.setattr(registry, "_owners", dict(registry._owners))
    before = set(sys.modules)
    yield
    for name in [path.stem for path in (PROJECT / "examples").glob("*.py")]:
        if name not in before:
            sys.modules.pop(name, None)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """`example("lion")` imports examples/lion.py as a script next to it would."""
    monkeypatch.syspath_prepend(str(PROJECT / "examples"))
    return lambda name: importlib.import_module(name)
