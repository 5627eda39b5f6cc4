"""Text that cannot be prepared: the error, what is skipped, and that nothing half-written
is left.
"""

import gzip
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from lmsmith.data.manifest import Manifest, read_manifest, write_manifest
from lmsmith.data.prepare import plan
from lmsmith.data.prepare.build import build_shards
from lmsmith.errors import ConfigError, DataError, LmsmithError, StorageError
from lmsmith.tokens.files import load_tokenizer, save_tokenizer
from lmsmith.tokens.tokenizer import CharTokenizer

GOOD = [f"good text number {i}" for i in range(80)]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda number: None)
    monkeypatch.setattr(plan, "OPENING", 0)
    monkeypatch.setattr(plan, "UNIT_BYTES", (500, 500))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of good files, to put a bad one in the middle of."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(GOOD):
        (folder / f"{'a' if i < 40 else 'z'}{i:02}.txt").write_text(text)
    return folder


def prepare(*sources: Path, **options) -> Manifest:
    settings = {"tokenizer": "byte", "validation_fraction": 0.2, "workers": 2}
    return build_shards(
        [str(source) for source in sources], sources[0].parent / "out", **{**settings, **options}
    )


def texts_of(folder: Path) -> list[str]:
    ids = [np.fromfile(path, "<u2", offset=1024) for path in sorted(folder.glob("*.bin"))]
    return load_tokenizer(folder).decode(np.concatenate(ids)[1:]).split("<|endoftext|>")


def write_parquet(path: Path, **columns) -> None:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)


LINES = "\n".join([json.dumps({"text": "one"}), '{"other": "two"}', json.dumps({"text": "three"})])

# A bad file, its error, and the good texts in it that `--skip-bad` keeps.
BAD = {
    "a field that is missing": (
        lambda path: path.with_suffix(".jsonl").write_text(LINES),
        r"m\.jsonl, line 2 has no field 'text'; it has 'other'. Set "
        r"`--data.text_field other`",
        ["one", "three"],
    ),
    "a line that is no JSON": (
        lambda path: path.with_suffix(".jsonl").write_text(LINES.replace('{"other"', '{"other')),
        r"m\.jsonl, line 2 is not JSON",
        ["one", "three"],
    ),
    "a column that is missing": (
        lambda path: write_parquet(path.with_suffix(".parquet"), body=["one"], n=[1]),
        r"m\.parquet has no column 'text'; it has 'body', 'n'. Set "
        r"`--data.text_field body`",
        [],
    ),
    "a column of numbers": (
        lambda path: write_parquet(path.with_suffix(".parquet"), text=[1]),
        r"m\.parquet: the column 'text' contains int64, expected strings",
        [],
    ),
    "no Parquet": (
        lambda path: path.with_suffix(".parquet").write_text("PAR1" + "text " * 1000),
        r"m\.parquet cannot be read as Parquet",
        [],
    ),
    "bytes that are no UTF-8": (
        lambda path: path.with_suffix(".txt").write_bytes(b"caf\xe9"),
        r"m\.txt is not UTF-8: byte 0xE9 at offset 3, line 1",
        [],
    ),
    "a damaged archive": (
        lambda path: path.with_suffix(".jsonl.gz").write_bytes(
            gzip.compress(os.urandom(9000))[:5000]
        ),
        r"m\.jsonl\.gz",
        [],
    ),
    "a link to nothing": (
        lambda path: path.with_suffix(".txt").symlink_to("nowhere.txt"),
        r"cannot read .*m\.txt: No such file",
        [],
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_file_among_good_ones(source, tmp_path, what):
    make, told, good = BAD[what]
    make(source / "m")
    with pytest.raises(DataError, match=told) as caught:
        prepare(source)
    assert str(caught.value).endswith(
        " `--skip-bad` skips bad files, lines and rows, and reports them."
    )
    assert not (tmp_path / "out").exists()
    manifest = prepare(source, skip_bad=True)  # resumes the earlier work
    assert sorted(texts_of(tmp_path / "out")) == sorted([*GOOD, *good])
    note = next(note for note in manifest.notes if "skipped" in note)
    assert note.startswith("1 bad item skipped: ")
    assert "m." in note


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything"
)
def test_a_file_without_read_permission(source, tmp_path):
    (source / "m.txt").write_text("secret")
    (source / "m.txt").chmod(0)
    with pytest.raises(DataError, match=r"no permission to read .*m\.txt"):
        prepare(source)
    prepare(source, skip_bad=True)
    assert sorted(texts_of(tmp_path / "out")) == sorted(GOOD)


def test_a_large_file_that_becomes_unreadable(source, tmp_path, monkeypatch):
    def lost(path, encoding):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(plan, "LARGE", 3000)
    monkeypatch.setattr(plan, "is_utf8", lost)
    (source / "m.txt").write_text("a large one. " * 300)
    with pytest.raises(DataError, match=r"cannot read .*m\.txt: Input/output error\. `--skip-bad`"):
        prepare(source)
    prepare(source, skip_bad=True)  # readable again for later reads
    assert len(texts_of(tmp_path / "out")) == len(GOOD) + 1


def test_a_named_binary_file(source, tmp_path):
    (tmp_path / "b.txt").write_bytes(b"bin\0ary")
    with pytest.raises(DataError, match=r"b\.txt looks binary"):
        prepare(source, tmp_path / "b.txt")
    prepare(source, tmp_path / "b.txt", skip_bad=True)
    assert sorted(texts_of(tmp_path / "out")) == sorted(GOOD)


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there names of files are Unicode")
def test_file_names_that_are_not_unicode(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for i, text in enumerate(GOOD):
        Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9%d.txt" % i)).write_text(text)
    manifest = prepare(folder)
    assert read_manifest(tmp_path / "out") == manifest
    assert manifest.sources[0].path == str(folder / "caf\udce90.txt")


def test_many_bad_lines_are_counted(source, tmp_path):
    (source / "m.jsonl").write_text("\n".join(["{}"] * 300))
    manifest = prepare(source, skip_bad=True)
    note = next(note for note in manifest.notes if "skipped" in note)
    assert note.startswith("300 bad items skipped: ")
    assert note.count("has no field") == 20


@pytest.mark.parametrize("tokenizer", ["byte", "char"])
def test_bad_bytes_in_the_middle_of_a_large_file(tmp_path, monkeypatch, tokenizer):
    """The rest of that piece is skipped, other pieces are not; also when a tokenizer is learned."""
    monkeypatch.setattr(plan, "LARGE", 3000)
    text = "".join(f"line {i} of the text. " for i in range(1000))
    data = bytearray(text.encode())
    data[9000] = 0xFF
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(
        DataError, match=r"a\.txt is not UTF-8: byte 0xFF at offset 9000.* `--skip-bad`"
    ):
        prepare(tmp_path / "a.txt", tokenizer=tokenizer)
    manifest = prepare(tmp_path / "a.txt", tokenizer=tokenizer, skip_bad=True)
    kept = "".join(texts_of(tmp_path / "out"))
    assert 0 < len(text) - len(kept) < 1600
    assert text.startswith(kept[:7000])
    assert text.endswith(kept[-8000:])
    assert any("byte 0xFF at offset 9000" in note for note in manifest.notes)


@pytest.mark.parametrize(
    ("options", "kind", "told"),
    [
        ({"shard_tokens": 0}, ConfigError, "shard_tokens = 0: expected 1 to 2,147,483,647"),
        ({"shard_tokens": 2**31}, ConfigError, "shard_tokens = 2,147,483,648"),
        ({"validation_fraction": 1.0}, ConfigError, "validation_fraction = 1.0: expected"),
        (
            {"tokenizer": "bites"},
            ConfigError,
            "tokenizer = 'bites': not a kind of tokenizer and not an existing folder",
        ),
        ({"tokenizer": "bpe:many"}, ConfigError, "tokenizer = 'bpe:many'"),
        ({"encoding": "klingon"}, ConfigError, "is not a text encoding of Python"),
        ({"validation_fraction": 1e-9}, DataError, "none of 80 documents is for validation"),
    ],
)
def test_wrong_settings(source, tmp_path, options, kind, told):
    with pytest.raises(kind) as caught:
        prepare(source, **options)
    assert told in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_without_an_end_of_text_token(source, tmp_path):
    save_tokenizer(CharTokenizer.learn(["abc"], False), tmp_path / "mine")
    with pytest.raises(ConfigError, match="has no end-of-text token"):
        prepare(source, tokenizer=str(tmp_path / "mine"))


def test_no_text(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    with pytest.raises(DataError, match="contains no text: it is empty"):
        prepare(folder)
    (folder / "a.txt").write_text(" \n")
    with pytest.raises(
        DataError, match=r"there is no text in the 1 file\. 1 empty document skipped\. Name"
    ):
        prepare(folder)
    other = tmp_path / "other" / "texts"
    other.mkdir(parents=True)
    (other / "b.jsonl").write_text("{}")
    with pytest.raises(
        DataError,
        match=r"there is no text in the 1 file\. 1 bad item skipped: .*b\.jsonl, line 1 has",
    ):
        prepare(other, skip_bad=True)
    with pytest.raises(DataError, match="there is no file or folder"):
        prepare(tmp_path / "nothing")


def test_an_output_folder_that_exists_or_cannot_be_made(source, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="already exists and is not overwritten"):
        prepare(source)
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        build_shards([str(source)], tmp_path / "file" / "out", tokenizer="byte")


def test_line_ends_are_noted_in_any_part_of_a_large_file(tmp_path, monkeypatch):
    """A file counts once, whether its first part has them, a later one, or several."""
    monkeypatch.setattr(plan, "LARGE", 3000)
    lines = [f"line {i} of the text" for i in range(1000)]
    head, tail = "\n".join(lines), "\r\n".join(lines)
    for name, text in (
        ("a", head + "\n" + tail),
        ("b", tail + "\n" + head),
        ("c", head + "\rold\r" + head),
        ("d", head),
    ):
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8", newline="")
    (tmp_path / "e.jsonl").write_text(
        "\n".join([*map(json.dumps, [{"text": "a"}] * 90), '{"text": "b\\r\\nc"}'])
    )
    manifest = prepare(
        *(tmp_path / name for name in ("a.txt", "b.txt", "c.txt", "d.txt", "e.jsonl"))
    )
    assert "3 files had CRLF line ends; they were read as LF." in manifest.notes
    assert "1 file had lone CR line ends; they were read as LF." in manifest.notes


def test_an_empty_split_of_large_files_is_refused_before_encoding(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "LARGE", 300)
    for i in range(60):
        (tmp_path / f"{i}.txt").write_text(f"{i} is a number. " * 30)
    with pytest.raises(
        DataError, match=r"none of 60 files is for validation at .* 1e-06: choose a larger one"
    ):
        prepare(tmp_path, validation_fraction=1e-6)
    assert not (tmp_path.parent / "out.partial").exists()
    with pytest.raises(
        DataError, match=r"none of 60 files is for training at .* 0\.999999: choose a smaller one"
    ):
        prepare(tmp_path, validation_fraction=0.999999)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 2}', b'{"format": 1}', b"\xff"])
def test_an_invalid_manifest(tmp_path, content):
    with pytest.raises(DataError, match=r"manifest\.json cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_manifest_round_trips(source, tmp_path):
    manifest = prepare(source)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    damaged = json.loads((tmp_path / "manifest.json").read_text())
    del damaged["splits"]["val"]
    (tmp_path / "manifest.json").write_text(json.dumps(damaged))
    with pytest.raises(LmsmithError, match="is damaged or edited: 'val'"):
        read_manifest(tmp_path)
    for split, told in (
        ({"n_bytes": 7}, r"n_bytes is 7, but its shards add up to 1,\d\d\d\. Prepare"),
        ({"n_documents": "8"}, "n_documents is '8', but"),
        (
            {"shards": [{**asdict(manifest.splits["train"].shards[0]), "n_tokens": "9"}]},
            "n_tokens is '9'",
        ),
        ({"shards": [{**asdict(manifest.splits["train"].shards[0]), "file": 7}]}, "file is 7"),
    ):
        edited = {**asdict(manifest), "format": 1}
        edited["splits"]["train"] |= split
        (tmp_path / "manifest.json").write_text(json.dumps(edited))
        with pytest.raises(LmsmithError, match="is damaged or edited: " + told):
            read_manifest(tmp_path)
