"""Chat templates: a conversation as one text, with control tokens between the turns.

    template = ChatTemplate.named("lmsmith", tokenizer)
    template.render(messages, generation_prompt=True)

A template is a Jinja program, as in transformers, run in a sandbox with the same variables, filters
and the tag `{% generation %}`, which marks what the assistant says. There are three of our own:

    lmsmith   <|user|>Hello<|end|><|assistant|>Hi<|end|>       the default; one token around a turn
    chatml    <|im_start|>user\\nHello<|im_end|>\\n             Qwen and many others
    llama3    <|start_header_id|>user<|end_header_id|>\\n\\nHello<|eot_id|>

A special token written in a message stays text. For that, a character that occurs nowhere in the
conversation is put into it before the template runs, and taken out of the text between the control
tokens afterwards. So the program sees the message as it is, except inside such a token.

The template is saved with the model, in the file that an imported model's template is read from.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from lmsmith.chat.conversations import Message
from lmsmith.errors import ConfigError, DataError
from lmsmith.strict_json import to_json
from lmsmith.tokens.tokenizer import END_OF_TEXT, Tokenizer

_BEGIN = "{{- bos_token -}}\n"
LMSMITH = (
    _BEGIN
    + """{%- for message in messages -%}
{%- if message['tool_calls'] -%}
{{- raise_exception('the template lmsmith has no form for tool_calls: write calls as text') -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""
)
CHATML = """{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] + '<|im_end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
LLAMA3 = (
    _BEGIN
    + """{%- for message in messages -%}
{%- set role = 'ipython' if message['role'] == 'tool' else message['role'] -%}
{{- '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' -}}
{%- if message['role'] == 'assistant' -%}
{%- generation -%}{{- message['content'] | trim + '<|eot_id|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message['content'] | trim + '<|eot_id|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
)


@dataclass(frozen=True)
class Known:
    """A template of our own: its program, and the special tokens that it needs."""

    source: str
    tokens: tuple[str, ...]
    begin: str = ""  # the token of that name is bos_token; empty: the token between documents


TEMPLATES: dict[str, Known] = {
    "lmsmith": Known(LMSMITH, ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")),
    "chatml": Known(CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama3": Known(
        LLAMA3,
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
    ),
}

_NONCHARACTERS = [chr(code) for code in range(0xFDD0, 0xFDF0)]
"""Unicode reserves them for use inside programs, so texts practically never contain them."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text: (text, special token or not, learned or not), in order."""

    parts: tuple[tuple[str, bool, bool], ...]

    @property
    def text(self) -> str:
        return "".join(text for text, _, _ in self.parts)


@dataclass(frozen=True)
class ChatTemplate:
    """A template for one tokenizer. `names`: bos_token and other texts that the program may use."""

    source: str
    specials: frozenset[str]
    names: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def named(cls, name: str, tokenizer: Tokenizer, names: Mapping[str, str] | None = None) -> Self:
        """A template of our own, or one in a file (.jinja).

        `tokenizer` must have the template's special tokens. `names`: those of an imported model.
        Raises ConfigError.
        """
        own, specials = known(name), frozenset(special_tokens(tokenizer))
        if short := [token for token in specials if len(token) < 2]:
            raise ConfigError(
                f"the tokenizer's special token {short[0]!r} is a single character, which cannot "
                "be told apart from the text of a message."
            )
        if missing := [token for token in own.tokens if token not in specials]:
            raise ConfigError(
                f"the chat template {name!r} needs the special tokens {', '.join(missing)}, which "
                "the tokenizer does not have. `lmsmith tune` adds them."
            )
        texts = {"bos_token": own.begin or _end_of_text(tokenizer)} | dict(names or {})
        if own.begin:
            texts["bos_token"] = own.begin
        return cls(own.source, specials, texts)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] = (),
        generation_prompt: bool = False,
    ) -> Rendered:
        """The text of a conversation, and what of it `{% generation %}` marks as learned.

        `generation_prompt`: end with the start of the assistant's next turn. Raises DataError if
        the template refuses the conversation.
        """
        break_, start, end = self._unused(messages, tools)
        arguments: dict[str, Any] = {
            "messages": _map(list(messages), lambda text: self._broken(text, break_)),
            "tools": _map(list(tools), lambda text: self._broken(text, break_)) or None,
            "documents": None,
            "add_generation_prompt": generation_prompt,
            **self.names,
        }
        program = _program(self.source)
        try:
            text = program.render(_marks=(start, end), **arguments)
        except Exception as error:  # the program is foreign: it can raise anything
            raise DataError(f"the chat template refuses it: {_reason(error)}.") from error
        return Rendered(tuple(self._parts(text, break_, start, end)))

    @property
    def marks_generation(self) -> bool:
        """Whether the program itself says what the assistant says."""
        return re.search(r"\{%-?\s*generation\s*-?%\}", self.source) is not None

    def _parts(
        self, text: str, break_: str, start: str, end: str
    ) -> Iterator[tuple[str, bool, bool]]:
        pattern = _either((start, end, *sorted(self.specials, key=lambda text: (-len(text), text))))
        learned, done = False, 0
        for match in [*pattern.finditer(text), None]:
            between = text[done : match.start() if match else len(text)].replace(break_, "")
            if between:
                yield between, False, learned
            if match is None:
                return
            if match.group() in (start, end):
                learned = match.group() == start
            else:
                yield match.group(), True, learned
            done = match.end()

    def _broken(self, text: str, break_: str) -> str:
        """`text` with `break_` after the first character of each special token in it."""
        if not any(special in text for special in self.specials):
            return text
        parts, done = [], 0
        for match in _starts(tuple(sorted(self.specials))).finditer(text):
            parts.append(text[done : match.start() + 1] + break_)
            done = match.start() + 1
        return "".join(parts) + text[done:]

    def _unused(self, messages: Any, tools: Any) -> tuple[str, str, str]:
        """Three characters that do not occur in the conversation."""
        every = "".join(_texts([list(messages), list(tools)]))
        free = [character for character in _NONCHARACTERS if character not in every][:3]
        if len(free) < 3:
            raise DataError("it has nearly all noncharacters of Unicode (U+FDD0 to U+FDEF).")
        return free[0], free[1], free[2]


def known(name: str) -> Known:
    """A template of our own by name, or the program in a file. Raises ConfigError."""
    if name in TEMPLATES:
        return TEMPLATES[name]
    try:
        source = Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"data.chat_template = {name!r}: expected {', '.join(TEMPLATES)}, or a readable Jinja "
            f"file ({error})."
        ) from error
    return Known(source, ())


def special_tokens(tokenizer: Tokenizer) -> dict[str, int]:
    """The control tokens of a tokenizer: text -> id."""
    named: dict[str, int] = getattr(tokenizer, "special_tokens", {})
    end = tokenizer.end_of_text
    return dict(named) if named or end is None else {END_OF_TEXT: end}


def _end_of_text(tokenizer: Tokenizer) -> str:
    ends = {number: text for text, number in special_tokens(tokenizer).items()}
    return ends.get(-1 if tokenizer.end_of_text is None else tokenizer.end_of_text, "")


@functools.lru_cache(maxsize=64)
def _either(texts: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


@functools.lru_cache(maxsize=64)
def _starts(texts: tuple[str, ...]) -> re.Pattern[str]:
    """Matches the empty text where one of `texts` starts, so that overlapping ones are found."""
    return re.compile(f"(?={_either(texts).pattern})")


def _map(value: Any, change: Any, key: str = "") -> Any:
    """`value` with each text changed, except roles, which programs compare."""
    if isinstance(value, str):
        return value if key == "role" else change(value)
    if isinstance(value, Mapping):
        return {name: _map(part, change, name) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_map(part, change) for part in value]
    return value


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _texts(part)


def _reason(error: Exception) -> str:
    return str(error).strip().rstrip(".") or type(error).__name__


# ---- Jinja ---------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=16)
def _program(source: str) -> Any:
    """The compiled program, with what transformers offers to templates. Raises ConfigError."""
    try:
        import jinja2
        from jinja2 import nodes
        from jinja2.ext import Extension, loopcontrols
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as error:
        raise ConfigError(
            "chat templates need one more library: `pip install 'lmsmith[chat]'`."
        ) from error

    class Generation(Extension):
        """`{% generation %}...{% endgeneration %}`: puts the marks around what is between."""

        tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            call = self.call_method("_marked", [nodes.Name("_marks", "load")])
            return nodes.CallBlock(call, [], [], body).set_lineno(line)

        def _marked(self, marks: tuple[str, str], caller: Any) -> str:
            return f"{marks[0]}{caller()}{marks[1]}"

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = _now
    try:
        return environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template is not valid Jinja: {error.message} in line {error.lineno}."
        ) from error


def _raise(message: str) -> Literal[""]:
    raise ValueError(message)


def _now(form: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(form)


def _tojson(value: Any, indent: int | None = None, **_: Any) -> str:
    """JSON as transformers writes it: characters are not escaped for HTML or ASCII."""
    return to_json(value, ensure_ascii=False, indent=indent)
