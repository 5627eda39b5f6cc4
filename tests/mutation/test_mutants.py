"""The tools of mutation testing, and a sample of mutants that the tests must detect."""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import core
import pytest
from equivalents import EQUIVALENTS
from mutants import mutants
from nearest import Reach, _statement, beside
from run import interval
from trial import _of_size

ROOT = Path(__file__).parents[2]
PARTS = ("loss", "optim", "batches", "step", "evaluate")  # parts without compiled functions
SEED = 49  # of the sample: mutants that the tests beside their files detect within seconds

SOURCE = '''
"""1 + 1."""
def f(a: int = 3, *, b=2.5):
    """2 + 2."""
    if a < b and not a == 1:
        raise ValueError(f"{a + 1}")
    a += min(a, b) // 2
    log.warning("a %d", a - 1)
    zip(a, b, strict=True)
    a.clear()
    return "x" + a, path / "y", a * b
'''


def test_mutants_of_a_source() -> None:
    changes = [(one.line, one.old, one.new) for one in mutants(SOURCE)]
    assert changes == [
        (3, "3", "4"),
        (3, "2.5", "5.0"),
        (5, "<", "<="),
        (5, "and", "or"),
        (5, "not a == 1", "a == 1"),
        (5, "==", "!="),
        (5, "1", "2"),
        (7, "a += min(a, b) // 2", "pass"),
        (7, "min", "max"),
        (7, "//", "*"),
        (7, "2", "3"),
        (9, "zip(a, b, strict=True)", "pass"),
        (10, "a.clear()", "pass"),
        (11, "*", "/"),
    ]


def test_every_mutant_of_the_core_is_python() -> None:
    for part in core.PARTS:
        file = core.files_of(part)[-1]
        source = (ROOT / file).read_text("utf-8")
        for one in list(core.changes(file))[::7]:
            changed = one.mutant.applied(source)
            assert changed != source
            ast.parse(changed)
            assert len(_of_size(changed, source).encode()) == len(source.encode())
            ast.parse(_of_size(changed, source))


def test_a_sample_stays_when_other_lines_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = core.sample(40, seed=3, parts=["loss"])
    source = (ROOT / "lmsmith/loss.py").read_text("utf-8")
    path = tmp_path / "lmsmith/loss.py"
    path.parent.mkdir()
    path.write_text(source.replace("\n\n\n", "\n\n\ndef added():\n    pass\n\n\n", 1), "utf-8")
    monkeypatch.setattr(core, "ROOT", tmp_path)
    after = core.sample(40, seed=3, parts=["loss"])
    assert [one.text for one in after] == [one.text for one in before]
    assert after[0].mutant.line == before[0].mutant.line + 4
    assert core.sample(40, seed=4, parts=["loss"]) != after


def test_parts_have_equal_shares() -> None:
    parts = ["loss", "checkpoint", "step"]
    found = core.sample(20, seed=1, parts=parts)
    counts = [sum(one.file in core.files_of(part) for one in found) for part in parts]
    assert counts == [7, 7, 6]


def test_known_equivalents_exist() -> None:
    """A changed line needs a new look."""
    found = {
        (one.file, one.text, one.mutant.old, one.mutant.new)
        for file in {file for file, *_ in EQUIVALENTS}
        for one in core.changes(file)
    }
    assert set(EQUIVALENTS) <= found


@pytest.mark.parametrize(("n_detected", "n"), [(0, 5), (70, 72), (72, 72)])
def test_the_interval_is_wilsons(n_detected: int, n: int) -> None:
    stats: Any = pytest.importorskip("scipy.stats")
    wanted = stats.binomtest(n_detected, n).proportion_ci(method="wilson")
    assert interval(n_detected, n) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_tests_that_reach_a_statement_come_first(tmp_path: Path) -> None:
    assert _statement(SOURCE, 5) == (5, 5)
    assert _statement("x = f(\n    1,\n    2,\n)\n", 3) == (1, 4)
    assert _statement("def f(x=1):\n    return x\n", 1) == (1, 2)  # the default runs on import
    change = next(core.changes("lmsmith/loss.py"))
    path = tmp_path / "reach.json"
    line = change.mutant.line
    path.write_text(
        f'{{"seconds": {{"slow": 2, "quick": 1, "other": 0}}, "tests": {{"lmsmith/loss.py": '
        f'{{"{line}": ["slow", "quick"], "{line + 50}": ["other"]}}}}}}'
    )
    reach = Reach([path])
    assert reach.tests(change) == ["quick", "slow"]
    assert reach.within(["quick", "slow"], 2.5) == ["quick"]
    assert beside("lmsmith/optim/muon.py")[0] == ["tests/optim/test_muon.py"]


@pytest.mark.slow
def test_a_sample_of_mutants_is_detected() -> None:
    parts = [word for part in PARTS for word in ("--part", part)]
    sample = ["--sample", str(len(PARTS)), "--seed", str(SEED)]
    done = subprocess.run(
        [sys.executable, "tests/mutation/run.py", *sample, *parts],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
