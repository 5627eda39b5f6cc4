"""Link-time optimization of compiled functions, compared with Numba's own compiler."""

from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba.core import registry
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.errors import TypingError

from lmsmith.tokens import link_time
from lmsmith.tokens.compiled import inner, kernel


@inner
def _soft_maximum(x: Any) -> Any:
    """Uses memory of its own: Numba inserts calls that count references."""
    e = np.empty(len(x), x.dtype)
    total = x[0] * 0
    for i in range(len(x)):
        e[i] = np.exp(x[i]) / 3
        total += e[i] * x[i]
    return total


def _rows(x: Any, y: Any) -> None:
    y[0] = _soft_maximum(x[0])
    for row in numba.prange(1, len(x)):
        y[row] = _soft_maximum(x[row])


def _nonsense(x: Any) -> Any:
    return _soft_maximum(x) + "a"


def _length(x: Any) -> Any:
    return np.zeros(len(x), np.int8).size


@pytest.fixture
def emitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The functions for which LLVM generates machine code."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    names: list[str] = []
    finalize = JITCodeLibrary._finalize_specific

    def record(library: Any) -> None:
        names.append(library.name)
        finalize(library)

    monkeypatch.setattr(JITCodeLibrary, "_finalize_specific", record)
    return names


def results(function: Any) -> list[bytes]:
    """The bytes that the function writes for numbers in single and in double precision."""
    numbers = np.random.default_rng(1).standard_normal((5, 37))
    given: list[Any] = [numbers.astype(np.float32), numbers]
    found = [np.zeros(5, x.dtype) for x in given]
    for x, y in zip(given, found, strict=True):
        function(x, y)
    return [y.tobytes() for y in found]


def test_the_same_bits_from_one_piece_of_machine_code(emitted: list[str]) -> None:
    expected = results(numba.njit(parallel=True)(_rows))
    assert len(emitted) > 8
    emitted.clear()
    function = kernel(_rows, parallel=True)
    assert results(function) == expected
    assert emitted == ["_rows", "_rows"]  # one for each type


def test_numba_compiles_other_functions_as_before(emitted: list[str]) -> None:
    codegen = registry.cpu_target.target_context.codegen()
    with pytest.raises(TypingError):
        kernel(_nonsense)(np.ones(3))
    assert codegen._library_class is JITCodeLibrary
    assert kernel(_length)(np.ones(3)) == 3
    assert emitted == ["_length"]
    assert numba.njit(_length)(np.ones(3)) == 3
    assert len(emitted) == 3  # also `np.zeros`


@pytest.mark.parametrize("number", range(len(link_time.INTERNALS)))
def test_a_numba_without_the_internals_compiles_as_usual(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    assert link_time.compiler_class() is link_time.KernelCompiler
    owner, name = link_time.INTERNALS[number]
    monkeypatch.setattr(link_time, "INTERNALS", ((owner, name + "_of_old"),))
    assert link_time.compiler_class() is Compiler
    function = kernel(_length)
    assert function(np.ones(3)) == 3
