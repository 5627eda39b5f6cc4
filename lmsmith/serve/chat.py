"""/v1/chat/completions: answers the last message of a conversation.

The model's template turns the messages into a prompt (`templates.py`). Tools, images and audio are
refused by name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lmsmith.errors import LmsmithError
from lmsmith.serve.answers import Choice, EventStream, Generation, read_in_time
from lmsmith.serve.errors import bad
from lmsmith.serve.fields import Fields, kind_of
from lmsmith.serve.json_response import JsonResponse, new_id
from lmsmith.serve.models import Served
from lmsmith.serve.pieces import Piece, Shown, as_text
from lmsmith.serve.sampling import Common, Limits, check_reported, read_common
from lmsmith.serve.scheduler import Scheduler
from lmsmith.serve.structured import GrammarConstraint, Grammars, read_schema

ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_MESSAGES = 2000
MOST_ALTERNATIVES = 20


@dataclass(frozen=True)
class ChatCompletion:
    """A checked request."""

    common: Common
    ids: list[int]
    stop: tuple[str, ...]
    logprobs: bool
    constraints: Sequence[GrammarConstraint]  # one per choice, or none


def read(fields: Fields, served: Served, limits: Limits) -> ChatCompletion:
    """Reads and checks all fields. Raises ApiError."""
    logprobs = fields.flag("logprobs")
    n_alternatives = fields.integer("top_logprobs", 0, 0, MOST_ALTERNATIVES)
    if n_alternatives and not logprobs:
        raise bad("top_logprobs is only allowed with logprobs = true.", "top_logprobs")
    none = "models of lmsmith call no tools."
    for name in ("tools", "functions"):
        fields.refuse(name, ([],), none)
    fields.refuse("tool_choice", ("none", "auto"), none)
    fields.refuse("function_call", ("none", "auto"), none)
    fields.ignore("parallel_tool_calls", "model")
    fields.refuse("modalities", (["text"],), "models of lmsmith write text only.")
    fields.refuse("audio", (), "models of lmsmith write text only.")
    fields.refuse("reasoning_effort", ("none",), "models of lmsmith have no reasoning levels.")
    template = served.template
    assert template is not None
    messages = read_messages(fields)
    try:
        ids = template.render(messages)
    except LmsmithError as error:
        raise bad(str(error), "messages") from None
    schema = read_schema(fields)
    room = _room(served, ids, limits)
    common = read_common(
        fields,
        served.writer,
        limits,
        default_tokens=room,
        n_alternatives=n_alternatives,
        max_tokens_names=("max_completion_tokens", "max_tokens"),
    )
    fields.done()
    common = common.limited_to(room)
    if logprobs:
        check_reported(common.n * common.max_tokens * (1 + n_alternatives))
    constraints: list[GrammarConstraint] = []
    if schema is not None:
        if served.grammars is None:
            served.grammars = Grammars(served.writer)
        constraints = served.grammars.constraints(schema, common.n)
    stop = (*common.stop, *template.stop)
    return ChatCompletion(common, ids, stop, logprobs, constraints)


def _room(served: Served, ids: list[int], limits: Limits) -> int:
    """The tokens of an answer that fit behind the prompt. Raises ApiError if there are none."""
    T = served.writer.model.context_length
    most = limits.max_prompt_tokens if T is None else T - 1
    if len(ids) > most:
        raise bad(
            f"the conversation has {len(ids):,} tokens and the model reads at most {most:,} "
            "before an answer: shorten it.",
            "messages",
            "context_length_exceeded",
        )
    return limits.max_tokens if T is None else min(limits.max_tokens, T - len(ids))


def read_messages(fields: Fields) -> list[dict[str, str]]:
    """The messages, each with role and content as texts. Raises ApiError."""
    messages = fields.any("messages")
    if not isinstance(messages, list) or not messages:
        raise bad(f"messages is {kind_of(messages)}: expected an array of messages.", "messages")
    if len(messages) > MOST_MESSAGES:
        raise bad(f"{len(messages):,} messages: expected at most {MOST_MESSAGES:,}.", "messages")
    found = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise bad(f"messages[{i}] is {kind_of(message)}: expected an object.", "messages")
        parts = Fields(message, f"messages[{i}].")
        role = parts.text("role")
        if role not in ROLES:
            raise bad(
                f"messages[{i}].role = {role[:40]!a}: expected one of {', '.join(ROLES)}.",
                "messages",
            )
        parts.refuse("tool_calls", ([],), "models of lmsmith call no tools.")
        parts.refuse("audio", (), "models of lmsmith read text only.")
        parts.ignore("name", "refusal", "tool_call_id", "function_call", "annotations")
        content = _content(parts, i)
        parts.done()
        found.append({"role": "system" if role == "developer" else role, "content": content})
    return found


def _content(parts: Fields, i: int) -> str:
    value = parts.any("content")
    if not isinstance(value, list):
        return parts.text("content")
    texts = []
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else kind_of(part)
            raise bad(
                f"messages[{i}].content has a part of type {str(kind)[:40]!a}: expected text.",
                "messages",
            )
        texts.append(Fields(part, f"messages[{i}].content.").text("text"))
    return "".join(texts)


async def answer(
    http: HttpRequest,
    fields: Fields,
    served: Served,
    scheduler: Scheduler,
    limits: Limits,
    client: str,
) -> Response:
    """The response to a request. Raises ApiError."""
    asked: ChatCompletion = await read_in_time(read, fields, served, limits)
    generation = Generation(
        scheduler,
        served.writer,
        [asked.ids],
        asked.common,
        limits,
        n=asked.common.n,
        stop=asked.stop,
        client=f"{client} {asked.common.user}",
        report=asked.logprobs,
        constraints=asked.constraints,
    )
    kind = "chat.completion.chunk" if asked.common.stream else "chat.completion"
    head = {
        "id": new_id("chatcmpl"),
        "object": kind,
        "created": generation.created,
        "model": served.name,
    }
    if asked.common.stream:
        return EventStream(_chunks(generation, asked, head), generation)
    choices = await generation.choices(http)
    listed = []
    for i, choice in enumerate(choices):
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        listed.append(_choice(i, {"message": message}, choice, asked))
    return JsonResponse({**head, "choices": listed, "usage": generation.usage()})


async def _chunks(
    generation: Generation, asked: ChatCompletion, head: dict[str, Any]
) -> AsyncIterator[dict[str, Any] | None]:
    started: set[int] = set()
    async for number, piece in generation.pieces():
        delta: dict[str, Any] = {}
        if number not in started:
            delta = {"role": "assistant", "content": "", "refusal": None}
            started.add(number)
        if piece.text:
            delta["content"] = piece.text
        if delta or piece.tokens or piece.ids or piece.finish:
            yield {**head, "choices": [_choice(number, {"delta": delta}, piece, asked)]}
        else:
            yield None
    if asked.common.include_usage:
        yield {**head, "choices": [], "usage": generation.usage()}


def _choice(
    index: int, content: dict[str, Any], choice: Choice | Piece, asked: ChatCompletion
) -> dict[str, Any]:
    entry = {
        "index": index,
        **content,
        "logprobs": None,
        "finish_reason": choice.finish or None,
    }
    if asked.logprobs:
        of_text = [_token(token) for token in choice.tokens if not token.is_end]
        entry["logprobs"] = {"content": of_text, "refusal": None}
    if asked.common.return_ids:
        entry["token_ids"] = list(choice.ids)
    return entry


def _token(token: Shown) -> dict[str, Any]:
    return {
        "token": token.text,
        "logprob": token.log_probability,
        "bytes": list(token.raw),
        "top_logprobs": [
            {"token": as_text(piece), "logprob": p, "bytes": list(piece)}
            for _, piece, p in token.alternatives
        ],
    }
