"""JSON beyond the limits ends in one sentence, wherever it is read."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lmsmith import foreign_json
from lmsmith.foreign_json import DEEPEST, parse, read, shown

PACKAGE = Path(foreign_json.__file__).parent


def nested(depth: int) -> str:
    return '{"a": [' * (depth // 2) + "[" * (depth % 2) + "]" * (depth % 2) + "]}" * (depth // 2)


@pytest.mark.parametrize(
    "text", ["null", "1", '"a"', "[]", '{"a": [1, {"b": null}], "c": -1.5e3}', nested(DEEPEST)]
)
def test_what_is_within_the_limits_is_read_as_python_reads_it(text: str, tmp_path: Path) -> None:
    assert parse(text) == parse(text.encode()) == json.loads(text)
    (tmp_path / "file").write_text(text)
    assert read(tmp_path / "file") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (nested(DEEPEST + 1), "nested more than 100 deep"),
        (nested(900), "nested more than 100 deep"),
        (nested(100_000), "nested more than 100 deep"),
        ("[" * 100_000, "nested more than 100 deep"),
        ("[1" + "0" * 5000 + "]", "a number of more than 4,300 digits"),
        ("{", r"^it is not JSON \(Expecting property name"),
        ("", r"^it is not JSON \(Expecting value"),
        (b"\xff\xfe\xfd", r"^it is not JSON \(.* can't decode"),
    ],
)
def test_what_is_beyond_them_is_a_value_error(text: str | bytes, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        parse(text)


def test_a_file_too_large_is_not_opened(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(foreign_json, "LARGEST", 10)
    (tmp_path / "file").write_text("[1,2,3,4,5]")
    with pytest.raises(ValueError, match="it has 11 bytes, and at most 10 are read"):
        read(tmp_path / "file")


def test_values_are_shown_short() -> None:
    assert shown({"a": "é"}) == '{"a": "é"}'
    assert shown("x" * 10_000) == '"' + "x" * 199 + "..."


def test_nothing_else_in_the_package_parses_json() -> None:
    """But what this process, or one that it started, has just written itself; and lines of text,
    within a limit.
    """
    own = {
        "foreign_json.py",
        "text/json_lines.py",
        "text/download.py",
        "train/log.py",
        "tokens/bench.py",
    }
    own |= {f"data/prepare/{name}.py" for name in ("assemble", "leaks", "encode", "unfinished")}
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\bjson\.loads?\(", path.read_text(encoding="utf-8"))
    }
    assert found <= own
