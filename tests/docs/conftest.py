"""What pages need to run: `lmsmith` processes, and registries that forget what a page registers."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lmsmith.config import OPTIMIZERS, SCHEDULES
from lmsmith.config.presets import PRESETS

PROJECT = Path(__file__).resolve().parents[2]

# The fixtures of tests/cli, which start processes, under another name than this conftest has.
_spec = importlib.util.spec_from_file_location("processes", PROJECT / "tests/cli/conftest.py")
assert _spec is not None
assert _spec.loader is not None
_processes: Any = sys.modules.setdefault("processes", importlib.util.module_from_spec(_spec))
_spec.loader.exec_module(_processes)
lmsmith, _lmsmith = _processes.lmsmith, _processes._lmsmith


@pytest.fixture
def unchanged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Registries, and PyTorch's settings, are the same after the test."""
    for registry in (OPTIMIZERS, SCHEDULES, PRESETS):
        monkeypatch.setattr(registry, "known", dict(registry.known))
        monkeypatch.setattr(registry, "_owners", dict(registry._owners))
    n, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(n)
    torch.set_float32_matmul_precision(precision)
