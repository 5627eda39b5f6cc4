"""Texts with their probabilities: nothing lost, nothing that controls the terminal, colours that
everybody can tell apart.
"""

import io
import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.color import Color, ColorSystem
from rich.console import Console

from lmsmith.errors import TokenizerError
from lmsmith.generate.show import STEPS, characters, escape, label, legend, percent, show, style_of
from lmsmith.tokens.tokenizer import ByteTokenizer, WordTokenizer


class WithoutBytes(ByteTokenizer):
    """A tokenizer whose tokens are not bytes, as those of some libraries."""

    decodes_bytes = False


TOKENIZERS = [ByteTokenizer(end_of_text=True), WithoutBytes(end_of_text=256)]


def _ids(text: str) -> list[int]:
    return list(text.encode())


def _halves(n: int) -> list[float]:
    return [math.log(0.5)] * n


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bytes", "text"])
@given(st.one_of(st.text().map(_ids), st.lists(st.integers(0, 255))))
def test_characters_are_all_of_the_text(tokenizer: ByteTokenizer, ids: list[int]) -> None:
    found = list(characters(ids, tokenizer))
    assert "".join(text for text, _, _ in found) == tokenizer.decode(ids)
    ends = [0, *(end for _, _, end in found)]
    assert [first for _, first, _ in found] == ends[:-1]
    assert ends[-1] == len(ids)


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["bytes", "text"])
def test_a_character_of_several_tokens_has_their_product(tokenizer: ByteTokenizer) -> None:
    ids = _ids("aé€")
    assert list(characters(ids, tokenizer)) == [("a", 0, 1), ("é", 1, 3), ("€", 3, 6)]
    shown = show(ids, [math.log(0.6)] * 6, [], tokenizer, colour=False)
    assert shown.plain == "a[60%]é[36%]€[22%]"


def test_an_incomplete_character_at_the_end() -> None:
    assert list(characters([65, 0xE2, 0x82], ByteTokenizer(end_of_text=True)))[1] == (
        "\ufffd",
        1,
        3,
    )


def test_newlines_and_control_characters() -> None:
    ids = _ids("a\n\x1b[31m\u202eb\r\t")
    shown = show(ids, [0.0] * len(ids), [], ByteTokenizer(end_of_text=True), colour=False).plain
    assert shown.replace("[100%]", "") == "a\\n\n\\x1b[31m\\u202eb\\r\\t"


@given(st.text())
def test_nothing_controls_the_terminal(text: str) -> None:
    assert all(c.isprintable() or ord(c) > 159 for c in escape(text))
    ids = _ids(text.encode("utf-8", "replace").decode())
    others = [[(id, -1.0), (27, -2.0)] for id in ids]
    for colour in (True, False):
        shown = show(
            ids, _halves(len(ids)), others, ByteTokenizer(end_of_text=True), colour=colour
        ).plain
        assert not {c for c in shown if ord(c) < 32 or ord(c) == 127} - {"\n"}


@pytest.mark.parametrize("width", [1, 7, 12, 30, 80])
def test_lines_of_alternatives_fit_the_terminal(width: int) -> None:
    ids = _ids("It was 日本")
    others = [[(id, -0.1), *((j, -float(j)) for j in range(97, 117))] for id in ids]
    shown = show(
        ids, _halves(len(ids)), others, ByteTokenizer(end_of_text=True), width=width, colour=False
    )
    lines = shown.plain.split("\n\n")[1].split("\n")
    assert len(lines) == len(ids)
    assert max(map(cell_len, lines)) <= width
    if width >= 30:
        assert all(line.endswith("%") for line in lines)  # no entry is cut
        assert "\\xe6" in lines[7]


def test_alternatives_are_listed_without_the_token_itself() -> None:
    others = [[(97, math.log(0.6)), (98, math.log(0.25)), (10, math.log(0.1))]]
    shown = show([97], [math.log(0.6)], others, ByteTokenizer(end_of_text=True), colour=False).plain
    assert shown == 'a[60%]\n\n"a"   60%   "b" 25%  "\\n" 10%'


def test_labels() -> None:
    tokenizer = ByteTokenizer(end_of_text=True)
    assert label(0xE2, tokenizer) == '"\\xe2"'
    assert label(32, tokenizer) == '" "'
    assert label(256, tokenizer) == '"<|endoftext|>"'
    words = WordTokenizer(["antidisestablishmentarianism"], end_of_text=False)
    assert cell_len(label(1, words)) == 16
    assert label(1, words).endswith('..."')
    with pytest.raises(TokenizerError):
        label(10_000, tokenizer)


def test_percentages() -> None:
    assert [percent(p) for p in (1.0, 0.996, 0.5, 0.0996, 0.0994, 0.0005, 1e-9, 0.0)] == [
        "100%", "100%", "50%", "10%", "9.9%", "0.1%", "<0.1%", "0%"
    ]  # fmt: skip


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.1)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (x / 255 for x in Color.parse(colour).get_truecolor())
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_scale_can_be_read_by_its_brightness_alone() -> None:
    backgrounds = [_luminance(background) for _, background, _ in STEPS]
    for dark, bright in itertools.pairwise(backgrounds):
        assert (bright + 0.05) / (dark + 0.05) > 1.3
    for _, background, text in STEPS:
        low, high = sorted([_luminance(background), _luminance(text)])
        assert (high + 0.05) / (low + 0.05) >= 4.5
    for _, background, _ in STEPS:  # the same with 256 colours
        colour = Color.parse(background)
        in_256 = colour.downgrade(ColorSystem.EIGHT_BIT)
        assert in_256.get_truecolor() == colour.get_truecolor()


def test_tokens_have_the_colour_of_their_step() -> None:
    assert [style_of(p).bgcolor.name for p in (1.0, 0.5, 0.49, 0.05, 0.01, 0.001, 1e-5, 0.0)] == [
        STEPS[i][1] for i in (0, 0, 1, 2, 3, 4, 5, 5)
    ]
    assert legend().plain == "probability  50%+  20%+  5.0%+  1.0%+  0.1%+  <0.1% "


def test_on_a_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=20)
    text = "so long a line that it is wrapped"
    console.print(
        show(_ids(text), [-9.0] * len(text), [], ByteTokenizer(end_of_text=True), width=20)
    )
    assert "48;2;255;255;95" in file.getvalue()
    plain = io.StringIO()
    Console(file=plain, width=20).print(
        show(_ids(text), [-9.0] * len(text), [], ByteTokenizer(end_of_text=True))
    )
    lines = plain.getvalue().splitlines()
    assert max(map(len, lines)) <= 20
    assert " ".join(" ".join(lines).split()).endswith(text)


def test_no_tokens() -> None:
    assert show([], [], [], ByteTokenizer(end_of_text=True), colour=False).plain == ""
