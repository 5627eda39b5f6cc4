"""Chat templates: messages -> the ids of a prompt that ends where the assistant's answer begins.

A tuned or imported model has a Jinja template (huggingface.json), which `chat/templates.py` runs.
Special tokens that the template writes become control tokens; those in a message stay text.

A model without a template gets a transcript: each message after its role, as plain text. The answer
ends before the next "User:". A base model continues this form more or less well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lmsmith.chat.masks import prompt_ids
from lmsmith.chat.templates import ChatTemplate, special_tokens
from lmsmith.errors import DataError
from lmsmith.generate.text_model import TextModel
from lmsmith.interop import defaults
from lmsmith.serve.errors import bad

Message = Mapping[str, Any]  # role, content (a text)


class Template(Protocol):
    """Renders conversations for one model."""

    @property
    def is_for_chat(self) -> bool:
        """Whether the model was trained on such prompts."""

    @property
    def stop(self) -> Sequence[str]:
        """Texts that end an answer, besides the model's end tokens."""

    def render(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the prompt. Raises ApiError for a conversation that it has no form for."""


def template_for(writer: TextModel, folder: Path) -> Template:
    """The template that is saved with a model, or a transcript. Raises CheckpointError."""
    saved = defaults.load(folder)
    if saved is None or "default" not in saved.chat_templates:
        return Transcript(writer)
    names = {name: text for name, text in saved.tokenizer.items() if isinstance(text, str)}
    return JinjaTemplate(writer, saved.chat_templates["default"], names)


def has_template(folder: Path) -> bool:
    """Whether a model was saved with a chat template. Raises CheckpointError."""
    saved = defaults.load(folder)
    return saved is not None and "default" in saved.chat_templates


@dataclass(frozen=True)
class Transcript:
    """Messages as plain text, for models without a template."""

    writer: TextModel
    is_for_chat: bool = False
    stop: Sequence[str] = ("\nUser:", "\nSystem:")

    def render(self, messages: Sequence[Message]) -> list[int]:
        lines = [f"{message['role'].capitalize()}: {message['content']}" for message in messages]
        return self.writer.encode("\n".join([*lines, "Assistant:"]))


@dataclass(frozen=True)
class JinjaTemplate:
    """The template of a chat model. `names`: bos_token and other texts that the program may use."""

    writer: TextModel
    source: str
    names: Mapping[str, str] = field(default_factory=dict)
    is_for_chat: bool = True
    stop: Sequence[str] = ()

    def render(self, messages: Sequence[Message]) -> list[int]:
        tokenizer = self.writer.tokenizer
        template = ChatTemplate(self.source, frozenset(special_tokens(tokenizer)), self.names)
        try:
            ids = prompt_ids([dict(message) for message in messages], template, tokenizer)
        except DataError as error:
            raise bad(str(error), "messages") from error
        if not ids:
            raise bad("the chat template gives an empty prompt.", "messages")
        return ids
