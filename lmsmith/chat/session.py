"""A conversation with a model: its turns so far, and the model's next one, piece by piece.

    chat = Chat(writer, own_speaker(folder))
    chat.say("Hello")
    for piece in chat.answer(): ...

**A full context.** The prompt and the answer must fit into the model's context. If they do not, the
oldest exchange is left out of the prompt, then the next one, and so on; a system message stays.
`Chat.forgotten` counts the messages that the model no longer sees. An answer ends where the context
does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lmsmith import atomic
from lmsmith.chat.conversations import Message, check_messages
from lmsmith.chat.masks import prompt_ids
from lmsmith.chat.prepare import Speaker
from lmsmith.chat.templates import TEMPLATES, special_tokens
from lmsmith.errors import DataError, UsageError
from lmsmith.generate.decode import stream_text
from lmsmith.generate.sampling import Sampling
from lmsmith.generate.text_model import TextModel
from lmsmith.strict_json import to_json

ROOM = 4  # an answer gets at least this part of the context, a quarter


@dataclass
class Chat:
    """A conversation. `writer`: the model; `speaker`: its tokenizer and template."""

    writer: TextModel
    speaker: Speaker
    messages: list[Message] = field(default_factory=list)
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 500
    seed: int = 1
    stop: Sequence[str] = ()  # an answer ends before the first of these texts
    forgotten: int = 0  # messages that the latest prompt left out
    cut: bool = False  # whether the latest answer ended at `max_tokens` or at the context's end
    _index: int = 0  # of the sample, so that a second try differs

    def say(self, text: str) -> None:
        """Adds the user's turn. Raises UsageError for an empty one."""
        if not text.strip():
            raise UsageError("the message is empty: write something.")
        self.messages.append({"role": "user", "content": text})
        self._index = 0

    def answer(self) -> Iterator[str]:
        """Yields the next turn of the assistant in pieces, and adds it to the messages.

        If the caller stops early, what it has read is the turn. Raises UsageError, at the first
        piece, if the last message alone does not fit into the context.
        """
        ids = self._prompt()
        pieces = reply(
            self.writer,
            self.speaker,
            ids,
            max_tokens=self.max_tokens,
            sampling=self.sampling,
            seed=self.seed + len(self.messages),
            index=self._index,
            stop=self.stop,
        )
        read: list[str] = []
        try:
            for piece in pieces:
                read.append(piece)
                yield piece
        finally:
            text = "".join(read)
            limit = room(self.writer, ids, self.max_tokens)
            self.cut = len(self.writer.tokenizer.encode(text)) >= limit
            self.messages.append({"role": "assistant", "content": text})

    def undo(self) -> bool:
        """Drops the last turn of the user and what follows it; False if there is none."""
        last = [n for n, message in enumerate(self.messages) if message["role"] == "user"]
        if not last:
            return False
        del self.messages[last[-1] :]
        return True

    def retry(self) -> bool:
        """Drops the assistant's last turn, so that `answer` draws another one; False if there is
        none.
        """
        if not self.messages or self.messages[-1]["role"] != "assistant":
            return False
        self.messages.pop()
        self._index += 1
        return True

    def clear(self) -> None:
        """Drops all turns but a system message."""
        system = bool(self.messages) and self.messages[0]["role"] == "system"
        del self.messages[int(system) :]

    def save(self, path: Path) -> None:
        """Writes the conversation as a line that `tune` reads. Raises UsageError if the file
        exists, StorageError.
        """
        if path.exists():
            raise UsageError(f"{path} exists already: choose another name.")
        atomic.write(path, to_json({"messages": self.messages}, ensure_ascii=False) + "\n")

    def _prompt(self) -> list[int]:
        """The ids of as many of the last messages as leave room for an answer."""
        n_system = int(bool(self.messages) and self.messages[0]["role"] == "system")
        system, turns = self.messages[:n_system], self.messages[n_system:]
        users = [n for n, message in enumerate(turns) if message["role"] == "user"]
        least = least_room(self.writer, self.max_tokens)
        for start in users:
            ids = encoded(self.writer, self.speaker, [*system, *turns[start:]])
            if room(self.writer, ids, self.max_tokens) >= least:
                self.forgotten = start
                return ids
        T = self.writer.model.context_length
        raise UsageError(
            f"the message does not fit into the model's context of {T:,} tokens with room for an "
            "answer: write a shorter one."
        )


def encoded(writer: TextModel, speaker: Speaker, messages: Sequence[Message]) -> list[int]:
    """The ids of a prompt. Raises DataError if the template refuses the messages."""
    return prompt_ids(messages, speaker.template, writer.tokenizer)


def complete(
    writer: TextModel,
    speaker: Speaker,
    messages: Sequence[Message],
    *,
    max_tokens: int,
    sampling: Sampling,
    seed: int,
    index: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Yields the assistant's answer to messages, which must fit into the context. It ends before
    the first of `stop`.

    Raises UsageError for messages that are not a conversation which the user or a tool continues,
    or that do not fit.
    """
    try:
        some = check_messages([{"content": "", **message} for message in messages])
        ids = encoded(writer, speaker, some)
    except (DataError, KeyError) as error:
        raise UsageError(f"these messages are not a conversation: {error}") from error
    if some[-1]["role"] not in ("user", "tool"):
        raise UsageError(
            f"the last message is the {some[-1]['role']}'s, expected the user's or a tool's."
        )
    if room(writer, ids, max_tokens) < 1:
        raise UsageError(
            f"the messages have {len(ids):,} tokens, and the model's context is "
            f"{writer.model.context_length:,}: leave out the oldest ones."
        )
    return reply(
        writer,
        speaker,
        ids,
        max_tokens=max_tokens,
        sampling=sampling,
        seed=seed,
        index=index,
        stop=stop,
    )


def reply(
    writer: TextModel,
    speaker: Speaker,
    ids: Sequence[int],
    *,
    max_tokens: int,
    sampling: Sampling,
    seed: int,
    index: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Yields the answer to a prompt in pieces. It ends at an end token, or where the context is
    full.
    """
    return stream_text(
        writer.model,
        writer.tokenizer,
        ids,
        max_tokens=room(writer, ids, max_tokens),
        sampling=sampling,
        seed=seed,
        index=index,
        stop=stop,
        ends=ends_of(writer, speaker),
    )


def ends_of(writer: TextModel, speaker: Speaker) -> set[int]:
    """Ids that end an answer: those of the model and the template, and, in our own templates, every
    control token, because none belongs into an answer.
    """
    control = special_tokens(writer.tokenizer)
    known = [own for own in TEMPLATES.values() if own.source == speaker.template.source]
    tokens = {control[token] for own in known for token in own.tokens if token in control}
    return {*writer.ends, *speaker.ends, *tokens}


def room(writer: TextModel, ids: Sequence[int], max_tokens: int) -> int:
    """Tokens that an answer to a prompt can have."""
    T = writer.model.context_length
    return max_tokens if T is None else min(max_tokens, T - len(ids))


def least_room(writer: TextModel, max_tokens: int) -> int:
    """Tokens that the prompt leaves to an answer, at least."""
    T = writer.model.context_length
    return 1 if T is None else min(max_tokens, max(1, T // ROOM))
