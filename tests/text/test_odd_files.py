"""Unusual files that are text (stray NULs, nested fields, long integers, large windows), and some
that are not.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lmsmith.data.prepare.build import build_shards
from lmsmith.errors import DataError
from lmsmith.text import zstd
from lmsmith.text.documents import Documents
from lmsmith.text.files import looks_binary


def texts(path: Path, **options: object) -> list[str]:
    return [document.text for document in Documents([path], **options)]  # type: ignore[arg-type]


@pytest.mark.parametrize("place", [0, 100, 8191, 9000])
def test_a_stray_nul_is_a_character_at_any_position(tmp_path: Path, place: int) -> None:
    path = tmp_path / "a.txt"
    text = ("word " * 2000)[:place] + "\0" + ("word " * 2000)[place:]
    path.write_text(text)
    documents = Documents([path])
    assert [document.text for document in documents] == [text]
    assert documents.notes() == ["1 NUL character kept in the text."]


def test_looks_binary() -> None:
    for text in ("hello", "A", "x" * 4000, "雪が降る。\n" * 900):
        for codec in ("utf-16-le", "utf-16-be"):
            assert looks_binary(text.encode(codec), "utf-8") == (b"\0" in text.encode(codec))
    assert looks_binary(b"\x89PNG" + b"x" * 5000 + b"\0", "utf-8")  # invalid UTF-8 and a NUL
    assert not looks_binary("é".encode() * 4096, "utf-8")
    assert not looks_binary(
        ("é" * 4095).encode() + b"\0" + "é".encode(), "utf-8"
    )  # the sample ends within a character


def test_files_without_text_do_not_count_for_the_split(tmp_path: Path) -> None:
    for number in range(60):
        (tmp_path / f"utf16-{number}.txt").write_bytes(f"number {number}".encode("utf-16-le"))
        (tmp_path / f"bad-{number}.txt").write_bytes(b"caf\xe9 %d" % number)
        (tmp_path / f"blank-{number}.txt").write_text(" " * (number + 1))
    for name in ("one", "two"):
        (tmp_path / f"{name}.txt").write_text(f"{name} is a text. " * 500)
    manifest = build_shards(
        [str(tmp_path)], tmp_path / "out", tokenizer="byte", skip_bad=True, workers=1
    )
    assert (
        manifest.splits["val"].n_documents == manifest.splits["train"].n_documents == 2
    )  # the tail of each
    share = manifest.splits["val"].n_bytes / (
        manifest.splits["train"].n_bytes + manifest.splits["val"].n_bytes
    )
    assert share == pytest.approx(0.1, abs=0.001)


def test_a_field_within_a_field(tmp_path: Path) -> None:
    rows = [{"meta": {"text": "one", "k": {"t": "x"}}, "a.b": "p"}, {"meta": None, "a.b": "q"}]
    lines, parquet = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), parquet)
    for path in (lines, parquet):
        assert texts(path, text_field="meta.text") == ["one"]
        assert texts(path, text_field="meta.k.t") == ["x"]
        assert texts(path, text_field="a.b") == ["p", "q"]
        with pytest.raises(DataError, match=r"`--data\.text_field meta\.text`"):
            texts(path)
        with pytest.raises(DataError, match=r"'meta\.other'"):
            texts(path, text_field="meta.other")
    lines.write_text('{"text": "flat", "meta": {"text": "deep"}, "meta.text": "named so"}\n')
    assert texts(lines, text_field="meta.text") == ["named so"]


def test_integers_of_any_length(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"n": ' + "9" * 5000 + ', "text": "a"}\n{"n": [-' + "1" * 9000 + '], "text": "b"}\n'
    )
    assert texts(path) == ["a", "b"]


@pytest.mark.parametrize(("log", "window"), [(27, 1 << 27), (28, 1 << 28), (31, 1 << 31)])
def test_window_sizes_of_zstd(tmp_path: Path, log: int, window: int) -> None:
    # RFC 8878: magic, a descriptor of 0 (no content size, a window follows), exponent << 3 |
    # mantissa; an empty block.
    frame = zstd.MAGIC + bytes([0, (log - 10) << 3]) + bytes([1, 0, 0])
    assert zstd.window_of(frame) == window
    path = tmp_path / "a.txt.zst"
    path.write_bytes(frame)
    try:
        import zstandard  # noqa: F401
    except ImportError:
        if log > 27:
            with pytest.raises(
                DataError, match=rf"{window >> 20:,} MiB is more than the 128 MiB .*lmsmith\[zstd\]"
            ):
                texts(path)
            return
    with pytest.raises(DataError, match="there is no text"):
        texts(path)
    path.write_bytes(frame[:-1])
    with pytest.raises(DataError, match="truncated or damaged"):
        texts(path)


def test_large_windows_are_read(tmp_path: Path) -> None:
    library = pytest.importorskip("zstandard")
    parameters = library.ZstdCompressionParameters(
        window_log=28, enable_ldm=True, write_content_size=0
    )
    text = "".join(f"line {n}\n" for n in range(50_000))
    compressor = library.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(text.encode()) + compressor.flush()
    assert zstd.window_of(data) == 1 << 28
    path = tmp_path / "a.txt.zst"
    path.write_bytes(data + data)
    assert texts(path) == [text + text]
    path.write_bytes(data + data[:-9])
    with pytest.raises(DataError, match="truncated or damaged"):
        texts(path)


def test_token_files_of_other_programs_are_refused_with_an_explanation(tmp_path: Path) -> None:
    ids = np.arange(3000, dtype=np.uint16)
    ids.tofile(tmp_path / "train.bin")
    np.save(tmp_path / "part.npy", ids)
    for source in (tmp_path / "train.bin", tmp_path / "part.npy", tmp_path):
        with pytest.raises(DataError, match=r"token ids without llm\.c's header") as caught:
            texts(source)
        assert "utf-16" not in str(caught.value)


def test_skip_bad(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"other": 1}\n{"text": "b"}\n')
    (tmp_path / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match="`--skip-bad` skips bad files"):
        texts(tmp_path, skip_bad=False)
    documents = Documents([tmp_path], skip_bad=True)
    assert [document.text for document in documents] == ["a", "b"]
    (note,) = documents.notes()
    assert note.startswith("2 bad items skipped: ")
    assert "a.jsonl, line 2 has no field 'text'" in note
    assert "b.txt is not UTF-8" in note
