"""Files read in parts: together, the parts give the texts of the full file."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from lmsmith.errors import DataError
from lmsmith.text import parts as parts_module
from lmsmith.text.files import WHOLE, Counts, Part, read_chunks
from lmsmith.text.parts import divide
from lmsmith.text.reading import read_texts


def texts_of(path: Path, parts: list[Part], **options) -> list[str]:
    return [
        text
        for part in parts
        for text, _ in read_texts(
            path, "text", "utf-8", "strict", Counts(), part, options.get("skip")
        )
    ]


LINES = some.lists(some.text(max_size=30), max_size=40)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=LINES,
    size=some.integers(1, 200),
    near=some.integers(1, 100),
    end=some.sampled_from(["\n", "\r\n"]),
)
def test_lines_in_parts(tmp_path, monkeypatch, texts, size, near, end):
    monkeypatch.setattr(parts_module, "NEAR", near)
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        "".join(json.dumps({"text": text}, ensure_ascii=False) + end for text in texts).encode(
            "utf-8", "replace"
        )
    )
    wanted = [json.loads(line)["text"] for line in path.read_bytes().decode().split(end)[:-1]]
    wanted = [text.replace("\r\n", "\n").replace("\r", "\n") for text in wanted]
    parts = divide(path, size, "text", "utf-8")
    assert texts_of(path, parts) == wanted
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    if path.stat().st_size > 40 * (size + near + 200):
        assert len(parts) > 3


def test_errors_name_the_line_of_the_file(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": f"line {i}"}) for i in range(1, 1001)]
    lines[700] = '{"other": 1}'
    path.write_text("\r\n".join(lines), newline="", encoding="utf-8")
    parts = divide(path, 1000, "text", "utf-8")
    assert len(parts) > 5
    with pytest.raises(DataError, match=r"a\.jsonl, line 701 has no field 'text'"):
        texts_of(path, parts)
    bad: list[str] = []
    found = texts_of(path, parts, skip=lambda error: bad.append(str(error)))
    assert found == [f"line {i}" for i in range(1, 1001) if i != 701]
    assert len(bad) == 1
    assert "line 701 has no field" in bad[0]
    path.write_bytes(path.read_bytes().replace(b"line 900", b"line \xff00"))
    with pytest.raises(DataError, match=r"byte 0xFF at offset (\d+), line 900 ") as caught:
        texts_of(path, parts, skip=lambda error: None)
    assert f"offset {path.read_bytes().index(255)}," in str(caught.value)


@pytest.mark.parametrize("size", [1, 5_000, 30_000, 10**9])
def test_row_groups(tmp_path, size):
    path = tmp_path / "a.parquet"
    wanted = [f"row {i}: " + "x" * (i % 100) for i in range(1, 2001)]
    table = pyarrow.table({"text": wanted, "score": [0.5] * 2000})
    pyarrow.parquet.write_table(table, path, row_group_size=300)
    parts = divide(path, size, "text", "utf-8")
    assert len(parts) == {1: 7, 5_000: 7, 30_000: 4, 10**9: 1}[size]
    assert texts_of(path, parts) == wanted
    sources = [
        source
        for part in parts
        for _, source in read_texts(path, "text", "utf-8", "strict", Counts(), part)
    ]
    assert sources == [f"{path}:{i}" for i in range(1, 2001)]


def test_a_damaged_row_group_and_a_bad_row_are_skipped(tmp_path):
    path = tmp_path / "a.parquet"
    rows = [f"row {i} ".encode() * 50 for i in range(400)]
    rows[7] = b"caf\xe9"
    table = pyarrow.table({"text": pyarrow.array(rows, pyarrow.binary())})
    pyarrow.parquet.write_table(
        table, path, row_group_size=100, compression="zstd", use_dictionary=False
    )
    column = pyarrow.parquet.read_metadata(path).row_group(2).column(0)
    end = column.data_page_offset + column.total_compressed_size
    data = bytearray(path.read_bytes())
    data[end - 60 : end - 20] = bytes(40)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r":8 is not UTF-8"):
        texts_of(path, [WHOLE])
    bad: list[str] = []
    found = texts_of(path, [WHOLE], skip=lambda error: bad.append(str(error)))
    wanted = [i for i in range(400) if i != 7 and not 200 <= i < 300]
    assert found == [f"row {i} " * 50 for i in wanted]
    assert len(bad) == 2
    assert "cannot be read as Parquet" in bad[1]


def test_plain_text_is_divided_where_the_function_says(tmp_path):
    path = tmp_path / "a.txt"
    text = "\ufeff" + "one two three\r\nfour " * 2000
    path.write_text(text, encoding="utf-8", newline="")
    parts = divide(path, 5_000, "text", "utf-8", lambda data: data.find(b" ", 1))
    assert len(parts) > 5
    raw = path.read_bytes()
    assert all(raw[part.start : part.start + 1] == b" " for part in parts[1:])
    chunks = [list(read_chunks(path, "utf-8", "strict", Counts(), part)) for part in parts]
    assert "".join(map("".join, chunks)) == text[1:].replace("\r\n", "\n")
    assert divide(path, 5_000, "text", "utf-8") == [WHOLE]
    assert divide(path, 5_000, "text", "utf-8", lambda data: 0) == [Part(0, None)]


def test_files_that_cannot_be_divided(tmp_path):
    lines = b'{"text": "one"}\n' * 1000
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "b.jsonl").write_bytes(lines.decode().encode("utf-16"))
    (tmp_path / "c.jsonl").write_bytes(lines)
    assert divide(tmp_path / "a.jsonl.gz", 100, "text", "utf-8") == [WHOLE]
    assert divide(tmp_path / "b.jsonl", 100, "text", "utf-8") == [WHOLE]
    assert divide(tmp_path / "c.jsonl", 100, "text", "latin-1") == [WHOLE]
    with pytest.raises(DataError, match="cannot read"):
        divide(tmp_path / "d.jsonl", 100, "text", "utf-8")
