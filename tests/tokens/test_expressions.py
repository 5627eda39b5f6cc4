"""Patterns by name or expression, and expressions that match the same text in other programs."""

import pytest
from tiktoken_oracle import encoding

from lmsmith.errors import TokenizerError
from lmsmith.tokens.exact import ONIGURUMA
from lmsmith.tokens.expressions import check_portable, first_nonportable_part, parse_pattern
from lmsmith.tokens.split import BETWEEN_DIGITS, PATTERNS, REGEX, pattern_of, split

PORTABLE = [
    r"\p{L}+|\s+|[^\s\p{L}]+",
    r" ?\p{Lu}?\p{Ll}+(?:-\p{Ll}+)?|\p{N}{1,3}|\s+(?!\S)|\s",
    r"[a-z0-9_]{2,}|[^\r\n\t ]|(?<=a)[ ]|\.|\-|\$",
    BETWEEN_DIGITS.regex,
    PATTERNS["llama3"].regex,
    PATTERNS["o200k"].regex,
]


def test_patterns_are_given_by_name_or_as_expressions() -> None:
    assert parse_pattern("o200k") is PATTERNS["o200k"]
    assert parse_pattern(r"\p{L}+").family == REGEX
    assert parse_pattern("regex:nosuch").regex == "nosuch"
    for wrong, meant in (
        ("gpt-2", "Did you mean gpt2"),
        ("lama3", "Did you mean llama3"),
        ("nosuch", "Patterns: gpt2"),
    ):
        with pytest.raises(
            TokenizerError, match=rf"there is no pattern '{wrong}'.*{meant}.*write regex:{wrong}"
        ):
            parse_pattern(wrong)
    with pytest.raises(TokenizerError, match="not a regular expression"):
        parse_pattern("a(")


@pytest.mark.parametrize("expression", PORTABLE)
def test_portable_expressions(expression: str) -> None:
    """The pieces in lmsmith equal those in `tokenizers`, on all of ASCII and some other text."""
    tokenizers = pytest.importorskip("tokenizers")
    assert first_nonportable_part(expression) is None
    check_portable(pattern_of(expression), "here")
    text = (
        "".join(map(chr, range(9, 127)))
        + "The quick-brown Fox's  12345 é É \u0301x\u00a0 \u3000 中文 a  b\n\n" * 2
    )
    ours = [piece.decode() for piece in split(text.encode(), pattern_of(expression))]
    regex = tokenizers.Regex(expression)
    theirs = tokenizers.pre_tokenizers.Split(regex, "isolated").pre_tokenize_str(text)
    assert [piece for piece, _ in theirs] == ours
    ranks = {bytes([byte]): byte for byte in range(256)}
    assert (
        encoding(expression, ranks).encode_ordinary("a b") is not None
    )  # tiktoken's engine accepts it


@pytest.mark.parametrize(
    "expression",
    [
        "^a", "a$", ".", r"\bx", r"\h", r"\H", r"\w+", r"\d", "[a[b]]", r"[\p{L}&&[^a]]", "[a--b]", "a{1,3}+", "a++",
        "a*?", r"a|\s*", "(?=a)",
        r"(?m:.)", "(?i:ss)", r"\x{4e00}", r"\p{Han}", r"\A", r"\z", r"[\w]", "(?>a)", r"\G", "[[:alpha:]]", r"(a)\1",
        PATTERNS["gpt4"].regex,
        ONIGURUMA["gpt4"],
    ],
)  # fmt: skip
def test_expressions_that_are_not_portable(expression: str) -> None:
    assert first_nonportable_part(expression) is not None
