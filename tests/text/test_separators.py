"""Document separators in plain text: held against a regular expression, and against the same
documents as .jsonl.
"""

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from lmsmith.data.prepare import plan
from lmsmith.data.prepare.build import build_shards
from lmsmith.data.prepare.plan import make_plan
from lmsmith.data.prepare.units import Reading, read_unit
from lmsmith.errors import ConfigError
from lmsmith.evaluate.texts import read_documents
from lmsmith.text.documents import Documents
from lmsmith.text.files import Counts
from lmsmith.text.separators import Cutter, can_divide, cut_text
from lmsmith.text.sources import find_files

SEP = "<|endoftext|>"
PIECES = some.lists(
    some.sampled_from([SEP, SEP + "\n", "\n" + SEP, "\n", "a", " ", "é", "<|end", "oftext|>", "<|"])
)


def by_expression(text: str) -> list[str]:
    """The rule, said once more: one line break on each side goes with the separator; what is
    blank is no document.
    """
    parts = re.split(rf"\n?{re.escape(SEP)}\n?", text)
    return parts if len(parts) == 1 else [part for part in parts if part.strip()]


@given(PIECES, some.integers(1, 20))
def test_chunks_of_any_length_are_cut_as_the_whole(pieces: list[str], size: int) -> None:
    text = "".join(pieces)
    cutter = Cutter(SEP)
    found = [
        part
        for start in range(0, len(text), size)
        for part in cutter.push(text[start : start + size])
    ]
    found += cutter.finish()
    assert found == by_expression(text)
    assert cutter.n_found == text.count(SEP)
    assert found == cut_text(text, SEP)
    assert cut_text(text, "") == [text]


STORIES = [f"Once upon a time there were {n} cats.\n\nThey slept{' well' * n}." for n in range(60)]


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_a_plain_file_is_the_same_documents_as_lines_of_json(tmp_path: Path, line_end: str) -> None:
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    plain.write_bytes(f"\n{SEP}\n".join([*STORIES, ""]).replace("\n", line_end).encode())
    lines.write_text("".join(json.dumps({"text": story}) + "\n" for story in STORIES))
    documents = Documents([plain])
    assert (
        [found.text for found in documents]
        == STORIES
        == [found.text for found in Documents([lines])]
    )
    assert [found.source for found in documents][:2] == [f"{plain}#1", f"{plain}#2"]
    assert documents.counts.n_empty == 0
    assert documents.notes()[-1].startswith(f"1 plain text file cut into documents at 60 '{SEP}'")
    packed = tmp_path / "a.txt.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert [found.text for found in Documents([packed])] == STORIES
    for errors in ("strict", "replace"):
        assert (
            list(read_documents([plain], text_field="text", encoding="auto", errors=errors))
            == STORIES
        )


def test_the_option(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"one ### two{SEP}three")
    assert [found.text for found in Documents([path])] == ["one ### two", "three"]
    assert [found.text for found in Documents([path], document_separator="none")] == [
        path.read_text()
    ]
    assert [found.text for found in Documents([path], document_separator="###")] == [
        "one ",
        f" two{SEP}three",
    ]
    documents = Documents([path], document_separator="***")
    assert [found.text for found in documents] == [path.read_text()]
    assert documents.notes() == [
        "no plain text file has the separator '***'; each is one document."
    ]
    with pytest.raises(ConfigError, match="document_separator is empty"):
        Documents([path], document_separator="")
    lines = tmp_path / "a.jsonl"  # a separator in a line of JSON is text
    lines.write_text(json.dumps({"text": f"a{SEP}b"}) + "\n")
    assert [found.text for found in Documents([lines])] == [f"a{SEP}b"]


@pytest.mark.parametrize("separator", [SEP, "----", "\n\n"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_parts_of_a_file_are_never_cut_within_a_separator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str, line_end: str
) -> None:
    path = tmp_path / "a.txt"
    between = separator if separator == "\n\n" else f"\n{separator}\n"
    stories = [story.replace("\n\n", "\n") for story in STORIES]
    path.write_bytes(between.join(stories).replace("\n", line_end).encode())
    wanted = [found.text for found in Documents([path], document_separator=separator)]
    assert len(wanted) == 60
    monkeypatch.setattr(plan, "UNITS", 40)
    monkeypatch.setattr(plan, "LARGE", 100)
    reading = Reading("text", "utf-8", "strict", False, 0.1, True, separator=separator)
    for least in range(70, 90):
        monkeypatch.setattr(plan, "UNIT_BYTES", (least, 1 << 28))
        made = make_plan(find_files([str(path)])[0], reading, cut=len, drop_duplicates=False)
        found = [
            document.whole
            for unit in made.units
            for document in read_unit(unit, made.reading, Counts())
        ]
        assert found == wanted
        assert (len(made.units) > 20) == can_divide(separator)


def test_shards_are_those_of_lines_of_json_however_many_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.txt").write_text(f"\n{SEP}\n".join(STORIES))
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": story}) + "\n" for story in STORIES)
    )
    monkeypatch.setattr(plan, "UNIT_BYTES", (500, 1 << 28))
    shards = []
    for name, workers in (("a.txt", 1), ("a.txt", 2), ("a.jsonl", 1)):
        out = tmp_path / f"{name}-{workers}"
        made = build_shards([str(tmp_path / name)], out, tokenizer="byte", workers=workers)
        assert made.splits["train"].n_documents + made.splits["val"].n_documents == 60
        shards.append(
            [(out / shard).read_bytes() for shard in ("train_000000.bin", "val_000000.bin")]
        )
    assert shards[0] == shards[1] == shards[2]
