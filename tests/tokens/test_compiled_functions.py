"""Compiled functions where their cache cannot be written or read, and that all of them are made
in one place.
"""

import ast
import errno
import logging
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import caching

from lmsmith.data.prepare import dedup
from lmsmith.tokens import compiled as machine
from lmsmith.tokens.compiled import kernel

PROJECT = Path(__file__).resolve().parent.parent.parent


def _one(x: int) -> int:
    return x + 1


def _two(x: int) -> int:
    return x + 2


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))


def start(caplog: pytest.LogCaptureFixture, prepare: Any = lambda cache: None) -> list[str]:
    """What a process says that compiles or loads two functions and calls them. `prepare`: of
    their caches.
    """
    caplog.clear()
    machine._say_once.cache_clear()
    one, two = kernel(_one), kernel(_two)
    for made in (one, two):
        prepare(made.dispatcher._cache)
    with caplog.at_level(logging.WARNING):
        assert (one(1), two(1), one(2)) == (2, 3, 3)
    return [record.getMessage() for record in caplog.records]


def test_without_a_folder_for_the_cache_one_warning_is_all(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    dedup._compiled.cache_clear()
    try:
        (said,) = start(caplog)
        hashes = np.array([[1, 3], [5, 7], [1, 3]], dtype=np.uint64)
        assert dedup.Seen().are_new(hashes).tolist() == [True, True, False]
        assert len(caplog.records) == 1
    finally:
        dedup._compiled.cache_clear()
    assert "at every start" in said
    assert "Set NUMBA_CACHE_DIR to a writable folder" in said


def test_a_cache_that_cannot_be_written_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    def full(key: Any, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "there")

    compiling, said = start(caplog, lambda cache: setattr(cache._cache_file, "save", full))
    assert "cached on disk for later starts" in compiling
    assert "cannot save compiled code to disk" in said
    assert "(No space left on device: there)" in said
    assert len(start(caplog)) == 1  # there is room again: compiled again, and kept
    assert start(caplog) == []


def test_a_damaged_cache_is_made_anew(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    start(caplog)
    for ending in ("nbi", "nbc"):
        places = list(tmp_path.rglob(f"{Path(__file__).stem}._*.{ending}"))
        assert len(places) == 2
        for place in places:
            place.write_bytes(place.read_bytes()[:20])
        start(caplog)
        assert start(caplog) == []


def test_nobody_else_asks_numba_for_a_cache() -> None:
    for path in sorted((PROJECT / "lmsmith").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if path == Path(machine.__file__) or "numba" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and "jit" in ast.unparse(node.func):
                assert "cache" not in {word.arg for word in node.keywords}, path
