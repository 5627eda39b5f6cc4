"""Measurements of tokenizers compared with plain Python, and the pages and tables that show
them.
"""

import re
from pathlib import Path

import pytest

from lmsmith.report.tokenizers import HEAD, comparison_page, comparison_rows, sentence_of
from lmsmith.tokens.bpe import BpeTokenizer
from lmsmith.tokens.bpe_train import learn_bpe
from lmsmith.tokens.measure import (
    compare_tokenizers,
    course_tokenizers,
    inspect_tokenizer,
    longest_tokens,
    measure,
    shown,
)
from lmsmith.tokens.tokenizer import ByteTokenizer, CharTokenizer, WordTokenizer

TEXT = "the cat sat on the mat. the cat sat. " * 20


def test_measure() -> None:
    row = measure(ByteTokenizer(False), "aé" * 10, "here")
    assert (row.name, row.kind, row.vocab_size) == ("here", "byte", 256)
    assert (row.n_bytes, row.n_tokens, row.n_used, row.n_unknown) == (30, 30, 3, 0)
    assert row.bytes_per_token == 1
    assert row.share_used == 3 / 256
    assert row.megabytes_per_second > 0
    learned = CharTokenizer.learn(["abc"], False)
    unknown = measure(learned, "aé" * 10, "")
    assert (
        unknown.n_tokens,
        unknown.n_unknown,
        unknown.n_unknown_bytes,
        unknown.bytes_per_token,
    ) == (10, 10, 20, 1)
    assert measure(learned, "", "").bytes_per_token == 0


def test_longest_tokens() -> None:
    tokenizer = learn_bpe([TEXT], 300)
    longest = longest_tokens(tokenizer, 3)
    by_length = sorted(
        ((i, token) for i, token in enumerate(tokenizer.tokens) if token is not None),
        key=lambda pair: (-len(pair[1]), pair[0]),
    )
    assert longest == tuple((i, token.decode()) for i, token in by_length[:3])
    assert longest_tokens(WordTokenizer.learn(["some words", "extraordinary"], True), 1) == (
        (2, "extraordinary"),
    )
    gap = BpeTokenizer([*(bytes([b]) for b in range(256)), None, b"ab"], (), "gpt2")
    assert longest_tokens(gap, 1) == ((257, "ab"),)


def test_inspection_by_language() -> None:
    english = learn_bpe([TEXT], 300)
    inspection = inspect_tokenizer(
        english, {"English": TEXT, "Russian": "и так далее " * 20}, n_longest=2
    )
    by_name = {row.name: row for row in inspection.on_texts}
    assert by_name["English"].bytes_per_token > 2 > by_name["Russian"].bytes_per_token
    assert len(inspection.longest) == 2
    used = {*english.encode(TEXT).tolist(), *english.encode("и так далее " * 20).tolist()}
    assert inspection.share_used == pytest.approx(len(used) / english.vocab_size)


def test_course_tokenizers() -> None:
    tokenizers = course_tokenizers(TEXT, sizes=(260, 10_000))
    rows = compare_tokenizers(tokenizers, TEXT + "zebra")
    assert [row.vocab_size for row in rows] == sorted(row.vocab_size for row in rows)
    by_name = {row.name: row for row in rows}
    assert by_name["bytes"].bytes_per_token == 1
    assert by_name["words"].n_unknown == 1
    assert by_name["characters"].n_unknown == 3  # z, b and r
    assert {"BPE 260", "bytes", "characters", "words"} < set(by_name)
    assert all(row.n_unknown == 0 for row in rows if row.kind == "bpe")
    assert by_name["BPE 260"].bytes_per_token > 1


def test_shown() -> None:
    tokenizer = learn_bpe([TEXT], 300)
    assert "".join(shown(tokenizer, "the cat")) == "the cat"
    assert shown(ByteTokenizer(False), "é") == ["\ufffd", "\ufffd"]


def test_the_page_shows_table_curve_and_sentence(test_data: Path) -> None:
    text = (test_data / "tinystories" / "tinystories_197k.txt").read_text(encoding="utf-8")[:40_000]
    tokenizers = course_tokenizers(text, sizes=(300, 600))
    rows = compare_tokenizers(tokenizers, "Once <b> upon a time")
    cells = comparison_rows(rows)
    assert all(len(row) == len(HEAD) for row in cells)
    html = comparison_page(
        rows, tokenizers, "rts here.\nOnce <b> upon", name="a & b.txt", n_trained_on=40_000
    )
    assert html.startswith("<!doctype html>")
    assert "&lt;b&gt;" in html.replace("</code> <code>", "")
    assert "<b>" not in html
    assert "BPE 300" in html
    assert "<h1>a &amp; b.txt</h1>" in html
    assert "Tokenizers trained on 40,000 characters of this text and compared on the other" in html
    assert [words for words in (">256<", ">512<", ">1,024<") if words in html] == [
        ">256<",
        ">512<",
        ">1,024<",
    ]
    assert len(re.findall(r'class="dot"', html)) == len(rows)


def test_the_example_sentence_is_a_complete_line() -> None:
    assert sentence_of(
        "rted here, in the middle of some word.\nshort\nA line that is long enough to show.\n"
    ) == ("A line that is long enough to show.")
    assert sentence_of("one two " * 40) == ("one two " * 15).rstrip()
    assert sentence_of("x" * 200) == "x" * 120
    assert sentence_of("") == ""
