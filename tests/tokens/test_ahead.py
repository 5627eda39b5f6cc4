"""Functions that another process compiles."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lmsmith.tokens import ahead

PROJECT = Path(__file__).resolve().parent.parent.parent


class Kernel:
    def __init__(self, on_disk: bool) -> None:
        self.on_disk = on_disk
        self.before_compiling: Any = None

    def is_on_disk(self) -> bool:
        return self.on_disk


class Process:
    """Ends at the third look."""

    started: ClassVar[list[list[str]]] = []

    def __init__(self, command: list[str], **_: Any) -> None:
        self.started.append(command[3:])
        self.looks = 0

    def poll(self) -> int | None:
        self.looks += 1
        return 0 if self.looks == 3 else None


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    monkeypatch.setattr(ahead, "_parts", {})
    monkeypatch.setattr(ahead, "_processes", {})
    monkeypatch.setattr(ahead, "n_cores", lambda: 2)
    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(Process, "started", [])
    monkeypatch.delenv(ahead.HELPER, raising=False)
    return Process.started


def name_parts(seconds: dict[str, float], on_disk: str = "") -> dict[str, Kernel]:
    kernels = {name: Kernel(name in on_disk.split()) for name in seconds}
    for name, kernel in kernels.items():
        ahead.part(name, seconds[name], kernel)  # type: ignore[arg-type]
    return kernels


def test_parts_are_divided_among_processes_in_the_order_in_which_they_are_needed(
    started: list[list[str]],
) -> None:
    name_parts({"a": 2, "b": 1, "c": 3, "d": 2, "e": 9}, on_disk="e")
    ahead.begin("a", "b", "c", "d", "e")
    assert started == [["b", "c"], ["a", "d"]]
    ahead.begin("a", "e")
    assert len(started) == 2


def test_parts_that_are_needed_later_come_last(started: list[list[str]]) -> None:
    name_parts({"a": 1, "b": 2, "c": 9})
    ahead.begin("a", "b", later=["c"])
    assert started == [["b"], ["a", "c"]]


def test_a_function_waits_for_its_part_only(started: list[list[str]]) -> None:
    kernels = name_parts({"a": 1, "b": 1})
    ahead.begin("a")
    kernels["b"].before_compiling()  # no process compiles it
    assert ahead._processes["a"].looks == 0  # type: ignore[attr-defined]
    kernels["a"].before_compiling()
    assert ahead._processes["a"].looks == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize("reason", ["one core", "a helper", "no processes"])
def test_without_other_processes_this_one_compiles(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError

    kernels = name_parts({"a": 1})
    if reason == "one core":
        monkeypatch.setattr(ahead, "n_cores", lambda: 1)
    elif reason == "a helper":
        monkeypatch.setenv(ahead.HELPER, "1")
    else:
        monkeypatch.setattr(subprocess, "Popen", fail)
    ahead.begin("a")
    assert not started
    kernels["a"].before_compiling()


@pytest.mark.slow
def test_another_process_compiles_what_learning_needs(tmp_path: Path) -> None:
    """Then this process needs nothing of Numba's compiler."""
    code = (
        "import sys; from lmsmith.tokens.bpe_train import learn_bpe\n"
        "tokenizer = learn_bpe(['ab ab ab'], 258); ids = tokenizer.encode('ab').tolist()\n"
        "print(ids, 'numba.np.linalg' in sys.modules)"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if name != ahead.HELPER},
        **{"PYTHONPATH": str(PROJECT), "NUMBA_CACHE_DIR": str(tmp_path)},
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[256] False\n"
