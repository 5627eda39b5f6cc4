"""JSON without NaN and infinity; one function writes all of lmsmith's JSON."""

import ast
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmsmith.strict_json import finite, to_json, write_json

PROJECT = Path(__file__).resolve().parent.parent

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def strictly(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@settings(max_examples=60, deadline=None)
@given(anything)
def test_finite_values_round_trip_and_others_become_null(value: Any) -> None:
    found = strictly(to_json(value))
    assert found == finite(value)
    try:
        plain = json.dumps(value, allow_nan=False)
    except ValueError:
        return
    assert to_json(value) == plain
    assert found == value


def test_nested_values(tmp_path: Path) -> None:
    value = {"a": [1.5, math.nan, (math.inf, {"b": -math.inf})], "é": 5e-324}
    wanted = {"a": [1.5, None, [None, {"b": None}]], "é": 5e-324}
    assert finite(value) == wanted
    write_json(tmp_path / "one", value)
    write_json(tmp_path / "two", value, ensure_ascii=False)
    assert [strictly((tmp_path / name).read_text(encoding="utf-8")) for name in ("one", "two")] == [
        wanted
    ] * 2
    assert "é" in (tmp_path / "two").read_text(encoding="utf-8")
    with pytest.raises(TypeError):
        to_json({"path": Path()})


def test_no_other_module_writes_json() -> None:
    """The exceptions quote a value in an error message."""
    quoting = {
        PROJECT / "lmsmith" / "foreign_json.py",
        PROJECT / "lmsmith" / "interop" / "mapping.py",
        PROJECT / "lmsmith" / "serve" / "fields.py",
        PROJECT / "lmsmith" / "text" / "files.py",
        PROJECT / "lmsmith" / "interop" / "gguf_llama_cpp.py",  # asks a server on this machine
        PROJECT / "lmsmith" / "text" / "json_lines.py",
    }
    for path in (PROJECT / "lmsmith").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if path.name == "strict_json.py" or path in quoting or "json.dump" not in source:
            continue
        called = [
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(source))
            if isinstance(node, ast.Call)
        ]
        assert not {"json.dump", "json.dumps"} & set(called), path
