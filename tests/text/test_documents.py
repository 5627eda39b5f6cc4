"""Reading text, compared with Python's own codecs, gzip, json and files written by pyarrow."""

import codecs
import gzip
import io
import json
import os
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmsmith.errors import ConfigError, DataError
from lmsmith.text import files, parquet
from lmsmith.text.documents import Document, Documents
from lmsmith.text.files import Counts, Part
from lmsmith.text.held_out import split_documents

# Any text that can be in a file, except NUL, which marks binary files.
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
PIECES = st.sampled_from(["\r\n", "\r", "\n", "\ufeff", "\ufffd", "é", "雪", "😀"])
LINES = st.lists(st.one_of(TEXT, PIECES)).map("".join)


def zstd(data: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def plain(data: bytes) -> bytes:
    return data


COMPRESSIONS = [("", plain), (".gz", gzip.compress), (".zst", zstd)]


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def texts(*sources: Path | str, **options) -> list[str]:
    return [document.text for document in Documents(sources, **options)]


def error(*sources: Path | str, **options) -> str:
    """The message of the DataError that reading raises: one line, of readable length."""
    with pytest.raises(DataError) as caught:
        list(Documents(sources, **options))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", ")", "?"))
    return message


# One file


@pytest.mark.parametrize(("suffix", "compress"), COMPRESSIONS)
@pytest.mark.parametrize("name", ["a.txt", "a.md", "README", "b.TXT", "b.html"])
def test_a_plain_file_is_one_document(tmp_path, name, suffix, compress):
    path = write(
        tmp_path / (name + suffix), compress("First line.\nSecond: é 雪\u2028😀\n".encode())
    )
    documents = Documents([path])
    assert list(documents) == [Document("First line.\nSecond: é 雪\u2028😀\n", str(path))]
    assert documents.counts.notes() == []
    assert documents.counts.n_bytes == len("First line.\nSecond: é 雪\u2028😀\n".encode())


CODECS = ["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le", "utf-32-be", "utf-7", "gb18030"]


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=LINES, codec=st.sampled_from(CODECS), chunk=st.integers(4, 9))
def test_encodings_are_read_as_python_reads_them(tmp_path, monkeypatch, text, codec, chunk):
    monkeypatch.setattr(files, "CHUNK", chunk)
    text = "x" + text  # marks have their own test, and an empty text is no document
    path = write(tmp_path / "a.txt", text.encode(codec))
    encoding = "auto" if codec in ("utf-8", "utf-8-sig", "utf-16", "utf-32") else codec
    documents = Documents([path], encoding=encoding)
    wanted = path.open(encoding=codec, newline=None).read()  # Python's universal newlines
    assert [document.text for document in documents] == [wanted]
    counts = documents.counts
    assert counts.n_bytes == len(wanted.encode())
    assert counts.n_characters == len(wanted)
    assert len(counts.crlf) == ("\r\n" in text)
    assert len(counts.cr) == ("\r" in text.replace("\r\n", ""))
    assert counts.marks.total() == (codec in ("utf-8-sig", "utf-16", "utf-32"))


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    parts=st.lists(
        st.one_of(
            st.binary(max_size=4), st.sampled_from(["é雪😀\ufffd\r\n".encode(), b"\xed\xa0\x80"])
        )
    ),
    encoding=st.sampled_from(["utf-8", "utf-16-le", "shift_jis", "cp1252", "ascii", "gb18030"]),
    chunk=st.integers(4, 9),
)
def test_invalid_bytes_are_located_and_counted_as_python_does(
    tmp_path, monkeypatch, parts, encoding, chunk
):
    monkeypatch.setattr(files, "CHUNK", chunk)
    data = b"xy" + b"".join(parts).replace(b"\0", b"")
    path = write(tmp_path / "a.txt", data)
    places = []

    def note(bad: UnicodeError) -> tuple[str, int]:
        assert isinstance(bad, UnicodeDecodeError)
        places.append(bad.start)
        return "\ufffd", bad.end

    codecs.register_error("test-note", note)
    wanted = data.decode(encoding, "test-note").replace("\r\n", "\n").replace("\r", "\n")
    documents = Documents([path], encoding=encoding, errors="replace")
    assert [document.text for document in documents] == [wanted]
    assert documents.counts.n_replaced == len(places)
    if places:
        before = data[: places[0]].decode(encoding)
        line = len(before.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
        message = error(path, encoding=encoding)
        assert (
            f"{path} is not {encoding.upper()}: byte 0x{data[places[0]]:02X} at offset "
            f"{places[0]}, " in message
        )
        assert f"line {line} (" in message


@pytest.mark.parametrize(("suffix", "compress"), COMPRESSIONS)
def test_invalid_bytes_name_file_offset_and_line(tmp_path, suffix, compress):
    data = b"one\r\ntwo\r\n" * 100_000 + b"caf\xe9\n"
    path = write(tmp_path / f"a.txt{suffix}", compress(data))
    message = error(path)
    assert f"{path} is not UTF-8: byte 0xE9 at offset 1000003" in message
    assert "line 200001 " in message
    assert ("after decompression" in message) == bool(suffix)
    assert "`--data.errors replace` replaces it" in message
    assert "`--data.encoding latin-1`" in message
    documents = Documents([path], errors="replace")
    assert next(iter(documents)).text.endswith("two\ncaf\ufffd\n")
    assert documents.counts.notes()[0] == "1 invalid byte sequence replaced with U+FFFD."
    assert texts(path, encoding="latin-1")[0].endswith("café\n")


def test_a_truncated_character_at_the_end_is_an_error(tmp_path):
    path = write(tmp_path / "a.txt", b"snow \xe9\x9b")
    assert "byte 0xE9 at offset 5, line 1 " in error(path)
    assert texts(path, errors="replace") == [b"snow \xe9\x9b".decode(errors="replace")]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("asked", ["auto", "utf-8", "latin-1", "utf-16", "utf-32-be"])
def test_a_byte_order_mark_is_removed_and_overrides_the_encoding(tmp_path, encoding, asked):
    path = write(tmp_path / "a.txt", "\ufeffSnøw \ufeff雪".encode(encoding))
    documents = Documents([path], encoding=asked)
    assert [document.text for document in documents] == [
        "Snøw \ufeff雪"
    ]  # the second one is not a mark
    assert documents.counts.notes() == [
        f"1 file began with a byte-order mark ({encoding.upper()}); it was removed."
    ]


def test_an_unknown_encoding_is_a_config_error(tmp_path):
    path = write(tmp_path / "a.txt", "text")
    with pytest.raises(ConfigError, match=r"data.encoding = 'latin_one'.*Did you mean 'latin'"):
        Documents([path], encoding="latin_one")
    for name in ("hex", "rot13", "", "u\0", "no such thing"):
        with pytest.raises(ConfigError, match="is not a text encoding of Python"):
            Documents([path], encoding=name)


@pytest.mark.parametrize(("suffix", "compress"), COMPRESSIONS[1:])
def test_several_compressed_members_are_one_text(tmp_path, suffix, compress):
    path = write(tmp_path / f"a.txt{suffix}", compress(b"one ") + compress(b"two"))
    assert texts(path) == ["one two"]


@pytest.mark.parametrize(("suffix", "compress"), COMPRESSIONS[1:])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_truncated_or_damaged_compressed_files(tmp_path, suffix, compress, kind):
    path = tmp_path / f"a.{kind}{suffix}"
    data = compress(json.dumps({"text": os.urandom(5000).hex()}).encode())
    for damaged in (data[:-9], data[: len(data) // 2], b"this is not compressed", data + b"x"):
        write(path, damaged)
        message = error(path)
        assert f"{path} cannot be decompressed: " in message
        assert "truncated or damaged" in message


def test_binary_files(tmp_path):
    picture = write(tmp_path / "folder" / "picture.png", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    wrong = write(tmp_path / "folder" / "wrong.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
    for path in (picture, wrong, write(tmp_path / "bad.jsonl", b'{"text": "\0\0"}')):
        message = error(path)
        assert f"{path} looks binary (NUL byte at offset " in message
        assert "`--data.encoding utf-16-le`" in message
    assert "1 file, apparently binary" in error(tmp_path / "folder")
    write(tmp_path / "folder" / "right.txt", "text")
    for source in (tmp_path / "folder", tmp_path / "folder" / "*.txt"):
        documents = Documents([source])
        assert [document.text for document in documents] == ["text"]
        assert "1 binary file skipped." in documents.counts.notes()
        assert documents.counts.n_files == 1
    assert "looks binary" in error(
        tmp_path / "folder", wrong
    )  # named explicitly, so it is not skipped
    utf_16 = write(tmp_path / "utf-16.txt", "text".encode("utf-16-be"))
    assert "looks binary" in error(utf_16)
    assert texts(utf_16, encoding="UTF_16_BE") == ["text"]
    for name in ("a.txt.bz2", "a.tar.gz"):
        data = b"BZh91AY&SY\0\0" if name.endswith("bz2") else gzip.compress(b"a.txt\0\0\0")
        assert error(write(tmp_path / name, data)).endswith(
            "expected text. Unpack it first: .gz and .zst are the only compressed formats that can be read."
        )


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_file_with_one_array(tmp_path, indent):
    path = write(tmp_path / "a.json", json.dumps([{"text": "one"}, {"text": "two"}], indent=indent))
    assert error(path).endswith(
        "If the file is one array, `jq -c '.[]' FILE > LINES.jsonl` converts it to lines."
    )


# Files of many documents


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    records=st.lists(TEXT, min_size=1),
    ascii_only=st.booleans(),
    line_end=st.sampled_from(["\n", "\r\n"]),
    chunk=st.integers(4, 9),
)
def test_json_lines_round_trip(tmp_path, monkeypatch, records, ascii_only, line_end, chunk):
    monkeypatch.setattr(files, "CHUNK", chunk)
    lines = [json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only) for text in records]
    path = write(tmp_path / "a.jsonl", line_end.join(lines))
    wanted = [
        Document(text.replace("\r\n", "\n").replace("\r", "\n"), f"{path}:{number}")
        for number, text in enumerate(records, start=1)
        if text.strip()
    ]
    documents = Documents([path])
    if wanted:
        assert list(documents) == wanted
        assert documents.counts.n_empty == len(records) - len(wanted)
        assert documents.counts.n_bytes == sum(len(document.text.encode()) for document in wanted)
        # Line ends within texts count, those between lines do not.
        assert len(documents.counts.crlf) == any("\r\n" in text for text in records)
    else:
        assert "there is no text" in error(path)


@pytest.mark.parametrize(("suffix", "compress"), COMPRESSIONS)
@pytest.mark.parametrize("kind", ["jsonl", "ndjson", "json", "JSONL"])
def test_json_lines_with_all_suffixes_and_compressions(tmp_path, kind, suffix, compress):
    data = '\ufeff{"text": "a\u2028b"}\n\n  \r\n{"text": null}\n{"text": "c\\r\\nd"}'
    path = write(tmp_path / f"a.{kind}{suffix}", compress(data.encode("utf-16-le")))
    documents = Documents([path])
    assert list(documents) == [Document("a\u2028b", f"{path}:1"), Document("c\nd", f"{path}:5")]
    assert documents.counts.n_empty == 1
    assert len(documents.counts.crlf) == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"text": "a"', "line 2 is not JSON: Expecting ',' delimiter"),
        ("[" * 100_000, "line 2 is not JSON: it is nested too deeply"),
        (
            '{"text": ' + "1" * 5000 + "}",
            "line 2: the field 'text' contains a number, expected text",
        ),
        ('["a"]', "line 2 contains an array, expected an object with the field 'text'"),
        ("3", "line 2 contains a number, expected an object"),
        (
            '{"id": 3, "body": "a"}',
            "no field 'text'; it has 'id', 'body'. Set `--data.text_field body`",
        ),
        ('{"id": "0123", "body": "a long text", "url": "b"}', "`--data.text_field body`"),
        (
            '{"id": "01234567", "my body": ""}\n{"my body": "a long text"}\nno JSON',
            "`--data.text_field 'my body'`",
        ),
        ("{}", "line 2 has no field 'text'; it has nothing."),
        ('{"text": 3.5}', "line 2: the field 'text' contains a number, expected text"),
        ('{"text": ["a"]}', "line 2: the field 'text' contains an array, expected text"),
        (
            '{"text": "\\ud83d!"}',
            "a.jsonl, line 2 contains half a surrogate pair, U+D83D, at character 0 ",
        ),
        (b'{"text": "caf\xe9"}', "byte 0xE9 at offset 30, line 2 "),
    ],
)
def test_bad_json_lines(tmp_path, line, expected):
    if isinstance(line, str):
        line = line.encode()
    path = write(tmp_path / "a.jsonl", b'{"text": "good"}\n' + line + b"\n")
    message = error(path)
    assert expected in message
    assert str(path) in message
    assert len(message) < 500


def test_half_surrogate_pairs_are_replaced_and_counted(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "\\ud83d\\ude00 \\ud83d \\ude00"}')
    documents = Documents([path], errors="replace")
    assert [document.text for document in documents] == ["😀 \ufffd \ufffd"]
    assert documents.counts.n_replaced == 2


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.binary()])
@pytest.mark.parametrize(("suffix", "compress"), COMPRESSIONS)
def test_parquet(tmp_path, suffix, compress, kind):
    rows = [f"row {number} \r\n 雪" for number in range(2500)]
    rows[3:7] = ["", None, "\ufffd", " "]
    table = pyarrow.table({"id": range(2500), "body": pyarrow.array(rows, kind)})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer, row_group_size=1100)
    path = write(tmp_path / f"a.parquet{suffix}", compress(buffer.getvalue()))
    documents = Documents([path], text_field="body")
    wanted = [
        Document(row.replace("\r\n", "\n"), f"{path}:{number}")
        for number, row in enumerate(rows, start=1)
        if row and row.strip()
    ]
    assert list(documents) == wanted
    assert documents.counts.n_empty == 3
    assert len(documents.counts.crlf) == 1
    message = error(path)
    assert f"{path} has no column 'text'; it has 'id', 'body'." in message
    assert ("--data.text_field body" in message) == (kind != pyarrow.binary())
    assert "the column 'id' contains int64, expected strings" in error(path, text_field="id")


@pytest.mark.parametrize("n_rows", [24_000, 240])
def test_a_large_row_group_is_read_in_parts(tmp_path, n_rows, monkeypatch):
    """24 MB in one uncompressed row group, of short rows or long ones: pyarrow never holds a third
    of it, and no read of the file is longer than the buffer.
    """
    monkeypatch.setattr(parquet, "BUFFER", 1 << 20)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 1 << 20)
    rows = [f"{number:09} ".ljust(24_000_000 // n_rows, "x") for number in range(n_rows)]
    path = tmp_path / "a.parquet"
    plain = {"compression": "none", "use_dictionary": False, "write_batch_size": 4}
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), path, **plain)
    lengths, held, before = [0], [0], pyarrow.total_allocated_bytes()

    class Stream(io.FileIO):
        def read(self, size=-1):
            data = super().read(size)
            lengths.append(len(data))
            return data

    def found():
        arguments = "text", "strict", Counts(), Part(), None
        for text, _ in parquet.parquet_rows(Stream(path), path, *arguments):
            held.append(pyarrow.total_allocated_bytes() - before)
            yield text

    assert all(text == row for text, row in zip(found(), rows, strict=True))
    assert max(lengths) <= 3 << 20  # a buffer or a page
    assert max(held) < 8_000_000


def test_parquet_with_categories_and_with_invalid_bytes(tmp_path):
    pyarrow.parquet.write_table(
        pyarrow.table({"text": pyarrow.array(["a", "b", "a"]).dictionary_encode()}),
        tmp_path / "a.parquet",
    )
    assert texts(tmp_path / "a.parquet") == ["a", "b", "a"]
    bad = pyarrow.array([b"good", b"caf\xe9 \xef\xbf\xbd"]).view(pyarrow.string())
    path = tmp_path / "bad.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": bad}), path)
    assert f"{path}:2 is not UTF-8: byte 0xE9 at offset 3 of the row's text" in error(path)
    documents = Documents([path], errors="replace")
    assert [document.text for document in documents] == ["good", "caf\ufffd \ufffd"]
    assert documents.counts.n_replaced == 1


def test_invalid_parquet(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["some text"]}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    for damaged in (
        b"",
        b"plain text, and more of it than a few bytes",
        data[:-20],
        data[:40] + b"x" + data[41:-4],
    ):
        path = write(tmp_path / "bad.parquet", damaged)
        assert f"{path} cannot be read as Parquet: " in error(path)
    nested = pyarrow.table({"text": [{"a": "b"}], "list": [["a"]]})
    pyarrow.parquet.write_table(nested, path)
    assert "the column 'text' contains struct<a: string>, expected strings" in error(path)
    assert "the column 'list' contains list<" in error(path, text_field="list")


# Finding files


def test_folders_are_read_in_order_and_other_files_are_counted(tmp_path):
    folder = tmp_path / "folder"
    for name in [
        "b.txt",
        "a/z.md",
        "a.txt",
        "c/d/e.TXT.gz",
        ".hidden.txt",
        ".git/a.txt",
        "x.png",
        "y.PNG",
        "z",
        "s.json",
    ]:
        write(folder / name, gzip.compress(name.encode()) if name.endswith(".gz") else name)
    documents = Documents([folder])
    assert [document.text for document in documents] == ["a.txt", "a/z.md", "b.txt", "c/d/e.TXT.gz"]
    assert documents.counts.left_out == {".png": 2, "without suffix": 1, ".json": 1}
    assert len(documents.counts.notes()) == 1
    assert documents.counts.notes()[0].startswith(
        "4 files in folders skipped by suffix (2 .png, 1 "
    )
    # A file that is named or matched by a pattern is read, and not counted as excluded; no file is
    # read twice.
    documents = Documents([folder, folder / "z", folder / "*.p*g", folder / "a.txt"])
    assert sorted(texts(*documents.sources)) == [
        "a.txt",
        "a/z.md",
        "b.txt",
        "c/d/e.TXT.gz",
        "x.png",
        "z",
    ]
    assert documents.counts.left_out == {".png": 1, ".json": 1}


@pytest.mark.parametrize("source", [".", "**/*", "**", "*"])
def test_runs_and_prepared_folders_among_the_text_are_not_read(tmp_path, monkeypatch, source):
    """A run contains its held-out text."""
    for name in [
        "a.txt",
        "runs/notes.md",
        "runs/one/config.toml",
        "runs/one/tokens/corpus.json",
        "runs/one/tokens/validation.txt",
        "runs/two/config.toml",
        "runs/two/metrics.jsonl",
        "runs/two/samples.md",
        "shards/manifest.json",
        "shards/tokenizer.json",
        "shards/readme.txt",
        "tokens.partial/work/settings.json",
        "tokens.partial/work/summaries.jsonl",
        "mine/config.toml",
        "mine/b.txt",
    ]:
        write(tmp_path / name, "{}" if name.endswith("json") else name)
    monkeypatch.chdir(tmp_path)
    found = {path.as_posix() for path in Documents([source]).files}
    assert found - {"mine/config.toml"} == {"a.txt", "runs/notes.md", "mine/b.txt"}
    assert texts("runs/one/tokens/*.txt") == [
        "runs/one/tokens/validation.txt"
    ]  # an explicit name is accepted
    (tmp_path / "runs" / "notes.md").unlink()
    assert "it is empty, apart from hidden files and runs" in error("runs")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
@pytest.mark.parametrize("source", [".", "*"])
def test_a_pipe_in_a_folder_is_not_opened(tmp_path, source):
    write(tmp_path / "a.txt", b"text")
    os.mkfifo(tmp_path / "b.txt")
    documents = Documents([tmp_path / source])
    assert documents.files == [tmp_path / "a.txt"]
    assert [document.text for document in documents] == ["text"]
    assert documents.counts.left_out == {"pipe or device": 1}


def test_sources_are_read_in_the_order_given(tmp_path):
    b, a = write(tmp_path / "b.txt", "b"), write(tmp_path / "a.txt", "a")
    assert texts(b, a, b) == ["b", "a"]
    assert Documents([b, a]).files == [b, a]
    documents = Documents([b])
    assert list(documents) == list(documents)  # each iteration reads and counts again
    assert documents.counts.n_documents == 1


def test_patterns(tmp_path, monkeypatch):
    for name in [
        "a.txt",
        "b.txt",
        "b.html",
        "sub/c.txt",
        "sub/deep/d.txt",
        "sub/.hidden.txt",
        "odd[1].txt",
        "sub/e.py",
    ]:
        write(tmp_path / name, name)
    assert texts(tmp_path / "?.txt") == ["a.txt", "b.txt"]
    assert texts(tmp_path / "**" / "?.txt") == ["a.txt", "b.txt", "sub/c.txt", "sub/deep/d.txt"]
    assert texts(tmp_path / "**" / "*.html", tmp_path / "?.*") == ["b.html", "a.txt", "b.txt"]
    assert texts(tmp_path / "odd[1].txt") == [
        "odd[1].txt"
    ]  # an existing file is not taken as a pattern
    assert texts(tmp_path / "s*") == ["sub/c.txt", "sub/deep/d.txt"]
    assert Documents([tmp_path / "s*"]).counts.left_out == {".py": 1}
    assert len(texts(tmp_path / "**")) == 7
    monkeypatch.chdir(tmp_path)
    assert list(Documents(["s*/c.txt"])) == [Document("sub/c.txt", os.path.join("sub", "c.txt"))]
    message = error(tmp_path / "*.markdown")
    assert "*.markdown matches no text file; the folder " in message
    assert f"{tmp_path} contains a.txt, b.html, b.txt, odd[1].txt, sub." in message
    assert "Did you mean sub?" in error("sup/*.txt")


def test_links(tmp_path):
    write(tmp_path / "a" / "a.txt", "a")
    write(tmp_path / "b" / "b.txt", "b")
    try:
        (tmp_path / "a" / "circle").symlink_to(tmp_path / "a", target_is_directory=True)
        (tmp_path / "a" / "b").symlink_to(tmp_path / "b", target_is_directory=True)
        (tmp_path / "a" / "same.txt").symlink_to(tmp_path / "a" / "a.txt")
        (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    except OSError:
        pytest.skip("this system allows no links")
    assert texts(tmp_path / "a") == ["a", "b"]
    assert "gone.txt is a link to a missing file" in error(tmp_path / "gone.txt")
    assert "gone.txt: No such file" in error(tmp_path)


def test_missing_files_and_folders(tmp_path, monkeypatch):
    write(tmp_path / "books" / "moby_dick.txt", "Call me Ishmael.")
    assert f"Did you mean {tmp_path / 'books' / 'moby_dick.txt'}?" in error(
        tmp_path / "books" / "mobydick.txt"
    )
    message = error(tmp_path / "boks" / "moby_dick.txt")
    assert message.startswith(f"there is no file or folder {tmp_path / 'boks' / 'moby_dick.txt'}. ")
    assert f"Did you mean {tmp_path / 'books'}?" in message
    assert "Nothing in the folder " in error(tmp_path / "zzz")
    assert "moby_dick.txt is a file, not a folder" in error(
        tmp_path / "books" / "moby_dick.txt" / "a"
    )
    monkeypatch.chdir(tmp_path)
    assert "Did you mean books?" in error("book")
    (tmp_path / "empty" / "er").mkdir(parents=True)
    assert (
        "the folder empty contains no text: it is empty, apart from hidden files and runs; expected .txt"
        in error("empty")
    )
    write(tmp_path / "empty" / "a.png", "")
    write(tmp_path / "empty" / "er" / "b.png", "")
    assert "contains no text: it contains 2 .png; expected .txt" in error("empty")
    assert "no text was named" in error()
    assert "no text was named" in error("")


def test_only_empty_documents(tmp_path):
    empty = write(tmp_path / "a.txt", "")
    blank = write(tmp_path / "b.txt", "\ufeff \r\n")
    assert f"there is no text in {empty}: 1 document, empty or only white space" in error(empty)
    assert "2 documents, empty" in error(tmp_path)
    assert "the files contain no documents" in error(write(tmp_path / "c.jsonl", "\n"))
    for suffix, compress in COMPRESSIONS[1:]:
        assert "1 document, empty" in error(write(tmp_path / f"d.txt{suffix}", compress(b"")))
    documents = Documents([blank, write(tmp_path / "e.txt", "text")])
    assert [document.text for document in documents] == ["text"]
    assert "1 empty document skipped." in documents.counts.notes()


def test_no_permission(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "text")

    def refuse(*arguments: object, **options: object) -> None:  # chmod does not keep root out
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("builtins.open", refuse)
    assert f"no permission to read {path}" in error(path)
    monkeypatch.undo()
    monkeypatch.setattr("os.scandir", refuse)
    monkeypatch.setattr("os.listdir", refuse)
    assert "no permission to read " in error(tmp_path)
    assert f"cannot look for {tmp_path / 'b.txt'} in {tmp_path}: Permission denied" in error(
        tmp_path / "b.txt"
    )


# Real text and large text


def test_real_novels(test_data):
    paths = sorted((test_data / "novels").glob("*.txt"))
    documents = Documents([test_data / "novels"])
    for document, path in zip(documents, paths, strict=True):
        assert document.source == str(path)
        assert document.text == path.open(encoding="utf-8-sig", newline=None).read()
        assert document.n_bytes == len(document.text.encode())
    notes = documents.counts.notes()
    assert "27 files had CRLF line ends; they were read as LF." in notes
    assert "27 files began with a byte-order mark (UTF-8); it was removed." in notes
    assert documents.counts.n_documents == documents.counts.n_files == 27


def test_all_real_text_is_read(test_data):
    naughty = test_data / "naughty_strings" / "blns.txt"
    assert texts(naughty) == [naughty.open(encoding="utf-8", newline=None).read()]
    path = test_data / "tasks" / "lambada_openai.jsonl"
    wanted = [
        json.loads(line)["context"] for line in path.read_text(encoding="utf-8").split("\n") if line
    ]
    assert texts(path, text_field="context") == wanted
    assert texts(test_data / "multilingual") == [
        path.read_text(encoding="utf-8-sig")
        for path in sorted((test_data / "multilingual").iterdir())
    ]


@pytest.mark.parametrize("character", ["x", "é", "—"])  # 1, 1 and 2 bytes in Python's strings
def test_a_large_text_is_in_memory_at_most_twice(tmp_path, character):
    line = f"A line of text like any other {character}\r\n".encode()
    n_lines = 20_000_000 // len(line)
    path = write(tmp_path / "a.txt", line * n_lines)
    size = n_lines * (len(line.decode()) - 1) * (2 if character == "—" else 1)
    tracemalloc.start()
    try:
        split = split_documents(Documents([path]), 0.1)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(split.train[0]) + len(split.validation[0]) == n_lines * (len(line.decode()) - 1)
    assert held < 1.05 * size
    assert peak < 2.15 * size


def test_large_files_are_not_in_memory_together(tmp_path):
    for number in range(5):
        write(tmp_path / f"{number}.txt", b"A line of text like any other\n" * 100_000)
    tracemalloc.start()
    try:
        assert sum(document.n_bytes for document in Documents([tmp_path])) == 15_000_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3.3 * 3_000_000  # one that the loop still holds, one being read, and its parts
