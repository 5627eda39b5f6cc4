"""The choice of matrix product library: it follows the measurement, and the process is left as it
was.
"""

from collections.abc import Callable, Iterator

import pytest
import torch

from lmsmith.machine import products as measure

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def precision_restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(measure, "SHAPE", (64, 16, 48))  # takes milliseconds instead of a second
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def seconds_by_precision(monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]]) -> None:
    """Replaces timing: returns the given seconds in order, for the current precision."""

    def timed(work: Callable[[], object], device: torch.device, n: int = 5) -> float:
        work()
        return seconds[torch.get_float32_matmul_precision()].pop(0)

    monkeypatch.setattr(measure, "_least_seconds", timed)


def test_the_faster_library_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds_by_precision(monkeypatch, {"highest": [3.0, 2.6], "medium": [2.0, 9.0]})
    assert measure.choose_matmul() == (
        "onednn",
        "oneDNN is 1.30 times as fast here, in float32",
    )


def test_a_small_gain_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds_by_precision(monkeypatch, {"highest": [2.08, 2.08], "medium": [2.0, 2.0]})
    assert measure.choose_matmul() == ("default", "oneDNN is no faster here (1.04 times)")


def test_a_library_that_rounds_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds_by_precision(monkeypatch, {"highest": [9.0, 9.0], "medium": [1.0, 1.0]})
    exact = torch.mm

    def rounding(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if torch.get_float32_matmul_precision() == "medium":
            return exact(a.bfloat16(), b.bfloat16()).float()
        return exact(a, b)

    monkeypatch.setattr(torch, "mm", rounding)
    assert measure.choose_matmul() == ("default", "oneDNN rounds to bfloat16 here")


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_choosing_does_not_change_the_process(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_float32_matmul_precision(precision)
    state = torch.random.get_rng_state()
    assert measure.choose_matmul()[0] in ("default", "onednn")
    assert torch.get_float32_matmul_precision() == precision
    assert torch.equal(torch.random.get_rng_state(), state)

    def broken(work: Callable[[], object], device: torch.device, n: int = 5) -> float:
        raise RuntimeError("no clock")

    monkeypatch.setattr(measure, "_least_seconds", broken)
    with pytest.raises(RuntimeError, match="no clock"):
        measure.choose_matmul()
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.parametrize(("name", "precision"), [("default", "highest"), ("onednn", "medium")])
def test_use_matmul_sets_the_precision(name: str, precision: str) -> None:
    measure.use_matmul(name)
    assert torch.get_float32_matmul_precision() == precision


def test_the_rate_counts_two_operations_per_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_least_seconds", lambda work, device: 0.5)
    assert measure.matmul_rate(CPU) == 2 * 64 * 16 * 48 / 0.5
    monkeypatch.undo()
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert measure.matmul_rate(CPU, dtype) > 0


def test_the_minimum_excludes_the_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(
        [0.0, 100.0, 200.0, 203.0, 300.0, 301.0, 400.0, 409.0]
    )  # the first takes 100, then 3, 1 and 9
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    calls = []
    assert measure._least_seconds(lambda: calls.append(1), CPU, n=3) == 1.0
    assert len(calls) == 4
