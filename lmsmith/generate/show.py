"""Shows how probable each token of a text was, and which tokens the model preferred.

    text = show(ids, log_probabilities, alternatives, tokenizer, width=console.width)
    console.print(text, soft_wrap=True)

With colour, the background of a token shows its probability in six steps from dark blue (likely)
to bright yellow (surprising), close to the cividis scale (Nuñez, Anderton and Renslow 2018). The
brightness rises at each step, so the scale can be read with any colour blindness and in greyscale.
The colours are from the 256-colour palette and look the same on terminals with more colours.
Without colour, each token is followed by its probability in brackets.

A character can be split over several tokens. They are shown together, with the product of their
probabilities. Characters that would control the terminal are shown as escapes (`\\n`, `\\x1b`); a
newline also starts a new line.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.style import Style
from rich.text import Text

from lmsmith.tokens.stream_decoder import StreamDecoder
from lmsmith.tokens.tokenizer import Tokenizer

# From this probability on: background and text colour.
STEPS = (
    (0.5, "#00005f", "#ffffff"),
    (0.2, "#5f5f87", "#ffffff"),
    (0.05, "#808080", "#000000"),
    (0.01, "#afaf87", "#000000"),
    (0.001, "#d7d75f", "#000000"),
    (0.0, "#ffff5f", "#000000"),
)
_LONGEST_LABEL = 16  # columns
_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def show(
    tokens: Sequence[int],
    log_probabilities: Sequence[float],
    alternatives: Sequence[Sequence[tuple[int, float]]],
    tokenizer: Tokenizer,
    *,
    width: int = 80,
    colour: bool = True,
) -> Text:
    """A legend, the text, and a line for each token with its alternatives.

    log_probabilities   natural logarithms, one for each token
    alternatives        (id, log-probability) pairs for each token, likeliest first; empty: no list
    width               columns of the terminal; lines of the list are no longer
    colour              False: numbers in place of colours

    Raises TokenizerError for an id outside the vocabulary.
    """
    assert len(tokens) == len(log_probabilities)
    assert not alternatives or len(alternatives) == len(tokens)
    shown = legend() if colour else Text()
    if colour:
        shown.append("\n")
    for text, first, end in characters(tokens, tokenizer):
        p = math.exp(math.fsum(log_probabilities[first:end]))
        escaped = escape(text) or f"<{' '.join(map(str, tokens[first:end]))}>"
        shown.append(escaped, style_of(p) if colour else "")
        if not colour:
            shown.append(f"[{percent(p)}]")
        shown.append("\n" * text.count("\n"))
    if any(alternatives):
        shown.append("\n\n")
        shown.append_text(_list(tokens, log_probabilities, alternatives, tokenizer, width, colour))
    return shown


def legend() -> Text:
    """The steps of the colour scale with their probabilities."""
    shown = Text("probability ")
    for i, (least, _, _) in enumerate(STEPS):
        label = f"{percent(least)}+" if least else f"<{percent(STEPS[i - 1][0])}"
        shown.append(f" {label} ", style_of(least))
    return shown


def style_of(p: float) -> Style:
    """The colours of a token with probability p."""
    background, text = next((b, t) for least, b, t in STEPS if p >= least or least == 0)
    return Style(color=text, bgcolor=background)


def percent(p: float) -> str:
    """A probability in at most five characters."""
    if p >= 0.0995:
        return f"{100 * p:.0f}%"
    return f"{100 * p:.1f}%" if p >= 0.0005 else "<0.1%" if p > 0 else "0%"


def characters(tokens: Sequence[int], tokenizer: Tokenizer) -> Iterator[tuple[str, int, int]]:
    """Splits a text into the shortest runs of tokens with complete characters.

    Yields (text, first, end): the text of tokens[first:end]. An incomplete character at the end is
    U+FFFD.
    """
    first, text = 0, ""
    stream = StreamDecoder(tokenizer)
    utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    for i, id in enumerate(tokens):
        if tokenizer.decodes_bytes:
            text += utf8.decode(tokenizer.decode_bytes([id]))
            complete = not utf8.getstate()[0]
        else:
            text += stream.push(id)
            complete = bool(text)
        if complete:
            yield text, first, i + 1
            first, text = i + 1, ""
    if first < len(tokens):
        text += utf8.decode(b"", final=True) if tokenizer.decodes_bytes else stream.flush()
        yield text, first, len(tokens)


def escape(text: str) -> str:
    """The text with escapes for characters that control a terminal or the direction of writing."""
    return "".join(
        c.encode("unicode_escape").decode()
        if ord(c) < 32 or 127 <= ord(c) < 160 or c in _CONTROLS
        else c
        for c in text
    )


def label(id: int, tokenizer: Tokenizer) -> str:
    """A token in quotes; bytes that are not complete characters as escapes such as \\xe2."""
    if tokenizer.decodes_bytes:
        text = tokenizer.decode_bytes([id]).decode("utf-8", "backslashreplace")
    else:
        text = tokenizer.decode([id])
    text = escape(text)
    if cell_len(text) > _LONGEST_LABEL - 2:
        text = set_cell_size(text, _LONGEST_LABEL - 5) + "..."
    return f'"{text}"' if text else f"<{id}>"


def _list(
    tokens: Sequence[int],
    log_probabilities: Sequence[float],
    alternatives: Sequence[Sequence[tuple[int, float]]],
    tokenizer: Tokenizer,
    width: int,
    colour: bool,
) -> Text:
    """A line for each token: its probability, and as many alternatives as fit."""
    labels = [label(id, tokenizer) for id in tokens]
    column = max(map(cell_len, labels))
    lines = []
    for id, log_p, name, others in zip(
        tokens, log_probabilities, labels, alternatives, strict=True
    ):
        line = Text(set_cell_size(name, column))
        p = math.exp(log_p)
        line.append(f" {percent(p):>5} ", style_of(p) if colour else "")
        for other, other_log_p in others:
            if other == id:
                continue
            entry = f"  {label(other, tokenizer)} {percent(math.exp(other_log_p))}"
            if line.cell_len + cell_len(entry) > width:
                break
            line.append(entry)
        line.truncate(width)
        lines.append(line)
    return Text("\n").join(lines)
