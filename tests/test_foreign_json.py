"""JSON beyond the limits gives an error of one sentence, wherever it is read."""

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
def test_json_within_the_limits_is_read_as_python_reads_it(text: str, tmp_path: Path) -> None:
    assert parse(text) == parse(text.encode()) == json.loads(text)
    (tmp_path / "file").write_text(text)
    assert read(tmp_path / "file") == json.loads(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (nested(DEEPEST + 1), "nested more than 100 levels deep"),
        (nested(900), "nested more than 100 levels deep"),
        (nested(100_000), "nested more than 100 levels deep"),
        ("[" * 100_000, "nested more than 100 levels deep"),
        ("[1" + "0" * 5000 + "]", "a number of more than 4,300 digits"),
        ("{", r"^it is not JSON \(Expecting property name"),
        ("", r"^it is not JSON \(Expecting value"),
        (b"\xff\xfe\xfd", r"^it is not JSON \(.* can't decode"),
    ],
)
def test_json_beyond_the_limits_is_a_value_error(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_a_file_that_is_too_large_is_not_opened(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(foreign_json, "LARGEST", 10)
    (tmp_path / "file").write_text("[1,2,3,4,5]")
    with pytest.raises(ValueError, match="it has 11 bytes, more than the limit of 10"):
        read(tmp_path / "file")


def test_long_values_are_truncated() -> None:
    assert shown({"a": "é"}) == '{"a": "é"}'
    assert shown("x" * 10_000) == '"' + "x" * 199 + "..."


def test_nothing_else_in_the_package_parses_json() -> None:
    """Except for files that this process or its children have just written, and lines of text,
    which have a limit.
    """
    own = {
        "foreign_json.py",
        "text/json_lines.py",
        "text/download.py",
        "train/log.py",
        "verify/resuming.py",
        "tokens/bench.py",
        "train/hooks/tasks.py",
        "interop/gguf_llama_cpp.py",
    }
    own |= {f"data/prepare/{name}.py" for name in ("assemble", "leaks", "encode", "unfinished")}
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if re.search(r"\bjson\.loads?\(", path.read_text(encoding="utf-8"))
    }
    assert found <= own
