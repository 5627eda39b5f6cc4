"""Chat templates: messages -> the ids of a prompt that ends where the assistant's answer begins.

An imported model brings the Jinja template of its tokenizer (huggingface.json). It is run in
Jinja's sandbox, with the variables and filters that transformers gives to templates. Special tokens
that the template writes become control tokens; those that a message contains stay text.

A model without a template gets a transcript: each message after its role, as plain text. The answer
ends before the next "User:". A base model continues this form more or less well.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from lmsmith.errors import ConfigError
from lmsmith.generate.text_model import TextModel
from lmsmith.interop import defaults
from lmsmith.serve.errors import bad
from lmsmith.strict_json import to_json

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


_BREAK = "\ufdd0"
"""A noncharacter of Unicode. Inside a special token of a message it makes the token plain text."""


@dataclass(frozen=True)
class JinjaTemplate:
    """The template of a chat model. `names`: bos_token and other texts that the program may use."""

    writer: TextModel
    source: str
    names: Mapping[str, str] = field(default_factory=dict)
    is_for_chat: bool = True
    stop: Sequence[str] = ()

    def render(self, messages: Sequence[Message]) -> list[int]:
        plain = [
            {
                name: self._broken(text) if name == "content" else text
                for name, text in message.items()
            }
            for message in messages
        ]
        program = _program(self.source)
        try:
            text = program.render(
                messages=plain,
                tools=None,
                documents=None,
                add_generation_prompt=True,
                **self.names,
            )
        except Exception as error:  # the program is foreign: it can raise anything
            reason = str(error).strip() or type(error).__name__
            raise bad(f"the chat template refuses it: {reason[:300]}", "messages") from error
        return self._encode(text)

    @functools.cached_property
    def _specials(self) -> dict[str, int]:
        return dict(getattr(self.writer.tokenizer, "special_tokens", {}))

    @functools.cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._specials, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def _broken(self, text: str) -> str:
        text = text.replace(_BREAK, "")
        if any(len(special) < 2 and special in text for special in self._specials):
            raise bad("a message has a control character of this model.", "messages")
        while self._pattern.search(text):  # again: tokens can overlap
            text = self._pattern.sub(lambda found: found[0][0] + _BREAK + found[0][1:], text)
        return text

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = []
        done = 0
        for match in [*self._pattern.finditer(text), None]:
            between = text[done : match.start() if match else len(text)].replace(_BREAK, "")
            if between:
                ids += self.writer.tokenizer.encode(between).tolist()
            if match:
                ids.append(self._specials[match.group()])
                done = match.end()
        if not ids:
            raise bad("the chat template gives an empty prompt.", "messages")
        return ids


@functools.lru_cache(maxsize=16)
def _program(source: str) -> Any:
    """The compiled program, with what transformers offers to templates. Raises ConfigError."""
    try:
        import jinja2
        from jinja2.ext import loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ConfigError(
            "chat templates need one more library: `pip install 'lmsmith[serve]'`."
        ) from error
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None, **_: to_json(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    source = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", _without_tag, source)
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template is not valid Jinja: {error.message} in line {error.lineno}."
        ) from error


def _without_tag(tag: re.Match[str]) -> str:
    """A comment that trims the same spaces. The tag marks what is learned, for training only."""
    left = "-" if tag.group().startswith("{%-") else ""
    right = "-" if tag.group().endswith("-%}") else ""
    return f"{{#{left} {right}#}}"


def _raise(message: str) -> str:
    raise ValueError(message)
