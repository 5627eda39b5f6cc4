"""Reads conversations from files in the usual forms.

| form | a record |
|---|---|
| messages | `{"messages": [{"role": "user", "content": "..."}, ...]}` |
| ShareGPT | `{"conversations": [{"from": "human", "value": "..."}, ...]}` |
| prompt and completion | `{"prompt": "...", "completion": "..."}`, texts or lists of messages |
| Alpaca | `{"instruction": "...", "input": "...", "output": "..."}` |

A record may also have `system` (a text) and `tools` (a list). Roles are system, user, assistant and
tool; common other names of them are accepted (`human`, `gpt`, ...). A conversation has at most one
system message, which comes first, and starts with the user. No turn is empty, and at least one is
the assistant's. Turns after the assistant's last one are dropped and counted, because nothing is
learned from them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmsmith.errors import DataError
from lmsmith.strict_json import to_json
from lmsmith.text.files import plural
from lmsmith.text.records import find_record_files, read_records
from lmsmith.text.skipping import Skipped

Message = dict[str, Any]
"""`role` and `content`; an assistant's may have `tool_calls`, a tool's `name` or `tool_call_id`."""

ROLES = ("system", "user", "assistant", "tool")
_OTHER_NAMES = {
    **dict.fromkeys(("human", "prompter", "customer"), "user"),
    **dict.fromkeys(("gpt", "model", "bot", "ai", "chatgpt", "function_call"), "assistant"),
    **dict.fromkeys(("function", "observation", "ipython", "function_response"), "tool"),
    "developer": "system",
}
_KEPT = ("name", "tool_calls", "tool_call_id", "reasoning_content")
FORMS = (
    "`messages` (role, content), `conversations` (from, value), `prompt` and `completion`, or "
    "`instruction` and `output`"
)


@dataclass(frozen=True)
class Conversation:
    """A checked conversation. `source`: "file:line"; `tools`: descriptions of functions."""

    messages: tuple[Message, ...]
    source: str = ""
    tools: tuple[Any, ...] = ()
    n_dropped: int = 0  # turns after the assistant's last one

    @property
    def digest(self) -> bytes:
        """Equal for conversations with the same messages and tools."""
        text = to_json([list(self.messages), list(self.tools)], sort_keys=True)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Conversations:
    """The conversations of files, folders, patterns or data sets on the Hub.

    Each iteration reads the files again; `notes` then has sentences about it. `skip_bad`: skip and
    count records that are not conversations. Raises DataError, which names file and line.
    """

    def __init__(self, sources: Sequence[str], *, skip_bad: bool = False) -> None:
        self.sources = list(sources)
        self.files = find_record_files(self.sources)
        self._skip_bad = skip_bad
        self._skipped = Skipped()
        self._n_turns_dropped = self._n = 0
        self._forms: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Conversation]:
        self._skipped, self._n_turns_dropped, self._n = Skipped(), 0, 0
        for path in self.files:
            for record, source in read_records(path, self._skipped if self._skip_bad else None):
                try:
                    found = conversation_of(record, source)
                except DataError as error:
                    if not self._skip_bad:
                        raise DataError(
                            f"{error} `--skip-bad` skips such records and counts them."
                        ) from error
                    self._skipped(error)
                    continue
                self._n += 1
                self._n_turns_dropped += found.n_dropped
                yield found
        if not self._n:
            raise DataError(
                f"there are no conversations in {', '.join(self.sources)}: "
                f"{' '.join(self._skipped.notes()) or 'the files are empty.'} Expected {FORMS}."
            )

    def notes(self) -> list[str]:
        """Sentences about anything in the latest iteration that may surprise the user."""
        dropped = self._n_turns_dropped
        after = f"{plural(dropped, 'turn')} after the assistant's last one dropped"
        return [*([after] if dropped else []), *self._skipped.notes()]


def conversation_of(record: Mapping[str, Any], source: str = "") -> Conversation:
    """The conversation in a record of any of the forms. Raises DataError, which names `source`."""
    turns = _turns(record, source)
    system = record.get("system") or record.get("system_prompt")
    if isinstance(system, str) and system.strip() and not _is_system(turns):
        turns = [{"role": "system", "content": system}, *turns]
    messages = check_messages(
        [_message(turn, source, n) for n, turn in enumerate(turns, 1)], source
    )
    last = max((n for n, m in enumerate(messages) if m["role"] == "assistant"), default=-1)
    if last < 0:
        raise DataError(
            f"{source or 'the conversation'} has no turn of the assistant, so there is nothing to "
            "learn from it."
        )
    tools = record.get("tools")
    tools = tuple(tools) if isinstance(tools, list) else ()
    return Conversation(tuple(messages[: last + 1]), source, tools, len(messages) - last - 1)


def check_messages(messages: Sequence[Message], source: str = "") -> list[Message]:
    """Returns the messages. Raises DataError if they are not a conversation."""
    where = source or "the conversation"
    if not messages:
        raise DataError(f"{where} has no messages.")
    systems = [n for n, message in enumerate(messages) if message["role"] == "system"]
    if len(systems) > 1:
        raise DataError(f"{where} has {len(systems)} system messages, expected at most one.")
    if systems and systems[0]:
        raise DataError(
            f"{where}: the system message is turn {systems[0] + 1}, expected it to come first."
        )
    for number, message in enumerate(messages, start=1):
        if not message["content"].strip() and not message.get("tool_calls"):
            raise DataError(f"{where}: turn {number} ({message['role']}) is empty.")
    first = messages[len(systems)]["role"] if len(messages) > len(systems) else ""
    if first != "user":
        raise DataError(
            f"{where} starts with the {first or 'system message alone'}, expected the user's turn "
            "first."
        )
    return list(messages)


def _turns(record: Mapping[str, Any], source: str) -> list[Any]:
    """The unchecked turns of a record, in order."""
    for name in ("messages", "conversations", "conversation"):
        if isinstance(turns := record.get(name), list):
            return turns
    prompt, completion = record.get("prompt"), record.get("completion")
    if prompt is not None and completion is not None:
        return [*_side(prompt, "user"), *_side(completion, "assistant")]
    if record.get("instruction") is not None and record.get("output") is not None:
        instruction, more = record["instruction"], record.get("input")
        if isinstance(instruction, str) and isinstance(more, str) and more.strip():
            instruction = f"{instruction}\n\n{more}"
        history = record.get("history") or []
        earlier = [
            {"role": role, "content": text}
            for pair in history
            if isinstance(pair, list | tuple)
            for role, text in zip(("user", "assistant"), pair, strict=False)
        ]
        return [*earlier, *_side(instruction, "user"), *_side(record["output"], "assistant")]
    found = ", ".join(map(repr, record)) or "no fields"
    raise DataError(f"{source or 'the record'} is not a conversation: it has {found}; expected "
                    f"{FORMS}.")  # fmt: skip


def _side(value: Any, role: str) -> list[Any]:
    return list(value) if isinstance(value, list) else [{"role": role, "content": value}]


def _is_system(turns: Sequence[Any]) -> bool:
    first = turns[0] if turns else None
    return isinstance(first, Mapping) and first.get("role", first.get("from")) == "system"


def _message(turn: Any, source: str, number: int) -> Message:
    """A turn with `role` and `content`, whatever its keys are called. Raises DataError."""
    where = f"{source or 'the conversation'}: turn {number}"
    if not isinstance(turn, Mapping):
        raise DataError(f"{where} is {turn!r:.60}, expected an object with role and content.")
    role = turn.get("role", turn.get("from"))
    if role is None:
        raise DataError(
            f"{where} has {', '.join(map(repr, turn)) or 'no fields'}; expected role and content, "
            "or from and value."
        )
    known = _OTHER_NAMES.get(str(role), role)
    if known not in ROLES:
        raise DataError(f"{where} has the role {role!r}, expected one of {', '.join(ROLES)}.")
    kept = {name: turn[name] for name in _KEPT if turn.get(name) is not None}
    return {"role": known, "content": _content(turn, where), **kept}


def _content(turn: Mapping[str, Any], where: str) -> str:
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):  # parts, as in OpenAI's API
        texts = [
            part.get("text")
            for part in content
            if isinstance(part, Mapping) and part.get("type", "text") == "text"
        ]
        if len(texts) < len(content) or not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where} has parts that are not text, which lmsmith does not read.")
        return "".join(str(text) for text in texts)
    if content is None:
        return ""
    if not isinstance(content, str):
        raise DataError(f"{where} has the content {content!r:.60}, expected text.")
    return content
