"""`lmsmith verify`: every equivalence holds here, and an outcome says so only if it was measured."""

import json
import math
import sys
from pathlib import Path

import pytest
import torch

from lmsmith import __version__, verified
from lmsmith.cli import parse
from lmsmith.cli.console import Printer
from lmsmith.errors import UsageError
from lmsmith.verify import EQUIVALENCES, Skipped, equivalence, run
from lmsmith.verify.models import on, random_ids, small_model
from lmsmith.verify.registry import Equivalence, apart, relative, unequal

SLOW = {name for name, one in EQUIVALENCES.items() if one.full} | {"two ranks"}  # take seconds


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of the real ones: one that holds, one that is skipped, one that fails."""
    registry: dict[str, Equivalence] = {}
    for place in ("lmsmith.verify.registry", "lmsmith.verify"):
        monkeypatch.setattr(f"{place}.EQUIVALENCES", registry)

    def skipped() -> float:
        raise Skipped("tiktoken is not installed")

    equivalence("sum", "1 + 1; 2", bound=1e-9)(lambda: 1e-12)
    equivalence("ids", "ours; tiktoken's", bound=0.0)(skipped)
    equivalence("broken", "one; other", bound=0.0, full=True)(lambda: 1 / 0)


def verify(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    options = parse(["verify", *words])
    status = options.call(options, Printer(), 0.0)
    return status, capsys.readouterr().out


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in EQUIVALENCES]
)
def test_it_holds_here(name: str) -> None:
    (outcome,) = run([name])
    assert outcome.agrees, outcome
    assert not outcome.problem or outcome.skipped, outcome


@pytest.mark.usefixtures("three")
def test_one_line_each_and_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    status, out = verify(capsys)
    assert status == 0
    first, *lines = out.splitlines()
    assert first.endswith("their largest difference (bound):")
    assert lines[0].split() == ["ok", "sum", "1.0e-12", "(1e-09)", "1", "+", "1;", "2"]
    assert lines[1].split() == ["skip", "ids", "tiktoken", "is", "not", "installed"]
    assert lines[2] == "1 of 2 hold, 1 skipped, in 0 s."
    assert lines[3].startswith("Hash ")
    status, out = verify(capsys, "--full")
    assert status == 1
    assert "FAIL  broken               an error         one; other" in out
    assert "broken: ZeroDivisionError: division by zero\nEnded by an error: broken. If" in out
    assert "Above the bound" not in out
    equivalence("far", "one; other", bound=1e-9)(lambda: 1e-3)
    status, out = verify(capsys, "far")
    assert status == 1
    assert "FAIL  far                  1.0e-03 (1e-09)  one; other" in out
    assert "Above the bound: far. This is a bug" in out


@pytest.mark.usefixtures("three")
def test_json_and_the_hash(capsys: pytest.CaptureFixture[str]) -> None:
    first, again = (json.loads(verify(capsys, "--json")[1]) for _ in range(2))
    assert first["hash"] == again["hash"]
    assert [one["agrees"] for one in first["outcomes"]] == [True, True]
    assert first["machine"]["torch"]
    full = json.loads(verify(capsys, "--json", "--full")[1])
    assert full["hash"] != first["hash"]
    assert full["outcomes"][2]["difference"] is None


@pytest.mark.usefixtures("three")
def test_reports_find_the_latest_result_of_this_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert verified.latest(__version__) is None
    found = json.loads(verify(capsys, "--json")[1])
    kept = verified.latest(__version__)
    assert kept is not None
    assert kept["hash"] == found["hash"]
    assert verified.latest("0.0.0") is None
    verify(capsys, "sum")  # a part of them is no verification
    assert verified.latest(__version__) == kept
    verified.path().write_text("{", encoding="utf-8")
    assert verified.latest(__version__) is None


def test_an_unknown_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"no equivalence 'resum'\. Did you mean 'resume'"):
        verify(capsys, "resum")


def test_a_line_has_at_most_80_characters() -> None:
    assert max(len(one.name) for one in EQUIVALENCES.values()) <= 20
    assert max(len(one.what) for one in EQUIVALENCES.values()) <= 36
    assert all("; " in one.what for one in EQUIVALENCES.values())


def test_one_thread_unless_the_equivalence_is_about_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lmsmith.verify.registry.EQUIVALENCES", {})
    before, used = torch.get_num_threads(), list[int]()
    for name, every in (("tiny", False), ("threads", True)):
        measure = equivalence(name, "one; other", bound=9, all_threads=every)
        measure(lambda: used.append(torch.get_num_threads()) or 0.0)
    try:
        torch.set_num_threads(3)
        assert [outcome.agrees for outcome in run(["tiny", "threads"])] == [True, True]
        assert (used, torch.get_num_threads()) == ([1, 3], 3)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("error", ["ImportError('needs torch 9')", "RuntimeError('old libfoo')"])
def test_a_broken_package_says_nothing_about_ours(
    error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiktoken.py").write_text(f"raise {error}")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tiktoken", raising=False)
    (outcome,) = run(["tiktoken"])
    assert outcome.skipped
    assert outcome.problem.startswith("tiktoken cannot be imported (")
    assert error.split("'")[1] in outcome.problem


def test_bounds_on_cuda() -> None:
    """Sums there are in another order, so no bound is below the CPU's."""
    bounds = {
        one.name: (one.bound, one.cuda) for one in EQUIVALENCES.values() if one.cuda is not None
    }
    assert len(bounds) >= 10
    assert all(cpu <= cuda <= 1e-7 for cpu, cuda in bounds.values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_cuda_device(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="no CUDA device"):
        verify(capsys, "--device", "cuda", "norms")


def test_the_device_of_models_and_ids() -> None:
    with on("meta"):
        assert small_model("gpt2").device.type == random_ids(3).device.type == "meta"
    assert small_model("gpt2").device.type == "cpu"


def test_differences() -> None:
    assert apart([1.0, math.inf], [1.5, math.inf]) == 0.5
    assert math.isnan(apart([1.0, math.nan], [1.0, 2.0]))
    assert apart([1.0], [1.0, 2.0]) == math.inf
    assert relative([2.0, 0.0], [4.0, 0.0]) == 0.5
    assert (unequal([1], [1]), unequal([1], [2])) == (0.0, math.inf)
