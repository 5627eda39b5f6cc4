"""Which tokens of a conversation are learned: what the assistant says, and the token that ends it.

The template decides. If it has `{% generation %}`, that is the answer. Otherwise a turn of the
assistant is what the text has after the generation prompt, up to the last special token of the
turn: the text of the messages before it, with the generation prompt, must be the beginning of the
text with it. A template that renders earlier turns differently when more follow is refused, since
its text does not say what the assistant said.

The text is encoded in the parts between special tokens and at the edges of what is learned. So the
ids before an answer are those of the prompt when the model generates, and no token is half learned.
Where an answer begins with a character that would merge with the prompt's last one (ChatML, and an
answer that begins with a line break), these ids differ from those of the text in one piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lmsmith.chat.conversations import Conversation, Message
from lmsmith.chat.templates import ChatTemplate, Rendered, special_tokens
from lmsmith.errors import DataError
from lmsmith.tokens.tokenizer import Tokenizer, ids_dtype

Part = tuple[str, bool, bool]  # text, special token or not, learned or not


@dataclass(frozen=True)
class Masked:
    """The ids of a conversation (n,), and which of them are learned (n,). `left_out`: the roles
    whose messages the template does not write.
    """

    ids: npt.NDArray[Any]
    learned: npt.NDArray[np.bool_]
    left_out: tuple[str, ...] = ()


def masked(conversation: Conversation, template: ChatTemplate, tokenizer: Tokenizer) -> Masked:
    """The ids of a conversation, up to the last learned one, and which of them are learned.

    Raises DataError if the template refuses it, or if nothing would be learned.
    """
    try:
        parts = learned_parts(conversation, template)
    except DataError as error:
        raise DataError(f"{conversation.source or 'the conversation'}: {error}") from error
    ids, marks = [], []
    for part in parts:
        some = encode_part(tokenizer, part)
        ids.append(some)
        marks.append(np.full(len(some), part[2]))
    every, learned = np.concatenate(ids), np.concatenate(marks)
    positions = np.flatnonzero(learned)
    if not len(positions):
        raise DataError(
            f"{conversation.source or 'the conversation'}: no token of it is learned. Is the "
            "assistant's text empty for this template or this tokenizer?"
        )
    end = int(positions[-1]) + 1
    text = "".join(part[0] for part in parts)
    left_out = {one["role"] for one in conversation.messages if one["content"].strip() not in text}
    return Masked(every[:end], learned[:end], tuple(sorted(left_out)))


def prompt_ids(
    messages: Sequence[Message],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    tools: Sequence[Any] = (),
) -> list[int]:
    """The ids of a conversation and of the start of the assistant's next turn."""
    rendered = template.render(messages, tools=tools, generation_prompt=True)
    return [int(id) for part in rendered.parts for id in encode_part(tokenizer, part)]


def end_ids(template: ChatTemplate, tokenizer: Tokenizer) -> list[int]:
    """The special tokens that end the assistant's turns, which end generated text."""
    short = Conversation(({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}))
    parts = learned_parts(short, template)
    last = next((part for part in reversed(parts) if part[2]), None)
    return [special_tokens(tokenizer)[last[0]]] if last and last[1] else []


def learned_parts(conversation: Conversation, template: ChatTemplate) -> list[Part]:
    """The text of a conversation in parts. Raises DataError as `masked` does."""
    messages, tools = conversation.messages, conversation.tools
    whole = template.render(messages, tools=tools)
    if template.marks_generation:
        return list(whole.parts)
    spans = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = template.render(messages[:number], tools=tools, generation_prompt=True)
        without_prompt = template.render(messages[:number], tools=tools)
        through = template.render(messages[: number + 1], tools=tools)
        _check_grows(before, through, whole, number)
        start, end = len(before.text), len(through.text) - _after_last_special(through)
        end = end if end > start else len(through.text)  # a template without an end token
        if before.text == without_prompt.text:  # there is no generation prompt
            start = max(start, through.text.find(message["content"].strip(), start))
        spans.append((start, end))
    return list(_cut(whole.parts, spans))


def encode_part(tokenizer: Tokenizer, part: Part) -> npt.NDArray[Any]:
    """The ids of a part: one for a special token, else those of its text as plain text."""
    text, special, _ = part
    if special:
        return np.array([special_tokens(tokenizer)[text]], ids_dtype(tokenizer.vocab_size))
    return tokenizer.encode(text)


def _check_grows(before: Rendered, through: Rendered, whole: Rendered, number: int) -> None:
    """Raises DataError unless each text is the beginning of the next."""
    if not (through.text.startswith(before.text) and whole.text.startswith(through.text)):
        raise DataError(
            "the chat template renders the turns before or through turn "
            f"{number + 1} differently when more follow, so it does not say which text the "
            "assistant wrote. Put {% generation %} and {% endgeneration %} around the assistant's "
            "text in the template, or choose another with --template."
        )


def _after_last_special(rendered: Rendered) -> int:
    """The characters after the last special token of a text; 0 if it has none."""
    n = 0
    for text, special, _ in reversed(rendered.parts):
        if special:
            return n
        n += len(text)
    return 0


def _cut(parts: Sequence[Part], spans: Sequence[tuple[int, int]]) -> Iterator[Part]:
    """The parts, cut at the edges of the spans, which are learned."""
    edges = sorted({edge for span in spans for edge in span})
    position = 0
    for text, special, _ in parts:
        end = position + len(text)
        inside = [edge for edge in edges if position < edge < end]
        assert not (special and inside)
        for start, stop in zip([position, *inside], [*inside, end], strict=True):
            learned = any(first <= start and stop <= last for first, last in spans)
            yield text[start - position : stop - position], special, learned
        position = end


# ---- what a user sees ----------------------------------------------------------------------------


def shown(found: Masked, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The text of a conversation in runs of tokens that are learned, or not: (text, learned)."""
    edges = np.flatnonzero(np.diff(found.learned)) + 1
    runs = zip(np.split(found.ids, edges), np.split(found.learned, edges), strict=True)
    return [(tokenizer.decode(ids), bool(learned[0])) for ids, learned in runs]
