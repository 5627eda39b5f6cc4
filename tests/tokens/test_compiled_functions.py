"""Compiled functions with a cache that cannot be written or read; only `kernel` uses Numba's
cache.
"""

import ast
import errno
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import caching

from lmsmith.data.prepare import dedup
from lmsmith.tokens import compiled
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
    """The messages logged when a new process compiles or loads two functions and calls them.

    `prepare` is called with the cache of each function first.
    """
    caplog.clear()
    compiled._warn_once.cache_clear()
    one, two = kernel(_one), kernel(_two)
    for function in (one, two):
        prepare(function.dispatcher._cache)
    with caplog.at_level(logging.WARNING):
        assert (one(1), two(1), one(2)) == (2, 3, 3)
    return [record.getMessage() for record in caplog.records]


def test_no_folder_for_the_cache_gives_one_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    dedup._compiled.cache_clear()
    try:
        (warning,) = start(caplog)
        hashes = np.array([[1, 3], [5, 7], [1, 3]], dtype=np.uint64)
        assert dedup.Seen().are_new(hashes).tolist() == [True, True, False]
        assert len(caplog.records) == 1
    finally:
        dedup._compiled.cache_clear()
    assert "at every start" in warning
    assert "Set NUMBA_CACHE_DIR to a writable folder" in warning


def test_a_cache_that_cannot_be_written_is_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    def full(key: Any, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "there")

    compiling, not_saved = start(caplog, lambda cache: setattr(cache._cache_file, "save", full))
    assert "cached on disk for later starts" in compiling
    assert "cannot save compiled code to disk" in not_saved
    assert "(No space left on device: there)" in not_saved
    assert len(start(caplog)) == 1  # saving works again: compiles once more and saves
    assert start(caplog) == []


def test_a_damaged_cache_is_rebuilt(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    start(caplog)
    for ending in ("nbi", "nbc"):
        paths = list(tmp_path.rglob(f"{Path(__file__).stem}._*.{ending}"))
        assert len(paths) == 2
        for path in paths:
            path.write_bytes(path.read_bytes()[:20])
        start(caplog)
        assert start(caplog) == []


def _total(x: Any) -> Any:
    total = x[0] * 0
    for i in range(len(x)):
        total += x[i]
    return total


def test_two_processes_compile_for_different_types_at_the_same_time() -> None:
    """Both take the same file name for their machine code, and the later one wins. A third process
    would run code for float64 on int64, and get a denormal number without any error.
    """
    whole, halves = np.arange(4), np.arange(4) / 2
    one, other = kernel(_total), kernel(_total)
    file = one.dispatcher._cache._cache_file
    save = file._save_data

    def save_after_the_other(name: str, data: Any) -> None:
        Path(file._index_path).unlink()  # the other has read the index before this one wrote it
        assert other(whole) == 6
        save(name, data)

    file._save_data = save_after_the_other
    assert one(halves) == 3
    for _ in range(2):
        third = kernel(_total)
        assert (third(whole), third(halves)) == (6, 3)
    assert third.dispatcher.stats.cache_hits.total() == 2  # both are on disk now


def test_only_kernel_uses_numbas_cache() -> None:
    for path in sorted((PROJECT / "lmsmith").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if path == Path(compiled.__file__) or "numba" not in source:
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and "jit" in ast.unparse(node.func):
                assert "cache" not in {keyword.arg for keyword in node.keywords}, path


def test_loading_from_the_cache_does_not_prepare_for_compiling(tmp_path: Path) -> None:
    """A start with a warm cache does not import the parts of Numba that only compiling needs."""
    (tmp_path / "one.py").write_text(
        "from lmsmith.tokens.compiled import kernel\n@kernel\ndef one(x):\n    return x + 1\n"
    )
    code = "import sys, one; print(one.one(1), 'numba.np.linalg' in sys.modules)"
    paths = os.pathsep.join([str(tmp_path), str(PROJECT)])
    environment = {**os.environ, "PYTHONPATH": paths, "NUMBA_CACHE_DIR": str(tmp_path)}
    written = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(2)
    ]
    assert written == ["2 True\n", "2 False\n"]


def test_python_calls_no_inner_function() -> None:
    """Such a call would crash: these functions have no entry point for Python."""
    n_inner = 0
    for path in sorted((PROJECT / "lmsmith").rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if "@inner" not in source:
            continue
        functions = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)]
        decorators = {f.name: " ".join(map(ast.unparse, f.decorator_list)) for f in functions}
        inner = {name for name, how in decorators.items() if how in ("inner", "_inlined")}
        n_inner += len(inner)
        for function in functions:
            if any(
                word in decorators[function.name]
                for word in ("inner", "_inlined", "kernel", "overload")
            ):
                continue
            called = {ast.unparse(n.func) for n in ast.walk(function) if isinstance(n, ast.Call)}
            assert not called & inner, f"{path.name}: {function.name}"
    assert n_inner > 30


def test_a_change_of_a_compiled_function_in_another_file_is_seen(tmp_path: Path) -> None:
    """Numba would run the old code: it looks at the file of the kernel alone."""
    (tmp_path / "kernels.py").write_text(
        "from lmsmith.tokens.compiled import kernel\nfrom parts import part\n"
        "@kernel\ndef whole(x):\n    return part(x)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(PROJECT)])
    environment = {**os.environ, "PYTHONPATH": paths, "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    for n in (1, 22):
        source = f"import numba\n@numba.njit\ndef part(x):\n    return x + {n}\n"
        (tmp_path / "parts.py").write_text(source)
        written = subprocess.run(
            [sys.executable, "-c", "import kernels; print(kernels.whole(100))"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert written == f"{100 + n}\n"
