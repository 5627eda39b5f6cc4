"""/v1/completions: continues texts.

`prompt` is a text, ids, or a list of either. A text begins as in `lmsmith generate`, after the
model's begin token; ids are read as they are. With `seed`, choice i is sample i of
`lmsmith generate --seed`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from lmsmith.errors import LmsmithError
from lmsmith.generate.text_model import TextModel
from lmsmith.serve.answers import (
    Choice,
    EventStream,
    Generation,
    read_in_time,
    until_disconnected,
)
from lmsmith.serve.errors import ApiError, bad
from lmsmith.serve.fields import Fields, encodable, kind_of
from lmsmith.serve.json_response import JsonResponse, new_id
from lmsmith.serve.pieces import Piece, Shown, as_text
from lmsmith.serve.sampling import MOST_CHOICES, Common, Limits, check_reported, read_common
from lmsmith.serve.scheduler import Scheduler
from lmsmith.serve.scoring import check_length, score_prompt

DEFAULT_TOKENS = 16
MOST_PROMPTS = 128
MOST_ALTERNATIVES = 20


@dataclass(frozen=True)
class Completion:
    """A checked request."""

    common: Common
    prompts: list[list[int]]
    texts: list[str]  # of the prompts, for echo
    echo: bool
    logprobs: int | None
    best_of: int
    only_prompt: bool  # max_tokens = 0: nothing is generated


def read(fields: Fields, writer: TextModel, limits: Limits) -> Completion:
    """Reads and checks all fields. Raises ApiError."""
    echo = fields.flag("echo")
    logprobs = fields.any("logprobs")
    if logprobs is not None:
        logprobs = fields.integer("logprobs", 0, 0, MOST_ALTERNATIVES)
    only_prompt = echo and _is_id(fields.any("max_tokens")) and fields.any("max_tokens") == 0
    if only_prompt:
        fields = fields.without("max_tokens")
        if fields.flag("stream"):
            raise bad("max_tokens = 0 does not go together with stream.", "stream")
    common = read_common(
        fields,
        writer,
        limits,
        default_tokens=min(DEFAULT_TOKENS, limits.max_tokens),
        n_alternatives=logprobs or 0,
    )
    best_of = fields.integer("best_of", common.n, 1, MOST_CHOICES)
    if best_of < common.n:
        raise bad(f"best_of = {best_of} is less than n = {common.n}.", "best_of")
    if common.stream and best_of > common.n:
        raise bad("best_of does not go together with stream.", "best_of")
    fields.refuse("suffix", ("",), "models of lmsmith continue a text, they do not fill gaps.")
    prompts, texts = _prompts(fields, writer, limits)
    if len(prompts) * best_of > MOST_CHOICES:
        raise bad(
            f"{len(prompts)} prompts with {best_of} choices each are more than {MOST_CHOICES}.", "n"
        )
    if echo and logprobs is not None:
        for ids in prompts:
            check_length(writer, ids)
    if logprobs is not None:
        n_tokens = len(prompts) * best_of * common.max_tokens
        n_tokens += sum(map(len, prompts)) if echo else 0
        check_reported(n_tokens * (1 + logprobs))
    fields.ignore("model")
    fields.done()
    return Completion(common, prompts, texts, echo, logprobs, best_of, only_prompt)


def _prompts(
    fields: Fields, writer: TextModel, limits: Limits
) -> tuple[list[list[int]], list[str]]:
    value = fields.any("prompt")
    value = "" if value is None else value
    single = isinstance(value, str) or (
        isinstance(value, list) and value and all(_is_id(each) for each in value)
    )
    values = [value] if single else value
    if not isinstance(values, list) or not values:
        raise bad(f"prompt is {kind_of(value)}: expected a text, ids, or a list.", "prompt")
    if len(values) > MOST_PROMPTS:
        raise bad(f"{len(values):,} prompts: expected at most {MOST_PROMPTS}.", "prompt")
    prompts, texts = [], []
    for each in values:
        if isinstance(each, str):
            try:
                ids = writer.encode(encodable(each, "prompt"))
            except LmsmithError as error:
                raise bad(str(error), "prompt") from None
            text = each
        elif isinstance(each, list) and each and all(_is_id(id) for id in each):
            V = writer.model.vocab_size
            if not all(0 <= id < V for id in each):
                raise bad(f"prompt has an id that is not between 0 and {V - 1:,}.", "prompt")
            ids = each
            text = writer.tokenizer.decode([id for id in ids if id < writer.tokenizer.vocab_size])
        else:
            raise bad("prompt: expected a text, a list of ids, or a list of either.", "prompt")
        if len(ids) > limits.max_prompt_tokens:
            raise bad(
                f"the prompt has {len(ids):,} tokens: expected at most "
                f"{limits.max_prompt_tokens:,}.",
                "prompt",
                "context_length_exceeded",
            )
        prompts.append(ids)
        texts.append(text)
    return prompts, texts


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


async def answer(
    http: HttpRequest,
    fields: Fields,
    model: str,
    writer: TextModel,
    scheduler: Scheduler,
    limits: Limits,
    client: str,
) -> Response:
    """The response to a request. Raises ApiError."""
    asked = await read_in_time(read, fields, writer, limits)
    common = asked.common
    prompts_shown: list[list[Shown]] = []
    if asked.echo and asked.logprobs is not None:
        for ids in asked.prompts:
            future = scheduler.call(
                lambda ids=ids: score_prompt(writer, ids, asked.logprobs or 0),  # type: ignore[misc]
                client,
            )
            prompts_shown.append(
                await until_disconnected(http, asyncio.wrap_future(future), scheduler)
            )
    head = {"id": new_id("cmpl"), "object": "text_completion", "model": model}
    if asked.only_prompt:
        return _only_prompt(asked, head, prompts_shown)
    generation = Generation(
        scheduler,
        writer,
        asked.prompts,
        common,
        limits,
        n=asked.best_of,
        stop=common.stop,
        client=f"{client} {common.user}",
        report=asked.logprobs is not None,
        score=asked.best_of > common.n,
    )
    head["created"] = generation.created  # type: ignore[assignment]
    if common.stream:
        return EventStream(_chunks(generation, asked, head, prompts_shown), generation)
    choices = await generation.choices(http)
    kept: list[dict[str, Any]] = []
    for p, text in enumerate(asked.texts):
        of_prompt = choices[p * asked.best_of : (p + 1) * asked.best_of]
        if asked.best_of > common.n:
            of_prompt.sort(key=lambda each: -each.log_probability / max(1, each.n_tokens))
        for choice in of_prompt[: common.n]:
            shown = prompts_shown[p] if prompts_shown else []
            kept.append(_choice(choice, len(kept), asked, asked.prompts[p], text, shown))
    return JsonResponse({**head, "choices": kept, "usage": generation.usage()})


def _only_prompt(
    asked: Completion, head: dict[str, Any], prompts_shown: list[list[Shown]]
) -> Response:
    choices: list[dict[str, Any]] = []
    for p, text in enumerate(asked.texts):
        shown = prompts_shown[p] if prompts_shown else []
        choice = Choice(finish="length")
        for _ in range(asked.common.n):
            choices.append(_choice(choice, len(choices), asked, asked.prompts[p], text, shown))
    n = sum(map(len, asked.prompts))
    usage = {"prompt_tokens": n, "completion_tokens": 0, "total_tokens": n}
    return JsonResponse({**head, "created": int(time.time()), "choices": choices, "usage": usage})


def _choice(
    choice: Choice | Piece,
    index: int,
    asked: Completion,
    prompt_ids: Sequence[int],
    before: str,
    shown: list[Shown],
    start: int = 0,
) -> dict[str, Any]:
    """A choice, or a chunk of one. `before`, `shown`: the prompt, for echo."""
    text = (before if asked.echo else "") + choice.text
    entry: dict[str, Any] = {
        "index": index,
        "text": text,
        "logprobs": None,
        "finish_reason": choice.finish or None,
    }
    if asked.logprobs is not None:
        offset = start + (len(before) if asked.echo else 0)
        entry["logprobs"] = _logprobs([*shown] if asked.echo else [], choice.tokens, offset)
    if asked.common.return_ids:
        entry["prompt_token_ids"], entry["token_ids"] = list(prompt_ids), list(choice.ids)
    return entry


def _logprobs(prompt: Sequence[Shown], tokens: Sequence[Shown], offset: int) -> dict[str, Any]:
    every = [*prompt, *tokens]
    return {
        "tokens": [token.text for token in every],
        "token_logprobs": [token.log_probability for token in every],
        "top_logprobs": [
            None if token.log_probability is None else _alternatives(token) for token in every
        ],
        "text_offset": [
            *(token.offset for token in prompt),
            *(token.offset + offset for token in tokens),
        ],
    }


def _alternatives(token: Shown) -> dict[str, float]:
    """The likeliest tokens by text; of tokens with the same text the likeliest."""
    found: dict[str, float] = {}
    for _, piece, p in token.alternatives:
        found.setdefault(as_text(piece), p)
    return found


async def _chunks(
    generation: Generation,
    asked: Completion,
    head: dict[str, Any],
    prompts_shown: list[list[Shown]],
) -> AsyncIterator[dict[str, Any] | None]:
    started: set[int] = set()
    async for number, piece in generation.pieces():
        p = number // asked.best_of
        first = number not in started
        started.add(number)
        if not (piece.text or piece.tokens or piece.ids or piece.finish or first):
            yield None
            continue
        shown = prompts_shown[p] if prompts_shown and first else []
        before = asked.texts[p] if first else ""
        start = len(asked.texts[p]) if asked.echo and not first else 0
        ids = asked.prompts[p] if first else []
        entry = _choice(piece, number, asked, ids, before, shown, start)
        yield {**head, "choices": [entry]}
    if asked.common.include_usage:
        yield {**head, "choices": [], "usage": generation.usage()}


def refuse(name: str) -> ApiError:
    """The error for a route of OpenAI's API that this server does not have."""
    return ApiError(
        404,
        f"{name} is not supported: models of lmsmith write text. Use /v1/completions or "
        "/v1/chat/completions.",
        code="not_supported",
    )
