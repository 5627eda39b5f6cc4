"""Pre-tokenization compared with tiktoken: the table of classes, all sequences of classes, real
text, random text, any bytes.
"""

import itertools
import os
import random
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_oracle import FEW, REPRESENTATIVES, encoding, pieces

from lmsmith.errors import TokenizerError
from lmsmith.tokens import scanner
from lmsmith.tokens.make_unicode_classes import ask_tiktoken
from lmsmith.tokens.specials import Specials
from lmsmith.tokens.split import (
    BETWEEN_DIGITS,
    PADDING,
    PATTERNS,
    Texts,
    parts_of,
    parts_of_stream,
    pattern_of,
    piece_ends,
    split,
)
from lmsmith.tokens.unicode_classes import (
    CASELESS,
    LOWER,
    MARK,
    NUMBER,
    OTHER,
    SPACE,
    UPPER,
    unicode_classes,
)

every_pattern = pytest.mark.parametrize("name", PATTERNS)


def test_classes_equal_tiktokens() -> None:
    pytest.importorskip("tiktoken")
    assert np.array_equal(unicode_classes(), ask_tiktoken())


def test_classes_equal_pythons_for_characters_that_python_knows() -> None:
    spaces = [
        *range(9, 14),
        0x20,
        0x85,
        0xA0,
        0x1680,
        *range(0x2000, 0x200B),
        0x2028,
        0x2029,
        0x202F,
        0x205F,
        0x3000,
    ]
    assert np.flatnonzero(unicode_classes() == SPACE).tolist() == spaces
    class_of = {
        "Lu": UPPER,
        "Lt": UPPER,
        "Ll": LOWER,
        "Lm": CASELESS,
        "Lo": CASELESS,
        "N": NUMBER,
        "M": MARK,
    }
    for code_point in range(0x110000):
        category = unicodedata.category(chr(code_point))
        if category != "Cn" and code_point not in spaces:
            expected = class_of.get(category) or class_of.get(category[0]) or 0
            assert unicode_classes()[code_point] == expected, hex(code_point)


def all_texts(characters: tuple[str, ...], length: int) -> list[bytes]:
    return [
        "".join(sequence).encode()
        for n in range(1, length + 1)
        for sequence in itertools.product(characters, repeat=n)
    ]


def check_all(name: str, texts: list[bytes]) -> None:
    """Compares the pieces of all texts with tiktoken's. All of `texts`, and so all of their
    substrings, are tokens, so tiktoken's tokens are its pieces.
    """
    ranks = {bytes([byte]): byte for byte in range(256)}
    for text in texts:
        ranks.setdefault(text, len(ranks))
    engine = encoding(PATTERNS[name].regex, ranks)
    expected = engine.encode_ordinary_batch(
        [text.decode() for text in texts], num_threads=os.cpu_count() or 1
    )
    padded = Texts(texts)
    ends, first_pieces = padded.split(PATTERNS[name])
    flat = padded.padded.tobytes()
    for k, tokens in enumerate(expected):
        cuts = [int(padded.starts[k]), *ends[first_pieces[k] : first_pieces[k + 1]].tolist()]
        ours = [ranks[flat[start:end]] for start, end in itertools.pairwise(cuts)]
        assert ours == tokens, texts[k].decode()


@every_pattern
def test_all_sequences_of_classes_to_length_3(name: str) -> None:
    check_all(name, all_texts(FEW, 3))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt2", "o200k"])  # the shortest expression and the longest
def test_all_sequences_of_classes_to_length_5(name: str) -> None:
    check_all(name, all_texts(FEW, 5))


@pytest.mark.slow
@every_pattern
def test_all_sequences_of_many_characters_to_length_4(name: str) -> None:
    check_all(name, all_texts(REPRESENTATIVES, 4))


@every_pattern
def test_long_random_sequences_of_classes(name: str) -> None:
    """Texts of more than 64 bytes, with a few frequent characters, so that there are long runs."""
    draw = random.Random(name)
    for characters in (REPRESENTATIVES, [c for c in REPRESENTATIVES if c.isascii()]):
        text = "".join(
            "".join(
                draw.choices(
                    characters,
                    [draw.random() ** 4 + 0.002 for _ in characters],
                    k=draw.randint(1, 300),
                )
            )
            for _ in range(300)
        ).encode()
        ours = split(text, PATTERNS[name])
        assert pieces(text, ours, name) == ours


@every_pattern
def test_white_space_at_the_end(name: str) -> None:
    for length in (1, 2, 3):
        for end in itertools.product(" \t\n\r\u3000", repeat=length):
            text = ("x" * 61 + "!" + "".join(end)).encode()
            ours = split(text, PATTERNS[name])
            assert pieces(text, ours, name) == ours


@pytest.mark.slow
@every_pattern
def test_every_code_point_between_others(name: str) -> None:
    characters = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    for part in range(0, len(characters), 1 << 16):
        text = "".join(f"{c}a {c}{c}1'{c}\n" for c in characters[part : part + (1 << 16)]).encode()
        ours = split(text, PATTERNS[name])
        assert pieces(text, ours, name) == ours


@every_pattern
def test_characters_at_the_edges_of_classes(name: str) -> None:
    table = unicode_classes()
    edges = np.flatnonzero(np.diff(table)) + 1
    characters = [
        chr(c) for c in sorted({*edges.tolist(), *(edges - 1).tolist()}) if not 0xD800 <= c < 0xE000
    ]
    text = "".join(f"{c}a {c}{c}1'{c}\n" for c in characters).encode()
    ours = split(text, PATTERNS[name])
    assert pieces(text, ours, name) == ours


@every_pattern
def test_real_text(name: str, test_data: Path) -> None:
    files = [*test_data.glob("multilingual/*.txt"), test_data / "naughty_strings" / "blns.txt"]
    library = sorted(Path(os.__file__).parent.glob("*.py"))[:10]
    for file in [*files, *library]:
        text = file.read_text(encoding="utf-8")[:30_000].encode()
        ours = split(text, PATTERNS[name])
        assert pieces(text, ours, name) == ours, file


@pytest.mark.slow
@every_pattern
def test_all_real_text(name: str, test_data: Path) -> None:
    code = sorted(Path(os.__file__).parent.glob("**/*.py"))[::4]  # a quarter of Python's library
    for file in [*test_data.rglob("*.txt"), *code]:
        text = file.read_bytes().decode("utf-8", "replace").encode()
        ours = split(text, PATTERNS[name])
        assert pieces(text, ours, name) == ours, file


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1), st.sampled_from(sorted(PATTERNS)))
def test_any_text(text: str, name: str) -> None:
    ours = split(text.encode(), PATTERNS[name])
    assert pieces(text.encode(), ours, name) == ours


@given(st.binary(max_size=300), st.sampled_from(sorted(PATTERNS)))
def test_pieces_of_any_bytes_join_to_the_bytes(data: bytes, name: str) -> None:
    parts = split(data, PATTERNS[name])
    assert b"".join(parts) == data
    assert all(parts)


@every_pattern
def test_pieces_do_not_depend_on_the_next_text(name: str) -> None:
    """Texts in one array are split like each text alone: a piece must not continue into the next
    text.
    """
    draw = random.Random(name)
    texts = [
        "".join(draw.choices(REPRESENTATIVES, k=draw.randint(0, 8))).encode() for _ in range(500)
    ]
    padded = Texts(texts)
    ends, first_pieces = padded.split(PATTERNS[name])
    for k, text in enumerate(texts):
        text_ends = ends[first_pieces[k] : first_pieces[k + 1]] - padded.starts[k]
        assert text_ends.tolist() == piece_ends(text, PATTERNS[name]).tolist()
    assert len(padded.padded) == sum(map(len, texts)) + PADDING * len(texts)


@every_pattern
def test_parts_give_the_pieces_of_the_complete_text(name: str, test_data: Path) -> None:
    text = (test_data / "multilingual" / "xquad_zh.txt").read_bytes()[:30_000]
    text += (
        (test_data / "naughty_strings" / "blns.txt").read_bytes()
        + b"  \n" * 3
        + b"a" * 5000
        + b"1" * 5000
    )
    text += "12.5,'3 4'5\n67'll8\u0301 ٣'٣ \u0301".encode() * 100
    draw = random.Random(name)
    expected = split(text, PATTERNS[name])
    for size in (70, 100, 1000):
        parts = list(parts_of(text, size, PATTERNS[name]))
        assert len(parts) > len(text) / size / 3
        assert (
            list(
                itertools.chain.from_iterable(split(bytes(part), PATTERNS[name]) for part in parts)
            )
            == expected
        )
        cuts = sorted({0, len(text), *(draw.randint(0, len(text)) for _ in range(400))})
        stream = (text[start:end] for start, end in itertools.pairwise(cuts))
        parts = list(parts_of_stream(stream, size, PATTERNS[name]))
        assert (
            list(itertools.chain.from_iterable(split(part, PATTERNS[name]) for part in parts))
            == expected
        )


def test_parts_do_not_cut_special_tokens() -> None:
    special = "<|a b c|>"
    text = (f"word {special}" * 200).encode()
    for size in range(30, 60):
        for parts in (
            parts_of(text, size, PATTERNS["gpt2"], Specials([special])),
            parts_of_stream(
                (text[k : k + 7] for k in range(0, len(text), 7)),
                size,
                PATTERNS["gpt2"],
                Specials([special]),
            ),
        ):
            copies = [bytes(part) for part in parts]
            assert b"".join(copies) == text
            assert sum(part.count(special.encode()) for part in copies) == 200


def test_other_expressions_run_through_regex_without_losing_text(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("regex")
    pattern = pattern_of(r"\p{L}+|\d")
    assert split("ab 12,é".encode() + b"\xff", pattern) == [
        b"ab",
        b" ",
        b"1",
        b"2",
        b",",
        "é".encode(),
        b"\xff",
    ]
    assert split(b"", pattern) == []
    pattern_of(r"\p{L}+|\d")
    assert sum("slower" in record.message for record in caplog.records) == 1
    with pytest.raises(TokenizerError, match="not a regular expression"):
        pattern_of("(")


@every_pattern
def test_patterns_by_name_and_by_expression(name: str) -> None:
    assert pattern_of(name) == pattern_of(PATTERNS[name].regex) == PATTERNS[name]
    regex = pytest.importorskip("regex")
    text = "Hello  world's 12345 \n\n  x\n!\n/ DON'T  "
    assert [match.decode() for match in split(text.encode(), PATTERNS[name])] == regex.findall(
        PATTERNS[name].regex, text
    )


def test_ranges_that_letters_end_does_not_decode_are_letters() -> None:
    """`letters_end` recognizes them by the first byte."""
    assert chr(0x5000).encode()[0] == scanner.IDEOGRAPHS[0]
    assert chr(0x9FFF).encode()[0] == scanner.IDEOGRAPHS[1]
    assert chr(0x400).encode()[0] == scanner.CYRILLIC[0]
    assert chr(0x47F).encode()[0] == scanner.CYRILLIC[1]
    assert (unicode_classes()[0x4E00:0xA000] >= UPPER).all()
    assert (unicode_classes()[0x400:0x480] >= UPPER).all()


LATIN = [*range(0xC0, 0xD7), *range(0xD8, 0xF7), *range(0xF8, 0x100)]
MORE_LETTERS = [*LATIN, *range(0x400, 0x480), *range(0x4E00, 0xA000)]
MORE_OTHERS = [*range(0x2010, 0x2028), 0x3001, 0x3002, *range(0x3008, 0x3020)]
MORE_OTHERS += [*range(0xFF01, 0xFF10), *range(0xFF1A, 0xFF21)]


def test_ranges_that_piece_starts_knows_have_one_class() -> None:
    assert (unicode_classes()[MORE_LETTERS] >= UPPER).all()
    assert (unicode_classes()[MORE_OTHERS] == OTHER).all()


@every_pattern
def test_random_sequences_of_characters_beyond_ascii(name: str) -> None:
    """Those that `piece_starts` knows, and their neighbours, which have other classes."""
    draw = random.Random(name)
    known = 3 * MORE_LETTERS[:200] + MORE_LETTERS[-999:] + 9 * MORE_OTHERS
    neighbours = [
        0xD7,
        0xF7,
        0x200B,
        0x2028,
        0x3000,
        0x3005,
        0x3007,
        0x4DFF,
        0xFF10,
        0xFF21,
        0x3042,
    ]
    for _ in range(300):
        characters = [*"a '9\n", *map(chr, draw.sample(known, 9) + draw.sample(neighbours, 2))]
        text = "".join(draw.choices(characters, k=200)).encode()
        start = draw.randrange(len(text))
        for part in (text, text[start:], text[:start]):  # perhaps cut inside a character
            assert split(part, PATTERNS[name]) == split_by_regex(part, name)


def split_by_regex(text: bytes, name: str) -> list[bytes]:
    found = regex.findall(PATTERNS[name].regex, text.decode("utf-8", "surrogateescape"))
    return [piece.encode("utf-8", "surrogateescape") for piece in found]


def test_between_digits_equals_its_expression() -> None:
    """As in SmolLM: each digit is a piece, and so is the white space before it."""
    compiled, draw = regex.compile(BETWEEN_DIGITS.regex), random.Random(2)
    few = ("s", "L", "é", "1", "٣", " ", "\n", "\u3000", "'", "!", "\u0301")
    texts = ["".join(text) for n in range(1, 5) for text in itertools.product(few, repeat=n)]
    ascii_only = ["s", "t", "ll", "Z", "1", "23", "4", " ", " ", "  ", "\n", "\t", "'", "!", "."]
    texts += ["".join(draw.choices(ascii_only, k=draw.randint(1, 120))) for _ in range(2000)]
    for text in texts:
        assert split(text.encode(), BETWEEN_DIGITS) == [
            piece.encode() for piece in compiled.findall(text)
        ], text
